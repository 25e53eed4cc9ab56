"""Rules: hand-written policies, which a family makes from a support, and the least squares that they read tasks with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from typing_extensions import override

from metarl_cli.interfaces import Policy, State


class Rule(Policy):
    """A function from the observations ``[M, N, ...]`` of M tasks to the actions."""

    def __init__(self, choose: Callable[[Tensor], Tensor]):
        self.choose = choose

    @override
    def act(self, state: State, obs: Tensor) -> tuple[Tensor, State]:
        return self.choose(obs), state


class Walk(Policy):
    """The straight way to a place in each of M tasks: every entry moves to it as far as actions allow, with some noise.

    The noise is normal and not clipped: the environment clips actions. It is what a demonstrator gets wrong, and what makes
    the likelihood of its actions finite.

    Args:
        target: the places ``[M, D]``.
        stride: the largest move of an entry.
        noise: deviation of the noise, as a share of ``stride``; greedy actions have none.
    """

    stochastic = True

    def __init__(self, target: Tensor, stride: float, noise: float = 0.2):
        self.target, self.stride, self.noise = target, stride, noise

    @override
    def act(self, state: State, obs: Tensor) -> tuple[Tensor, State]:
        way = (self.target[:, None] - obs).clamp(-self.stride, self.stride)
        if state["rng"] is None:
            return way, state
        drawn = torch.randn(way.shape, generator=state["rng"], dtype=way.dtype, device=way.device)
        return way + self.noise * self.stride * drawn, state


def regress(features: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the coefficients ``[M, F]`` of least squares for each task, the smallest ones where several fit equally.

    Args:
        features: ``[M, T, N, F]``.
        target: ``[M, T, N]``.
        weight: 0 for what does not count, ``[M, T, N]``; with nothing that counts, the coefficients are 0.
    """
    rows = (features * weight[..., None]).flatten(1, 2).double()
    values = (target * weight).flatten(1).double()
    gram, moment = rows.mT @ rows, rows.mT @ values[..., None]
    solution: Tensor = torch.linalg.pinv(gram, hermitian=True) @ moment
    return solution[..., 0].to(target.dtype)


def sign(values: Tensor) -> Tensor:
    """Return 1 or -1 for each of ``values``; 1 for 0, of which nothing is known."""
    return torch.where(values < 0, -1.0, 1.0).to(values.dtype)


def located(place: Tensor, distance: Tensor, weight: Tensor) -> Tensor:
    """Return the point ``[M, 2]`` that has these distances ``[M, T, N]`` from ``place [M, T, N, 2]``, by least squares.

    ``|p - g|² = |p|² - 2 p·g + |g|²`` is linear in g and ``|g|²``. The origin, where nothing counts.
    """
    features = torch.cat([-2 * place, torch.ones_like(distance)[..., None]], -1)
    return regress(features, distance.square() - place.square().sum(-1), weight)[:, :2]
