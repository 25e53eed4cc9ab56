"""Actions: at random within what a family allows, and vectors as a grid of choices for learners that choose.

Factorised discretisation (Seyde 2022, arXiv:2210.12566): each of D dimensions has B bins at equal distances, from bound to
bound, and is chosen on its own.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


class Box(NamedTuple):
    """Actions that are vectors: the least and the greatest value of each of D dimensions."""

    low: tuple[float, ...]
    high: tuple[float, ...]


class Spec(NamedTuple):
    """What a learner must know of a family.

    An action is a whole number below ``num_actions``, ``[M, N]``; where ``box`` is given, a vector within it, ``[M, N, D]``.
    With ``masked``, the last ``num_actions`` entries of an observation are 1 for each action one can take now, else 0.
    """

    obs_shape: tuple[int, ...]
    num_actions: int  # 0 where actions are vectors
    horizon: int  # [steps] of an episode, the longest where tasks differ
    box: Box | None = None
    masked: bool = False
    obs_scale: tuple[float, ...] = ()  # [O] the usual size of each entry, for a network to divide by; none: about 1 already


def random_actions(spec: Spec, obs: Tensor, rng: torch.Generator | None) -> Tensor:
    """Uniformly random actions for ``obs [M, N, ...]``: ``[M, N]`` of those one can take, or ``[M, N, D]`` in the bounds."""
    if spec.box is not None:
        low, high = bounds(spec.box, obs.device)
        return low + (high - low) * torch.rand(*obs.shape[:2], len(low), generator=rng, device=obs.device, dtype=low.dtype)
    if spec.masked:
        legal = obs[..., -spec.num_actions :].flatten(0, 1).float()
        return torch.multinomial(legal, 1, generator=rng).reshape(obs.shape[:2])
    return torch.randint(spec.num_actions, obs.shape[:2], generator=rng, device=obs.device)


def bounds(box: Box, device: torch.device) -> tuple[Tensor, Tensor]:
    """The least and the greatest actions, ``[D]`` each."""
    low, high = (constant(edge, torch.get_default_dtype(), device) for edge in box)
    return low, high


@lru_cache(maxsize=64)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The values as a tensor that is made once: never change it."""
    return torch.tensor(values, dtype=dtype, device=device)


class Bins:
    """B equidistant values of each of D action dimensions, the bounds among them.

    Args:
        box: the bounds.
        num: B, at least 2.
    """

    def __init__(self, box: Box, num: int):
        self.box, self.num = box, num

    def values(self, index: Tensor) -> Tensor:
        """The actions ``[..., D]`` of the choices ``index [..., D]``."""
        low, high = bounds(self.box, index.device)
        return low + (high - low) * index / (self.num - 1)

    def index(self, action: Tensor) -> Tensor:
        """The nearest choices ``[..., D]`` of ``action [..., D]``."""
        low, high = bounds(self.box, action.device)
        return ((action - low) / (high - low) * (self.num - 1)).round().long()
