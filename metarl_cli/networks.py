"""Q-networks as pure functions of their weights, written for one network; the caller vmaps.

Dueling heads: Wang 2016, arXiv:1511.06581. Layer norm before the activation, as in PQN (Gallici 2024, arXiv:2407.04811).
Context parameters, an input the inner loop can move: CAVIA (Zintgraf 2019, arXiv:1810.03642).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metarl_cli.types import Params, Spec, StrictModel

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "tanh": torch.tanh, "silu": F.silu}


class NetworkConfig(StrictModel):
    """The shape of a Q-network."""

    hidden: list[Annotated[int, Field(gt=0)]] = Field(min_length=1, description="units of each hidden layer")
    activation: Literal["relu", "tanh", "silu"] = Field(description="nonlinearity of the hidden layers")
    layer_norm: bool = Field(description="normalise each hidden layer before its activation")
    dueling: bool = Field(description="separate heads for the value and the advantages")
    context: int = Field(ge=0, description="learned inputs beside the observation, for the inner loop to move (CAVIA)")


class QNetwork:
    """Observation -> one value per action.

    Weights are named ``hidden.<i>.{weight,bias,scale,shift}``, ``head.{weight,bias}``, ``value.{weight,bias}`` (dueling) and
    ``context``.
    """

    def __init__(self, config: NetworkConfig, spec: Spec):
        self.config, self.spec = config, spec
        self.activation = ACTIVATIONS[config.activation]

    def init(self, rng: torch.Generator) -> Params:
        """Fresh weights: He-uniform hidden layers, small heads, zero biases and context."""
        params: Params = {}
        fan_in = math.prod(self.spec.obs_shape) + self.config.context
        if self.config.context:
            params["context"] = torch.zeros(self.config.context, device=rng.device)

        def dense(name: str, rows: int, columns: int, gain: float) -> None:
            bound = gain * math.sqrt(3 / columns)
            weight = torch.rand(rows, columns, generator=rng, device=rng.device) * 2 * bound - bound
            params[f"{name}.weight"], params[f"{name}.bias"] = weight, torch.zeros(rows, device=rng.device)

        for i, units in enumerate(self.config.hidden):
            dense(f"hidden.{i}", units, fan_in, math.sqrt(2))
            if self.config.layer_norm:
                params[f"hidden.{i}.scale"] = torch.ones(units, device=rng.device)
                params[f"hidden.{i}.shift"] = torch.zeros(units, device=rng.device)
            fan_in = units
        dense("head", self.spec.num_actions, fan_in, 0.1)
        if self.config.dueling:
            dense("value", 1, fan_in, 0.1)
        return params

    def __call__(self, params: Params, obs: Tensor) -> Tensor:
        """Values ``[..., A]`` of observations ``[..., *obs_shape]``, for one network."""
        x = obs.flatten(obs.dim() - len(self.spec.obs_shape))
        if self.config.context:
            x = torch.cat([x, params["context"].expand(*x.shape[:-1], -1)], -1)
        for i, units in enumerate(self.config.hidden):
            x = F.linear(x, params[f"hidden.{i}.weight"], params[f"hidden.{i}.bias"])
            if self.config.layer_norm:
                # scale and shift stay outside F.layer_norm: within vmap(grad(...)) the second derivative of its own
                # affine form is wrong (torch 2.13; by a third in a small case), and so the meta-gradient would be
                x = F.layer_norm(x, (units,)) * params[f"hidden.{i}.scale"] + params[f"hidden.{i}.shift"]
            x = self.activation(x)
        q = F.linear(x, params["head.weight"], params["head.bias"])
        if self.config.dueling:
            value = F.linear(x, params["value.weight"], params["value.bias"])
            q = value + q - q.mean(-1, keepdim=True)
        return q


HEADS = ("head", "value")


def in_head(name: str) -> bool:
    """Whether a weight belongs to the network's last layer (what ANIL adapts)."""
    return name.split(".")[0] in HEADS


def load_params(params: Params, saved: Params) -> None:
    """Copy ``saved`` weights into ``params`` in place.

    Raises:
        ValueError: if the names or shapes are not the same.
    """
    mine, theirs = ({k: tuple(v.shape) for k, v in p.items()} for p in (params, saved))
    if mine != theirs:
        raise ValueError(f"the saved weights {theirs} do not fit this network {mine}")
    for name, value in params.items():
        value.copy_(saved[name])
