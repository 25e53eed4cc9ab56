"""Traits as learning rates of the rows that learn."""

from __future__ import annotations

import torch
from torch import Tensor

from metarl_cli.interfaces import Params
from metarl_cli.networks.stacked import broadcast_rows


def rates(base: Tensor, trait: Params | None, gradients: Params, progress: float) -> Params:
    """A learning rate for each gradient ``[R, ...]``, shaped to broadcast.

    Args:
        base: ``[R]``, or ``[1]`` for all.
        trait: of each weight ``[R, 2]`` the logarithm of its rate over the base, and its slope along the lifetime; none: 0.
        gradients: what is to be moved.
        progress: from 0 to 1.
    """
    shaped = {}
    for name, gradient in gradients.items():
        rate = base
        if trait is not None:
            level, slope = trait[name].unbind(1)
            rate = base * torch.exp(level + slope * (progress - 0.5))
        shaped[name] = broadcast_rows(rate, gradient)
    return shaped
