"""Supports as a network reads them: each transition a vector (obs, change of obs, action, reward, terminated), normalised."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from metarl_cli.adaptation.conditioning import join, symlog
from metarl_cli.adaptation.support import RolloutsConfig
from metarl_cli.config.footprint import META
from metarl_cli.interfaces import Params, Transitions
from metarl_cli.spaces import Spec

LARGEST = 10.0  # [deviations] of an entry of a transition: what training never saw must not dominate
LEAST = 1e-6  # deviation below which an entry counts as constant


class Vectors(NamedTuple):
    """The transitions of supports as vectors, normalised; I entries each."""

    entries: Tensor  # [..., T N, I]
    weight: Tensor  # [..., T N, 1]


class Reader:
    """Makes vectors of transitions, each entry divided by its deviation.

    Args:
        spec: the family's.
    """

    def __init__(self, spec: Spec):
        self.spec = spec
        self.size = 2 * math.prod(spec.obs_shape) + spec.actions.size + 2  # entries of a transition

    def start(self, device: torch.device) -> Params:
        """Return the normalisation of a transition's entries before it is measured: none."""
        return {"mean": torch.zeros(self.size, device=device), "scale": torch.ones(self.size, device=device)}

    def blank(self, tasks: int, support: RolloutsConfig) -> Vectors:
        """Return the transitions of the supports of so many tasks without content."""
        shape = tasks, support.rollouts * support.steps
        return Vectors(torch.zeros(*shape, self.size, device=META), torch.zeros(*shape, 1, device=META))

    def measure(self, support: Transitions, before: Params | None = None, share: float = 1.0) -> Params:
        """Measure the mean and the deviation of each entry of transitions, ``[I]`` each.

        Args:
            support: the transitions.
            before: what was measured of others; None: there are none.
            share: of these transitions among all.
        """
        entries = self._entries(support)[support.weight.flatten(-2) > 0]
        mean = entries.mean(0)
        scale = entries.std(0) if len(entries) > 1 else torch.zeros_like(mean)  # as of what is constant
        if before is None:
            return {"mean": mean, "scale": scale}
        both = torch.lerp(before["mean"], mean, share)
        old, new = (s.square() + (m - both).square() for m, s in ((before["mean"], before["scale"]), (mean, scale)))
        return {"mean": both, "scale": torch.lerp(old, new, share).sqrt()}

    def read(self, measured: Params, support: Transitions) -> Vectors:
        """Return transitions ``[..., T, N, ...]`` as a network takes them; nothing of it is learned."""
        scale = torch.where(measured["scale"] > LEAST, measured["scale"], 1.0)
        entries = ((self._entries(support) - measured["mean"]) / scale).clamp(-LARGEST, LARGEST)
        return Vectors(entries, support.weight.flatten(-2)[..., None])

    def _entries(self, support: Transitions) -> Tensor:
        """Return transitions ``[..., T, N, ...]`` as vectors ``[..., T N, I]``."""
        action = self.spec.actions.encode(self.spec.actions.clip(support.action))
        rest = torch.stack([symlog(support.reward), support.terminated.to(support.reward.dtype)], -1)
        return join(support.obs, support.next_obs - support.obs, action, rest).flatten(-3, -2)
