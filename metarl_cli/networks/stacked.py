"""Weights of many networks as one: every tensor leads with an axis of networks, ``[M, ...]``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metarl_cli.interfaces import Learner, Params


def stack(networks: Sequence[Params]) -> Params:
    """Stack the weights of networks of one shape, ``[M, ...]``."""
    return {name: torch.stack([network[name] for network in networks]) for name in networks[0]}


def fresh(learner: Learner, num: int, rng: torch.Generator) -> Params:
    """Draw ``num`` networks, each with weights of its own."""
    return stack([learner.init(rng) for _ in range(num)])


def first(rows: dict[str, Tensor]) -> Tensor:
    """Return one of the tensors, for what all have in common."""
    return next(iter(rows.values()))


def expand(params: Params, num: int) -> Params:
    """Repeat one network's weights for each of ``num`` tasks: a view, so that gradients sum back."""
    return {name: value.expand(num, *value.shape) for name, value in params.items()}


def repeat_per_task(params: Params, rows: int) -> Params:
    """Repeat the weights ``[P, ...]`` of individuals for each of their R / P tasks, ``[R, ...]``."""
    copies = rows // len(first(params))
    return params if copies == 1 else {name: value.repeat_interleave(copies, 0) for name, value in params.items()}


def select_rows(params: Params, rows: Tensor) -> Params:
    """Return the weights of some rows, by number or mask."""
    return {name: value[rows] for name, value in params.items()}


def broadcast_rows(values: Tensor, like: Tensor) -> Tensor:
    """Reshape one value per row ``[R]`` so that it broadcasts against ``like [R, ...]``."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def detached(params: Params) -> Params:
    """Return the weights without their gradients."""
    return {name: value.detach() for name, value in params.items()}


@torch.no_grad()
def load_params(params: Params, saved: Params) -> None:
    """Copy ``saved`` weights into ``params`` in place.

    Raises:
        ValueError: if the names or shapes are not the same.
    """
    expected, given = ({k: tuple(v.shape) for k, v in p.items()} for p in (params, saved))
    if expected != given:
        raise ValueError(f"the saved weights {given} do not fit this network {expected}")
    for name, value in params.items():
        value.copy_(saved[name])
