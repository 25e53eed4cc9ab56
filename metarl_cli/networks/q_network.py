"""Q-networks as pure functions of their weights, for one network or for many stacked networks.

Dueling heads: Wang 2016, arXiv:1511.06581. Layer norm before the activation, as in PQN (Gallici 2024, arXiv:2407.04811).
Context parameters, inputs that the inner loop adapts: CAVIA (Zintgraf 2019, arXiv:1810.03642).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

from metarl_cli.config.base import StrictModel
from metarl_cli.data import untracked
from metarl_cli.interfaces import Params
from metarl_cli.networks.dense import Layer, affine, dense, layer
from metarl_cli.spaces import constant

SMALL = 0.1  # gain of the output layers: initial values near 0, so that no action is preferred by chance
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "tanh": torch.tanh, "silu": F.silu}


class ConvolutionConfig(StrictModel):
    """A convolutional layer over an image."""

    channels: int = Field(gt=0, description="filters")
    kernel: int = Field(gt=0, description="width and height of a filter [pixels]")
    stride: int = Field(gt=0, description="distance between neighbouring filter positions [pixels]")


class NetworkConfig(StrictModel):
    """The architecture of a Q-network."""

    convolutions: list[ConvolutionConfig] = Field(description="layers over images [channels, height, width]; may be empty")
    hidden: list[Annotated[int, Field(gt=0)]] = Field(min_length=1, description="units of each hidden layer")
    activation: Literal["relu", "tanh", "silu"] = Field(description="nonlinearity of the hidden layers")
    layer_norm: bool = Field(description="normalise each hidden layer before its activation")
    dueling: bool = Field(description="separate heads for the value and the advantages")
    context: int = Field(ge=0, description="learned inputs beside the observation, adapted by the inner loop (CAVIA); 0: none")


class QNetwork:
    """Map from observations to values of shape ``outputs``: one per action, or one per bin of each action dimension.

    Weights are named ``convolution.<i>.{weight,bias}``, ``hidden.<i>.{weight,bias,scale,shift}``, ``head.{weight,bias}``,
    ``value.{weight,bias}`` (dueling) and ``context``.

    The weights may include a structure, masks that select a sub-network: ``structure.width.<i>`` ``[units]`` is 1 for each
    active unit of hidden layer i, ``structure.depth`` ``[layers]`` is 1 for each active layer, ``structure.activation`` is
    one-hot over ``ACTIVATIONS``; all other entries are 0. No gradient changes the masks.

    Raises:
        ValueError: if there are convolutions and the observations are not images, or are too small for the convolutions.
    """

    def __init__(
        self, config: NetworkConfig, obs_shape: tuple[int, ...], outputs: tuple[int, ...], obs_scale: tuple[float, ...] = ()
    ):
        self.config, self.obs_shape, self.outputs, self.obs_scale = config, obs_shape, outputs, obs_scale
        self.activation = ACTIVATIONS[config.activation]
        self.features = math.prod(obs_shape)
        if config.convolutions:
            if len(obs_shape) != 3:
                raise ValueError(f"network.convolutions need images [channels, height, width], not {list(obs_shape)}")
            channels, height, width = obs_shape
            for layer in config.convolutions:
                channels = layer.channels
                height, width = ((size - layer.kernel) // layer.stride + 1 for size in (height, width))
            if min(height, width) < 1:
                raise ValueError(f"images of {list(obs_shape[1:])} are too small for network.convolutions")
            self.features = channels * height * width

    def init(self, rng: torch.Generator) -> Params:
        """Draw the initial weights: He-uniform hidden layers, small heads, zero biases and context."""
        params: Params = {}
        fan_in = self.features + self.config.context
        if self.config.context:
            params["context"] = torch.zeros(self.config.context, device=rng.device)

        def draw(name: str, shape: tuple[int, ...], gain: float) -> None:
            bound = gain * math.sqrt(3 / math.prod(shape[1:]))
            weight = torch.rand(*shape, generator=rng, device=rng.device) * 2 * bound - bound
            params[f"{name}.weight"], params[f"{name}.bias"] = weight, torch.zeros(shape[0], device=rng.device)

        channels = self.obs_shape[0] if self.config.convolutions else 0
        for i, c in enumerate(self.config.convolutions):
            draw(f"convolution.{i}", (c.channels, channels, c.kernel, c.kernel), math.sqrt(2))
            channels = c.channels

        for i, units in enumerate(self.config.hidden):
            draw(f"hidden.{i}", (units, fan_in), math.sqrt(2))
            if self.config.layer_norm:
                params[f"hidden.{i}.scale"] = torch.ones(units, device=rng.device)
                params[f"hidden.{i}.shift"] = torch.zeros(units, device=rng.device)
            fan_in = units
        draw("head", (math.prod(self.outputs), fan_in), SMALL)
        if self.config.dueling:
            draw("value", (1, fan_in), SMALL)
        return params

    def __call__(self, params: Params, obs: Tensor) -> Tensor:
        """Return the values ``[..., *outputs]`` of observations ``[..., *obs_shape]``; bytes are pixels, 0 to 255.

        For R stacked networks ``[R, ...]``, each with its own observations ``[R, ..., *obs_shape]``, a layer is one batched
        product: several times as fast as vmap for small networks.
        """
        if isinstance(params, Packed):
            with untracked():
                return self._forward(params.stacked, obs)
        if params["head.weight"].dim() == 2:
            return self._forward(params, obs)
        if self.config.convolutions:
            return vmap(self._forward)(params, obs)
        return self._forward(self._stacked(params), obs)

    def pack(self, params: Params) -> Params:
        """Return the weights ``[R, ...]`` laid out for many calls without gradients; with convolutions, as they are."""
        return params if self.config.convolutions else Packed(params, self._stacked(params))

    def _stacked(self, params: Params) -> Stacked:
        """Return the weights of R networks as :meth:`_forward` takes them."""
        rows = Stacked((k, v if v.dim() == 3 else v.unsqueeze(1)) for k, v in params.items())
        if not self.config.layer_norm and not self.config.dueling and STRUCTURE[0] not in params:
            names = [*(f"hidden.{i}" for i in range(len(self.config.hidden))), "head"]
            rows.layers = [layer(rows[f"{name}.weight"], rows[f"{name}.bias"]) for name in names]
        return rows

    def _forward(self, params: Params, obs: Tensor) -> Tensor:
        """Return the values of one network, or of R stacked networks."""
        x = obs / 255 if obs.dtype == torch.uint8 else obs.to(torch.get_default_dtype()) if obs.dtype == torch.bool else obs
        if self.obs_scale:
            x = x / constant(self.obs_scale, x.dtype, x.device)
        leading = x.shape[: x.dim() - len(self.obs_shape)]
        if self.config.convolutions:
            x = x.reshape(-1, *self.obs_shape)
            for i, c in enumerate(self.config.convolutions):
                weight, bias = params[f"convolution.{i}.weight"], params[f"convolution.{i}.bias"]
                x = self.activation(F.conv2d(x, weight, bias, stride=c.stride))
        stacked = isinstance(params, Stacked)
        flat = stacked and len(leading) == 2 and len(self.obs_shape) == len(self.outputs) == 1  # [R, N, I] to [R, N, O]
        if not flat:
            x = x.reshape(len(x), -1, self.features) if stacked else x.reshape(*leading, self.features)
        if self.config.context:
            x = torch.cat([x, params["context"].expand(*x.shape[:-1], -1)], -1)
        if isinstance(params, Stacked) and params.layers:
            q = dense(self.config.activation, x, params.layers)
            return q if flat else q.reshape(*leading, *self.outputs)
        for i, units in enumerate(self.config.hidden):
            below = x
            x = _linear(x, params[f"hidden.{i}.weight"], params[f"hidden.{i}.bias"])
            if self.config.layer_norm:
                # scale and shift stay outside F.layer_norm, which takes one of each for all networks
                x = F.layer_norm(x, (units,)) * params[f"hidden.{i}.scale"] + params[f"hidden.{i}.shift"]
            x = self._activate(params, i, x, below)
        q = _linear(x, params["head.weight"], params["head.bias"]).reshape(*leading, *self.outputs)
        if self.config.dueling:
            value = _linear(x, params["value.weight"], params["value.bias"])
            value = value.reshape(*leading, *[1] * len(self.outputs))
            q = value + q - q.mean(-1, keepdim=True)
        return q

    def _activate(self, params: Params, layer: int, x: Tensor, below: Tensor) -> Tensor:
        """Apply the activation to the pre-activations ``x``; an absent layer is the identity on its inputs ``below``."""
        if STRUCTURE[0] not in params:
            return self.activation(x)
        depth, activation = (params[name] for name in STRUCTURE)
        x = sum(share * f(x) for share, f in zip(torch.split(activation, 1, -1), ACTIVATIONS.values(), strict=True))  # type: ignore[assignment]
        x = x * params[f"{STRUCTURE_WIDTH}{layer}"]
        return x if layer == 0 else torch.where(depth[..., layer, None] > 0, x, below)


class Stacked(dict[str, Tensor]):
    """The weights of R networks, whose biases have the leading axes ``[R, 1]``."""

    layers: Sequence[Layer] = ()  # none where a network has more than these


class Packed(dict[str, Tensor]):
    """The weights ``[R, ...]`` of R networks with views of them as :class:`QNetwork` computes; views see writes in place alone.

    Args:
        params: the weights.
        stacked: the views.
    """

    def __init__(self, params: Params, stacked: Stacked):
        super().__init__(params)
        self.stacked = stacked


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply weights ``[O, I]`` to ``x [..., I]``; or ``[R, O, I]``, with biases ``[R, 1, O]``, to ``x [R, N, I]``."""
    return F.linear(x, weight, bias) if weight.dim() == 2 else affine(x, weight, bias)


STRUCTURE, STRUCTURE_WIDTH = ("structure.depth", "structure.activation"), "structure.width."
HEADS = ("head", "value")


def in_structure(name: str) -> bool:
    """Return whether an entry of the weights is a mask of the structure, which is not learned."""
    return name.startswith("structure.")


def in_head(name: str) -> bool:
    """Return whether a weight belongs to the network's last layer, which ANIL adapts."""
    return name.split(".")[0] in HEADS


def structured(params: Params, structure: Params) -> Params:
    """Restrict fresh networks ``[R, ...]`` to a structure; weights are scaled up where a layer has fewer inputs."""
    fitted = params | structure
    for i, units in _widths(structure):
        if (above := f"hidden.{i + 1}.weight") in fitted:
            fitted[above] = fitted[above] * (units.shape[1] / units.sum(1)).sqrt()[:, None, None]
    return fitted


def grow(params: Params, structure: Params) -> Params:
    """Change the structure of networks ``[R, ...]``; growth preserves their function (Net2Net: Chen 2016, arXiv:1511.05641).

    New units get zero outgoing weights; new layers are the identity, up to their activation.
    """
    grown = params | structure
    depth, before = structure[STRUCTURE[0]], params[STRUCTURE[0]]
    active = None  # [R, units] units whose output layer i passed on before; an absent layer passed on those below
    for i, units in _widths(structure):
        own = params[f"{STRUCTURE_WIDTH}{i}"]
        active = own if active is None else torch.where(before[:, i, None] > 0, own, active)
        new = units * (1 - active)
        if (above := f"hidden.{i + 1}.weight") in grown:
            grown[above] = grown[above] * (1 - new[:, None])
        last = depth[:, i] * (1 - depth[:, i + 1] if i + 1 < depth.shape[1] else 1)  # [R] 1 where the heads read layer i
        for name in (f"{head}.weight" for head in HEADS if f"{head}.weight" in grown):
            grown[name] = grown[name] * (1 - new * last[:, None])[:, None]
        if i > 0:
            added = (depth[:, i] > before[:, i])[:, None]
            eye = torch.eye(units.shape[1], device=units.device)
            grown[f"hidden.{i}.weight"] = torch.where(added[..., None], eye, grown[f"hidden.{i}.weight"])
            grown[f"hidden.{i}.bias"] = torch.where(added, 0.0, grown[f"hidden.{i}.bias"])
    return grown


def _widths(structure: Params) -> list[tuple[int, Tensor]]:
    """Return the number of each hidden layer, with its mask of active units ``[R, units]``."""
    return [(i, structure[f"{STRUCTURE_WIDTH}{i}"]) for i in range(structure[STRUCTURE[0]].shape[1])]
