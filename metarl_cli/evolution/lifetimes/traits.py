"""Traits of several lifetimes: the learning rates of R learners."""

from __future__ import annotations

import torch
from torch import Tensor

from metarl_cli.interfaces import Params
from metarl_cli.networks.stacked import broadcast_rows


def rates(base: Tensor, trait: Params | None, gradients: Params, progress: float | Tensor) -> Params:
    """Return a learning rate for each gradient ``[R, ...]``, shaped to broadcast against it.

    Args:
        base: the base rates ``[R]``, or ``[1]`` for all learners.
        trait: log ratio to the base and slope over the lifetime, ``[R, 2]`` for each weight; none: both 0.
        gradients: the gradients of the adapted weights.
        progress: the completed share of the lifetime, from 0 to 1.
    """
    shaped = {}
    for name, gradient in gradients.items():
        rate = base
        if trait is not None:
            level, slope = trait[name].unbind(1)
            rate = base * torch.exp(level + slope * (progress - 0.5))
        shaped[name] = broadcast_rows(rate, gradient)
    return shaped
