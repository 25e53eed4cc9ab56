"""Families whose observation is a place, so that rewards of places can be drawn as a map."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from metarl_cli.envs.native import NativeFamily
from metarl_cli.interfaces import Task, device_of, dtype_of

ROWS = 101  # of a map


class PlaneFamily(NativeFamily):
    """A family of places around the origin."""

    differentiates = False
    half: float  # of the sides of the square that a map shows

    @abstractmethod
    def worth(self, place: Tensor, task: Task) -> Tensor:
        """Return the rewards ``[M, X]`` of moves to ``place [X, d]``."""

    def map(self, task: Task) -> Tensor | None:
        """Return the places ``[rows, columns, 2]`` of a map; None where they lie in no plane."""
        if self.spec.obs_shape != (2,):
            return None
        line = torch.linspace(-self.half, self.half, ROWS, dtype=dtype_of(task), device=device_of(task))
        return torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
