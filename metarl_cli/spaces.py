"""Action spaces: what a family's actions are, distributions over them, what a learner chooses among; the layers of its network.

Factorised discretisation (Seyde 2022, arXiv:2210.12566): each of D dimensions of a vector has B bins at equal distances,
from bound to bound, and is chosen on its own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override


class Distribution(Protocol):
    """What a policy may do in each of some situations ``[...]``: a distribution over the family's actions."""

    def sample(self, rng: torch.Generator) -> Tensor:
        """A random action each."""
        ...

    def mode(self) -> Tensor:
        """The likeliest action each."""
        ...

    def log_prob(self, action: Tensor) -> Tensor:
        """The logarithm ``[...]`` of the probability (density) of each action."""
        ...

    def entropy(self) -> Tensor:
        """The entropy ``[...]`` [nats]."""
        ...

    def numbers(self) -> dict[str, Tensor]:
        """What determines it, by name."""
        ...


class ActionSpace(ABC):
    """What an action is."""

    @property
    @abstractmethod
    def size(self) -> int:
        """The entries of an encoded action."""

    @abstractmethod
    def random(self, obs: Tensor, rng: torch.Generator) -> Tensor:
        """Draw uniformly random actions for ``obs [M, N, ...]``, of those that can be taken."""

    @abstractmethod
    def encode(self, action: Tensor) -> Tensor:
        """Encode actions ``[..., size]`` for a network: one-hot, or with the bounds at -1 and 1."""

    def legal(self, obs: Tensor) -> Tensor | None:
        """Return which actions can be taken, ``[..., size]``; None where all can."""
        return None

    def clip(self, action: Tensor) -> Tensor:
        """Move actions into the bounds, where there are some."""
        return action

    @abstractmethod
    def choices(self, bins: int) -> Choices:
        """Return the actions that a learner of action values chooses among: all, or a grid of ``bins`` per dimension."""


class Choices(ActionSpace):
    """Actions that are numbered, as a whole or in each dimension."""

    @property
    @abstractmethod
    def value_shape(self) -> tuple[int, ...]:
        """The shape of the values of all choices: ``(A,)``, or ``(D, bins)``."""

    def value(self, values: Tensor, choice: Tensor) -> Tensor:
        """Return the value ``[...]`` of each choice, from ``values [..., *value_shape]``.

        A vector's value is the mean over its dimensions (decoupled Q, Seyde 2022, arXiv:2210.12566).
        """
        chosen = values.gather(-1, choice[..., None])[..., 0]
        return chosen.mean(-1) if len(self.value_shape) > 1 else chosen

    @override
    def choices(self, bins: int) -> Choices:
        return self

    @abstractmethod
    def decode(self, index: Tensor) -> Tensor:
        """Return the actions of the choices ``index``."""

    @abstractmethod
    def index(self, action: Tensor) -> Tensor:
        """Return the choices of actions."""


@dataclass(frozen=True)
class Discrete(Choices):
    """A whole number below ``n``, ``[M, N]``.

    With ``masked``, the last ``n`` entries of an observation are 1 for each action that can be taken, else 0.
    """

    n: int
    masked: bool = False

    @property
    @override
    def size(self) -> int:
        return self.n

    @override
    def random(self, obs: Tensor, rng: torch.Generator) -> Tensor:
        if self.masked:
            chance = obs[..., -self.n :].flatten(0, 1).float()
            return torch.multinomial(chance, 1, generator=rng).reshape(obs.shape[:2])
        return torch.randint(self.n, obs.shape[:2], generator=rng, device=obs.device)

    @override
    def encode(self, action: Tensor) -> Tensor:
        return (action[..., None] == torch.arange(self.n, device=action.device)).to(torch.get_default_dtype())

    @override
    def legal(self, obs: Tensor) -> Tensor | None:
        return obs[..., -self.n :] > 0 if self.masked else None

    @property
    @override
    def value_shape(self) -> tuple[int, ...]:
        return (self.n,)

    def decode(self, index: Tensor) -> Tensor:
        """Return the actions of choices: themselves."""
        return index

    def index(self, action: Tensor) -> Tensor:
        """Return the choices of actions: themselves."""
        return action


@dataclass(frozen=True)
class Continuous(ActionSpace):
    """A vector of D entries within bounds, ``[M, N, D]``."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    @override
    def size(self) -> int:
        return len(self.low)

    def bounds(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the least and the greatest actions, ``[D]`` each; within the true bounds where they have to be rounded."""
        dtype = torch.get_default_dtype()
        return inside(self.low, math.inf, dtype, device), inside(self.high, -math.inf, dtype, device)

    @override
    def random(self, obs: Tensor, rng: torch.Generator) -> Tensor:
        low, high = self.bounds(obs.device)
        return low + (high - low) * torch.rand(*obs.shape[:2], len(low), generator=rng, device=obs.device, dtype=low.dtype)

    @override
    def encode(self, action: Tensor) -> Tensor:
        low, high = self.bounds(action.device)
        return 2 * (action - low) / (high - low) - 1

    def decode(self, x: Tensor) -> Tensor:
        """Return the actions that :meth:`encode` takes to ``x``; beyond the bounds where ``x`` is beyond -1 and 1."""
        low, high = self.bounds(x.device)
        return low + (high - low) * (x + 1) / 2

    @override
    def clip(self, action: Tensor) -> Tensor:
        return action.clamp(*self.bounds(action.device))

    @override
    def choices(self, bins: int) -> Bins:
        return Bins(self, bins)


@dataclass(frozen=True)
class Bins(Choices):
    """A grid of actions within bounds: ``num`` equidistant values of each of D dimensions, the bounds among them."""

    actions: Continuous
    num: int  # at least 2

    @property
    @override
    def value_shape(self) -> tuple[int, ...]:
        return (self.actions.size, self.num)

    @property
    @override
    def size(self) -> int:
        return self.actions.size

    @override
    def random(self, obs: Tensor, rng: torch.Generator) -> Tensor:
        return self.decode(torch.randint(self.num, (*obs.shape[:2], self.size), generator=rng, device=obs.device))

    @override
    def encode(self, action: Tensor) -> Tensor:
        return self.actions.encode(action)

    def decode(self, index: Tensor) -> Tensor:
        """Return the actions ``[..., D]`` of the bins ``index [..., D]``."""
        low, high = self.actions.bounds(index.device)
        return low + (high - low) * index / (self.num - 1)

    def index(self, action: Tensor) -> Tensor:
        """Return the nearest bins ``[..., D]`` of ``action [..., D]``."""
        low, high = self.actions.bounds(action.device)
        return ((action - low) / (high - low) * (self.num - 1)).round().long()


@lru_cache(maxsize=64)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the values as a tensor that is made once: never change it."""
    return torch.tensor(values, dtype=dtype, device=device)


@lru_cache(maxsize=64)
def inside(bound: tuple[float, ...], inwards: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a bound as a tensor that is made once, rounded towards ``inwards`` (plus or minus infinity): never change it."""
    exact = torch.tensor(bound, dtype=torch.float64)
    rounded = exact.to(dtype)
    beyond = rounded.double() < exact if inwards > 0 else rounded.double() > exact
    return torch.where(beyond, torch.nextafter(rounded, torch.full_like(rounded, inwards)), rounded).to(device)


class Spec(NamedTuple):
    """The interface between the environments of a family and a learner."""

    obs_shape: tuple[int, ...]
    actions: Discrete | Continuous
    horizon: int  # [steps] of an episode, the longest where tasks differ
    obs_scale: tuple[float, ...] = ()  # [O] the usual size of each entry, for a network to divide by; none: about 1 already
    pixels: bool = False  # whether it is an image of bytes or booleans, and not numbers of the default type

    @property
    def bytes_per_obs(self) -> int:
        """The bytes of an observation."""
        return math.prod(self.obs_shape) * (1 if self.pixels else torch.get_default_dtype().itemsize)

    @property
    def bytes_per_transition(self) -> int:
        """The bytes of a transition: two observations, an action, the reward, two ends, the weight, and padding."""
        number = torch.get_default_dtype().itemsize
        action, widest = (number * self.actions.size, number) if isinstance(self.actions, Continuous) else (8, 8)
        used = 2 * self.bytes_per_obs + action + 2 * number + 2
        return -(-used // widest) * widest

    def observation(self, array: np.ndarray, device: torch.device) -> Tensor:
        """Return observations as a tensor: images in bytes or booleans as they are, numbers in the default type."""
        keep = self.pixels and array.dtype in (bool, np.uint8)
        return torch.as_tensor(array, dtype=None if keep else torch.get_default_dtype(), device=device)


class Layers(NamedTuple):
    """The hidden layers of a network whose structure can vary."""

    widths: tuple[int, ...]  # units of each
    activation: str
    normalised: bool  # whether they have layer norm
