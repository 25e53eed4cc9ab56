"""Stacked weights of many networks: the first axis of every tensor is the network, ``[M, ...]``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metarl_cli.interfaces import Learner, Params


def stack(networks: Sequence[Params]) -> Params:
    """Stack the weights of networks of the same shapes, ``[M, ...]``."""
    return {name: torch.stack([network[name] for network in networks]) for name in networks[0]}


def fresh(learner: Learner, num: int, rng: torch.Generator) -> Params:
    """Draw the initial weights of ``num`` networks, ``[num, ...]``."""
    return stack([learner.init(rng) for _ in range(num)])


def first(rows: dict[str, Tensor]) -> Tensor:
    """Return one of the tensors: all have the same rows and device."""
    return next(iter(rows.values()))


def expand(params: Params, num: int) -> Params:
    """Repeat one network's weights for each of ``num`` tasks, as a view: gradients are summed over the tasks."""
    return {name: value.expand(num, *value.shape) for name, value in params.items()}


def repeat_per_task(params: Params, rows: int) -> Params:
    """Repeat the weights ``[P, ...]`` of individuals for each of their R / P tasks, ``[R, ...]``."""
    copies = rows // len(first(params))
    return params if copies == 1 else {name: value.repeat_interleave(copies, 0) for name, value in params.items()}


def select_rows(params: Params, rows: Tensor | slice) -> Params:
    """Return the weights of the rows that an index, a mask or a slice selects."""
    return {name: value[rows] for name, value in params.items()}


def flatten(params: Params) -> Tensor:
    """Join the weights ``[R, ...]`` of each row to one vector, ``[R, n]``."""
    return torch.cat([value.flatten(1) for value in params.values()], 1)


def unflatten(flat: Tensor, like: Params) -> Params:
    """Return the parts of ``flat [R, n]`` as weights of the names and shapes of ``like``: views, so they change together."""
    parts = torch.split(flat, [value[0].numel() for value in like.values()], 1)
    return {name: part.view(value.shape) for (name, value), part in zip(like.items(), parts, strict=True)}


def broadcast_rows(values: Tensor, target: Tensor) -> Tensor:
    """Reshape one value per row ``[R]`` so that it broadcasts against ``target [R, ...]``."""
    return values.reshape(-1, *[1] * (target.dim() - 1))


def detached(params: Params) -> Params:
    """Return the weights detached from the graph of their gradients."""
    return {name: value.detach() for name, value in params.items()}


def detached_groups(groups: dict[str, Params]) -> dict[str, Params]:
    """Return groups of weights, such as an initialisation and its learning rates, detached."""
    return {group: detached(params) for group, params in groups.items()}


def to_device(value: Any, device: torch.device) -> Any:
    """Move every tensor of a nested state."""
    if isinstance(value, dict):
        return {name: to_device(item, device) for name, item in value.items()}
    if isinstance(value, list):
        return [to_device(item, device) for item in value]
    return value.to(device) if isinstance(value, torch.Tensor) else value


def sound(saved: Tensor, name: str, like: Tensor) -> Tensor:
    """Return saved weights.

    Raises:
        ValueError: if they are of another type than those they take the place of, or one is not finite.
    """
    if saved.dtype != like.dtype:
        raise ValueError(f"the saved weights {name} are of the type {saved.dtype}, not {like.dtype}")
    if not bool(saved.isfinite().all()):
        raise ValueError(f"the saved weights {name} are not finite")
    return saved


@torch.no_grad()
def load_params(params: Params, saved: Params) -> None:
    """Copy ``saved`` weights into ``params`` in place.

    Raises:
        ValueError: if the names, shapes or types differ, or a weight is not finite.
    """
    expected, given = ({k: tuple(v.shape) for k, v in p.items()} for p in (params, saved))
    if expected != given:
        raise ValueError(f"the saved weights {given} do not fit this network {expected}")
    for name, value in params.items():
        value.copy_(sound(saved[name], name, value))


def load_groups(groups: dict[str, Params], saved: dict[str, Params]) -> None:
    """Copy ``saved`` groups of weights into ``groups`` in place; see :func:`load_params` for the errors raised."""
    for group, params in groups.items():
        load_params(params, saved[group])
