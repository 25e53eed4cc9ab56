"""Linear layers and heads of one hidden layer, as functions of their weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from metarl_cli.interfaces import Params


def linear(name: str, outputs: int, inputs: int, gain: float, rng: torch.Generator) -> Params:
    """Draw the weights of a linear layer: normal with deviation ``gain / sqrt(inputs)``, zero biases."""
    weight = torch.randn(outputs, inputs, generator=rng, device=rng.device)
    return {f"{name}.weight": gain / math.sqrt(inputs) * weight, f"{name}.bias": torch.zeros(outputs, device=rng.device)}


def head(name: str, outputs: int, hidden: int, inputs: int, gain: float, rng: torch.Generator) -> Params:
    """Draw the weights of a head: a hidden layer ``<name>.hidden``, and an output layer with this ``gain``."""
    return linear(f"{name}.hidden", hidden, inputs, 1.0, rng) | linear(name, outputs, hidden, gain, rng)


def apply_head(params: Params, name: str, x: Tensor) -> Tensor:
    """Return the outputs ``[..., outputs]`` of a head for ``x [..., inputs]``: linear, ReLU, linear."""
    x = F.linear(x, params[f"{name}.hidden.weight"], params[f"{name}.hidden.bias"]).relu_()
    return F.linear(x, params[f"{name}.weight"], params[f"{name}.bias"])
