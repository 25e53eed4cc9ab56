"""Linear layers and heads of one hidden layer, as functions of their weights."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from metarl_cli.interfaces import Params


def linear(name: str, outputs: int, inputs: int, gain: float, rng: torch.Generator) -> Params:
    """Draw the weights of a linear layer: normal with deviation ``gain / sqrt(inputs)``, zero biases."""
    weight = torch.randn(outputs, inputs, generator=rng, device=rng.device)
    return {f"{name}.weight": gain / math.sqrt(inputs) * weight, f"{name}.bias": torch.zeros(outputs, device=rng.device)}


def layers(name: str, sizes: list[int], rng: torch.Generator) -> Params:
    """Draw hidden layers ``<name>.0``, ``<name>.1``, ... of these sizes, the inputs' first, with He's gain."""
    params: Params = {}
    for i, (inputs, units) in enumerate(pairwise(sizes)):
        params |= linear(f"{name}.{i}", units, inputs, math.sqrt(2), rng)
    return params


def head(name: str, outputs: int, hidden: int, inputs: int, gain: float, rng: torch.Generator) -> Params:
    """Draw the weights of a head: a hidden layer ``<name>.hidden``, and an output layer with this ``gain``."""
    return linear(f"{name}.hidden", hidden, inputs, 1.0, rng) | linear(name, outputs, hidden, gain, rng)


def apply_head(params: Params, name: str, features: Tensor, others: Tensor) -> Tensor:
    """Return the outputs ``[..., outputs]`` of a head: linear, ReLU, linear.

    Args:
        params: with the head's weights.
        name: of the head.
        features: of a network ``[..., F]``.
        others: further inputs ``[..., I]``, which follow the features in the weights. A product of their own saves joining
            both, and the gradient of what needs none.
    """
    weight, size = params[f"{name}.hidden.weight"], features.shape[-1]
    x = F.linear(others.flatten(0, -2), weight[:, size:], params[f"{name}.hidden.bias"])
    x = x.addmm_(features.flatten(0, -2), weight[:, :size].t()).relu_()  # in place, and of no view: nothing is copied
    outputs = F.linear(x, params[f"{name}.weight"], params[f"{name}.bias"])
    return outputs.view(*features.shape[:-1], outputs.shape[-1])
