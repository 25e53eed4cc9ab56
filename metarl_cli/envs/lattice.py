"""The best return where moves add up: the places that can be reached form a lattice, on which planning is exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

from metarl_cli.interfaces import Task, num_tasks

LONGEST = 100  # steps that are planned: the time grows with their cube
PLACES = 2**20  # of all tasks that are planned together: about 50 MiB


def places(horizon: int, like: Tensor) -> Tensor:
    """Return the numbers of moves ``[S, S, 2]`` along both axes that H steps can make, S = 2H + 1; the start is the middle."""
    along = torch.arange(-horizon, horizon + 1, dtype=like.dtype, device=like.device)
    return torch.stack(torch.meshgrid(along, along, indexing="ij"), -1)


def best_return(reward: Tensor, moves: Sequence[tuple[int, int]], horizon: int) -> Tensor:
    """Compute the greatest undiscounted return ``[M]`` of H steps from the middle, backwards from the last (Bellman 1957).

    ``V[H] = 0`` and ``V[t](place) = max over moves of R(place + move) + V[t+1](place + move)``. Rolling wraps around the edges,
    where V is wrong; no way from the middle gets there, as the error moves inwards by one place a step and the ways do so too.

    Args:
        reward: of arriving at each of :func:`places`, ``[M, S, S]``.
        moves: the numbers of places that each action moves along both axes, -1 to 1.
        horizon: H.
    """
    value = torch.zeros_like(reward)
    for _ in range(horizon):
        worth = reward + value
        value = reduce(torch.maximum, (worth.roll((-x, -y), (1, 2)) for x, y in moves))  # a few copies, not one a move
    return value[:, horizon, horizon]


def in_parts(best: Callable[[Task], Tensor], task: Task, horizon: int) -> Tensor | None:
    """Compute ``best [M]`` of M tasks, a part of them at a time, so that memory is bounded; None beyond ``LONGEST`` steps."""
    if horizon > LONGEST:
        return None
    size = max(PLACES // (2 * horizon + 1) ** 2, 1)
    parts = [{name: value[i : i + size] for name, value in task.items()} for i in range(0, num_tasks(task), size)]
    return torch.cat([best(part) for part in parts])
