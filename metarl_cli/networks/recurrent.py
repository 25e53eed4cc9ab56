"""Recurrent memory networks as functions of their weights: GRU and LSTM, in the layout and with the kernels of torch.

GRU: Cho 2014, arXiv:1406.1078, in the form of cuDNN, whose reset gate multiplies the recurrent product. LSTM: Gers 2000,
without peepholes. A sequence is one call: of cuDNN on a GPU; on CPU the LSTM in float32 is oneDNN's.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from metarl_cli.interfaces import Params, State
from metarl_cli.networks.memory_config import MemoryConfig

WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
Options = tuple[bool, int, float, bool, bool, bool]  # biases, layers, dropout, training, two directions, rows first


class Recurrent(ABC):
    """Stacked recurrent layers; weights are named ``memory.<layer>.{weight_ih,weight_hh,bias_ih,bias_hh}``."""

    context: int | None = None
    states: ClassVar[tuple[str, ...]]  # names of the tensors of the state, [R, layers, H] each; the first holds the features
    gates: ClassVar[int]
    keep: ClassVar[int]  # the gate that keeps the state
    write: ClassVar[int | None]  # the gate that writes to it, if that is another one

    def __init__(self, config: MemoryConfig, inputs: int):
        self.config, self.inputs, self.size = config, inputs, config.size

    def init(self, rng: torch.Generator) -> Params:
        """Draw orthogonal recurrent weights, gate by gate, Glorot-uniform input weights, and biases for time scales, else zero.

        Each unit has a time scale of T steps, uniform from 2 to ``timescale``: its gate ``keep`` has the bias log(T - 1), its
        gate ``write`` the negative of it (chrono initialisation, Tallec and Ollivier 2018, arXiv:1804.11188).
        """
        params: Params = {}
        size, gates = self.size, self.gates
        for i in range(self.config.layers):
            fan_in = size if i else self.inputs
            bound = math.sqrt(6 / (fan_in + size))
            uniform = torch.rand(gates * size, fan_in, generator=rng, device=rng.device)
            params[f"memory.{i}.weight_ih"] = uniform * 2 * bound - bound
            blocks = [torch.empty(size, size, device=rng.device) for _ in range(gates)]
            params[f"memory.{i}.weight_hh"] = torch.cat([torch.nn.init.orthogonal_(block, generator=rng) for block in blocks])
            for name in ("bias_ih", "bias_hh"):
                params[f"memory.{i}.{name}"] = torch.zeros(gates * size, device=rng.device)
            steps = 2 + (self.config.timescale - 2) * torch.rand(size, generator=rng, device=rng.device)
            biases = params[f"memory.{i}.bias_ih"].view(gates, size)
            biases[self.keep] = (steps - 1).log()
            if self.write is not None:
                biases[self.write] = -biases[self.keep]
        return params

    def start(self, rows: int, device: torch.device | str) -> State:
        """Return a state of zeros for ``rows`` trials."""
        return {name: torch.zeros(rows, self.config.layers, self.size, device=device) for name in self.states}

    def step(self, params: Params, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the features ``[R, H]`` of inputs ``[R, I]``, and the next state."""
        after = []
        for i in range(self.config.layers):
            after.append(self._cell(x, [state[name][:, i] for name in self.states], _layer(params, i)))
            x = after[-1][0]
        layers = zip(*after, strict=True)
        return x, {name: torch.stack(tensors, 1) for name, tensors in zip(self.states, layers, strict=True)}

    def scan(self, params: Params, x: Tensor, state: State) -> Tensor:
        """Return the features ``[T, R, H]`` of inputs ``[T, R, I]``; once differentiable in ``params``, ``x`` and ``state``."""
        layers = self.config.layers
        first = [state[name].transpose(0, 1).contiguous() for name in self.states]
        weights = [weight for i in range(layers) for weight in _layer(params, i)]
        return self._sequence(x, first, weights, (True, layers, 0.0, torch.is_grad_enabled(), False, False))

    @abstractmethod
    def _cell(self, x: Tensor, state: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
        """Return the next state of one layer, ``[R, H]`` each, for ``x [R, I]``."""

    @abstractmethod
    def _sequence(self, x: Tensor, state: list[Tensor], weights: list[Tensor], options: Options) -> Tensor:
        """Return the features ``[T, R, H]`` of all layers for ``x [T, R, I]`` and a state of ``[layers, R, H]``."""


def _layer(params: Params, index: int) -> list[Tensor]:
    return [params[f"memory.{index}.{name}"] for name in WEIGHTS]


class GRU(Recurrent):
    """Stacked gated recurrent units; weights as in ``torch.nn.GRU``, gates r, z, n.

    r = sigmoid(W_r x + U_r h + b_r), z likewise, n = tanh(W_n x + b_n + r * (U_n h + c_n)), h' = n + z * (h - n).
    """

    states = ("h",)
    gates, keep, write = 3, 1, None

    @override
    def _cell(self, x: Tensor, state: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
        return (torch.gru_cell(x, state[0], *weights),)

    @override
    def _sequence(self, x: Tensor, state: list[Tensor], weights: list[Tensor], options: Options) -> Tensor:
        out: Tensor = torch.gru(x, state[0], weights, *options)[0]
        return out


class LSTM(Recurrent):
    """Stacked long short-term memory; weights as in ``torch.nn.LSTM``, gates i, f, g, o.

    i, f, o = sigmoid(W x + U h + b), g = tanh(W_g x + U_g h + b_g), c' = f * c + i * g, h' = o * tanh(c').
    """

    states = ("h", "c")
    gates, keep, write = 4, 1, 0

    @override
    def _cell(self, x: Tensor, state: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
        after: tuple[Tensor, Tensor] = torch.lstm_cell(x, state, *weights)
        return after

    @override
    def _sequence(self, x: Tensor, state: list[Tensor], weights: list[Tensor], options: Options) -> Tensor:
        out: Tensor = torch.lstm(x, state, weights, *options)[0]
        return out
