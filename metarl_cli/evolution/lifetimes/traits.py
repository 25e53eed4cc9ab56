"""What lifetimes share: traits as the rows of tensors that learn."""

from __future__ import annotations

import torch
from torch import Tensor

from metarl_cli.interfaces import Params


def wide(params: Params, rows: int) -> Params:
    """The weights ``[R, ...]`` of every learner, from those ``[P, ...]`` of individuals that each have R / P tasks."""
    copies = rows // len(next(iter(params.values())))
    return params if copies == 1 else {name: value.repeat_interleave(copies, 0) for name, value in params.items()}


def rates(base: Tensor, trait: Params | None, gradients: Params, progress: float) -> Params:
    """A learning rate for each gradient ``[R, ...]``, shaped to broadcast.

    Args:
        base: ``[R]``, or ``[1]`` for all.
        trait: of each weight ``[R, 2]`` the logarithm of its rate over the base, and its slope along the lifetime; none: 0.
        gradients: what is to be moved.
        progress: from 0 to 1.
    """
    found = {}
    for name, gradient in gradients.items():
        rate = base
        if trait is not None:
            level, slope = trait[name].unbind(1)
            rate = base * torch.exp(level + slope * (progress - 0.5))
        found[name] = rate.reshape(-1, *[1] * (gradient.dim() - 1))
    return found
