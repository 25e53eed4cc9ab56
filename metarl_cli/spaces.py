"""Action spaces, and what a learner must know of a family of tasks.

:class:`Bins` lets a learner that chooses among actions act in a continuous space by factorised discretisation (Seyde 2022,
arXiv:2210.12566): each of D dimensions has B bins at equal distances, from bound to bound, and is chosen on its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot


class ActionSpace(ABC):
    """The actions of a family."""

    @property
    @abstractmethod
    def size(self) -> int:
        """The number of entries of an encoded action."""

    @abstractmethod
    def random(self, obs: Tensor, rng: torch.Generator | None) -> Tensor:
        """Draw uniformly random actions for ``obs [M, N, ...]``."""

    @abstractmethod
    def encode(self, action: Tensor) -> Tensor:
        """Encode actions as vectors ``[..., size]`` of about unit size, as a network takes them."""

    def legal(self, obs: Tensor) -> Tensor | None:
        """Return which actions ``[..., n]`` are legal for ``obs``; None where all of them are, always."""
        return None


@dataclass(frozen=True)
class Discrete(ActionSpace):
    """The whole numbers from 0 to n - 1; actions are ``[M, N]``.

    Attributes:
        n: the number of actions.
        masked: whether the last ``n`` entries of an observation are the action mask, 1 for each legal action and else 0.
    """

    n: int
    masked: bool = False

    @property
    def size(self) -> int:
        return self.n

    def random(self, obs: Tensor, rng: torch.Generator | None) -> Tensor:
        """Draw uniformly random legal actions ``[M, N]`` for ``obs [M, N, ...]``."""
        if self.masked:
            mask = obs[..., -self.n :].flatten(0, 1).float()
            return torch.multinomial(mask, 1, generator=rng).reshape(obs.shape[:2])
        return torch.randint(self.n, obs.shape[:2], generator=rng, device=obs.device)

    def encode(self, action: Tensor) -> Tensor:
        """Encode actions as one-hot vectors ``[..., n]``."""
        return one_hot(action, self.n).to(torch.get_default_dtype())

    def legal(self, obs: Tensor) -> Tensor | None:
        return obs[..., -self.n :] > 0 if self.masked else None


@dataclass(frozen=True)
class Continuous(ActionSpace):
    """Vectors of D bounded numbers; actions are ``[M, N, D]``.

    Attributes:
        low: the lower bounds ``[D]``.
        high: the upper bounds ``[D]``.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def size(self) -> int:
        return len(self.low)

    def bounds(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the lower and the upper bounds, ``[D]`` each."""
        dtype = torch.get_default_dtype()
        return constant(self.low, dtype, device), constant(self.high, dtype, device)

    def random(self, obs: Tensor, rng: torch.Generator | None) -> Tensor:
        """Draw uniformly random actions ``[M, N, D]`` for ``obs [M, N, ...]``."""
        low, high = self.bounds(obs.device)
        return low + (high - low) * torch.rand(*obs.shape[:2], len(low), generator=rng, device=obs.device, dtype=low.dtype)

    def encode(self, action: Tensor) -> Tensor:
        """Scale actions ``[..., D]`` so that their bounds are -1 and 1."""
        low, high = self.bounds(action.device)
        return 2 * (action - low) / (high - low) - 1

    def decode(self, x: Tensor) -> Tensor:
        """Scale ``x [..., D]``, clipped to [-1, 1], to the bounds."""
        low, high = self.bounds(x.device)
        return low + (high - low) * (x.clamp(-1, 1) + 1) / 2


class Spec(NamedTuple):
    """The interface between the environments of a family and a learner."""

    obs_shape: tuple[int, ...]
    actions: ActionSpace
    horizon: int  # [steps] of an episode, the longest where tasks differ
    obs_scale: tuple[float, ...] = ()  # [O] the usual size of each entry, for a network to divide by; none: about 1 already

    # The three properties below go with the merge that moves learners, networks and algorithms to ``actions``.

    @property
    def num_actions(self) -> int:
        return self.actions.n if isinstance(self.actions, Discrete) else 0

    @property
    def box(self) -> Continuous | None:
        return self.actions if isinstance(self.actions, Continuous) else None

    @property
    def masked(self) -> bool:
        return isinstance(self.actions, Discrete) and self.actions.masked


def random_actions(spec: Spec, obs: Tensor, rng: torch.Generator | None) -> Tensor:
    """Draw uniformly random actions for ``obs [M, N, ...]``; goes with the properties of :class:`Spec`."""
    return spec.actions.random(obs, rng)


def bounds(box: Continuous, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the lower and the upper bounds, ``[D]`` each; goes with the properties of :class:`Spec`."""
    return box.bounds(device)


@lru_cache(maxsize=64)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the values as a cached tensor, which callers must not change in place."""
    return torch.tensor(values, dtype=dtype, device=device)


class Bins:
    """B equidistant values of each of D action dimensions, the bounds among them.

    Args:
        actions: the continuous action space.
        num: B, at least 2.
    """

    def __init__(self, actions: Continuous, num: int):
        self.actions, self.num = actions, num

    def values(self, index: Tensor) -> Tensor:
        """Return the actions ``[..., D]`` of the bins ``index [..., D]``."""
        low, high = self.actions.bounds(index.device)
        return low + (high - low) * index / (self.num - 1)

    def index(self, action: Tensor) -> Tensor:
        """Return the nearest bins ``[..., D]`` of ``action [..., D]``."""
        low, high = self.actions.bounds(action.device)
        return ((action - low) / (high - low) * (self.num - 1)).round().long()
