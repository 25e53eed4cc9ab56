"""Recurrent memory networks as functions of their weights: GRU and LSTM.

GRU: Cho 2014, arXiv:1406.1078, in the form of cuDNN, whose reset gate multiplies the recurrent product. LSTM: Gers 2000,
without peepholes.

On CPU a layer is an autograd function of the whole sequence: a backward step is one matrix product and a few element-wise
operations, and the gradients of the weights are products over thousands of rows and steps. On a GPU the layers are cuDNN's.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metarl_cli.interfaces import Params, State
from metarl_cli.networks.memory_config import MemoryConfig
from metarl_cli.networks.products import SEGMENT, outer_products, product, sigmoid_backward, tanh_, tanh_backward

WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _layer(params: Params, index: int) -> list[Tensor]:
    return [params[f"memory.{index}.{name}"] for name in WEIGHTS]


def _init_recurrent(
    config: MemoryConfig, inputs: int, gates: int, keep: int, write: int | None, rng: torch.Generator
) -> Params:
    """Draw orthogonal recurrent weights, gate by gate, Glorot-uniform input weights, and biases for the time scales, else zero.

    Each unit has a time scale of T steps, uniform from 2 to ``timescale``: its gate ``keep`` has the bias log(T - 1), its gate
    ``write`` the negative of it (chrono initialisation, Tallec and Ollivier 2018, arXiv:1804.11188).
    """
    params: Params = {}
    size = config.size
    for i in range(config.layers):
        fan_in = size if i else inputs
        bound = math.sqrt(6 / (fan_in + size))
        params[f"memory.{i}.weight_ih"] = torch.rand(gates * size, fan_in, generator=rng, device=rng.device) * 2 * bound - bound
        blocks = [torch.empty(size, size, device=rng.device) for _ in range(gates)]
        params[f"memory.{i}.weight_hh"] = torch.cat([torch.nn.init.orthogonal_(block, generator=rng) for block in blocks])
        for name in ("bias_ih", "bias_hh"):
            params[f"memory.{i}.{name}"] = torch.zeros(gates * size, device=rng.device)
        steps = 2 + (config.timescale - 2) * torch.rand(size, generator=rng, device=rng.device)
        biases = params[f"memory.{i}.bias_ih"].view(gates, size)
        biases[keep] = (steps - 1).log()
        if write is not None:
            biases[write] = -biases[keep]
    return params


class _WeightGrads:
    """Accumulates the gradients of a layer's weights and inputs, segment by segment from the end."""

    def __init__(self, x: Tensor, w_ih: Tensor, w_hh: Tensor, needs_x: bool):
        self.x, self.across = x.contiguous(), w_ih.t().contiguous()
        self.w_ih, self.w_hh = torch.zeros_like(w_ih), torch.zeros_like(w_hh)
        self.b_ih, self.b_hh = w_ih.new_zeros(len(w_ih)), w_hh.new_zeros(len(w_hh))
        self.d_x = torch.empty_like(self.x) if needs_x else None
        length = max(1, SEGMENT // x.shape[1])
        self.segments = [slice(max(0, end - length), end) for end in range(len(x), 0, -length)]

    def add(self, segment: slice, before: Tensor, d_driven: Tensor, d_gates: Tensor) -> None:
        """Add the gradients from ``d_driven`` (W x + b) and ``d_gates`` (U h + c), [T', R, gates * H]; before is [T', R, H]."""
        self.w_ih += outer_products(d_driven, self.x[segment])
        self.w_hh += outer_products(d_gates, before)
        self.b_hh += d_gates.sum((0, 1))
        self.b_ih += d_driven.sum((0, 1))
        if self.d_x is not None:
            self.d_x[segment] = product(d_driven, self.across)


def _gru(driven: Tensor, h: Tensor, w_hh: Tensor, b_hh: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return h' [R, H] for W x + b [R, 3 H] and h; also r, z and m concatenated [R, 3 H], and n [R, H].

    r = sigmoid(W_r x + U_r h + b_r), z likewise, n = tanh(W_n x + b_n + r * m) with m = U_n h + c_n, h' = n + z * (h - n).
    """
    size = h.shape[1]
    gates = product(h, w_hh, b_hh)
    gates[:, : 2 * size].add_(driven[:, : 2 * size]).sigmoid_()
    r, z, m = gates.chunk(3, 1)
    n = tanh_(torch.addcmul(driven[:, 2 * size :], r, m))
    return torch.lerp(n, h, z, out=out), gates, n


def _lstm(driven: Tensor, h: Tensor, c: Tensor, w_hh: Tensor, b_hh: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return h' and c' [R, H] for W x + b [R, 4 H], h and c; also i, f, g, o concatenated [R, 4 H], and tanh(c') [R, H].

    i, f, o = sigmoid(W x + U h + b), g = tanh(W_g x + U_g h + b_g), c' = f * c + i * g, h' = o * tanh(c').
    """
    size = h.shape[1]
    gates = product(h, w_hh, b_hh).add_(driven)
    i, f, g, o = gates.chunk(4, 1)
    gates[:, : 2 * size].sigmoid_()
    tanh_(g)
    o.sigmoid_()
    after = (f * c).addcmul_(i, g)
    squashed = tanh_(after.clone())
    return o * squashed, after, gates, squashed


class _GRUSequence(torch.autograd.Function):
    """One GRU layer over a sequence: x [T, R, I], h_0 [R, H] -> h_1 ... h_T [T, R, H]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
        states = x.new_empty(len(x) + 1, *h.shape)
        states[0] = h
        ctx.gates = []  # per step [R, 3 H] and [R, H]; for one large tensor the system would map fresh memory at every call
        for t, x_t in enumerate(x):
            _, gates, n = _gru(product(x_t, w_ih, b_ih), states[t], w_hh, b_hh, out=states[t + 1])
            ctx.gates.append((gates, n))
        ctx.save_for_backward(x, states, w_ih, w_hh)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, states, w_ih, w_hh = ctx.saved_tensors
        rows, size = states.shape[1:]
        sums = _WeightGrads(x, w_ih, w_hh, ctx.needs_input_grad[0])
        across = w_hh.t().contiguous()
        d_h = torch.zeros_like(states[0])
        for segment in sums.segments:
            length = segment.stop - segment.start
            d_driven, d_gates = (x.new_empty(length, rows, 3 * size) for _ in range(2))
            for t in reversed(range(segment.start, segment.stop)):
                gates, n = ctx.gates[t]
                r, z, m = gates.chunk(3, 1)
                squashed, d_n = d_driven[t - segment.start].split([2 * size, size], 1)
                both = d_gates[t - segment.start]
                d_r, d_z, d_m = both.chunk(3, 1)
                d_h += grad[t]
                torch.mul(d_h, states[t] - n, out=d_z)
                tanh_backward(torch.addcmul(d_h, d_h, z, value=-1), n, grad_input=d_n)
                torch.mul(d_n, r, out=d_m)
                torch.mul(d_n, m, out=d_r)
                sigmoid_backward(both[:, : 2 * size], gates[:, : 2 * size], grad_input=squashed)
                both[:, : 2 * size] = squashed
                d_h = product(both, across).addcmul_(d_h, z)
            sums.add(segment, states[segment], d_driven, d_gates)
        return sums.d_x, d_h, sums.w_ih, sums.w_hh, sums.b_ih, sums.b_hh


class GRU:
    """Stacked gated recurrent units; state ``{"h": [R, layers, H]}``, weights as in ``torch.nn.GRU``, gates r, z, n.

    Weights are named ``memory.<layer>.{weight_ih,weight_hh,bias_ih,bias_hh}``.
    """

    context: int | None = None

    def __init__(self, config: MemoryConfig, inputs: int):
        self.config, self.inputs, self.size = config, inputs, config.size

    def init(self, rng: torch.Generator) -> Params:
        """Draw the initial weights; ``timescale`` sets the biases of the update gate."""
        return _init_recurrent(self.config, self.inputs, 3, 1, None, rng)

    def start(self, rows: int, device: torch.device | str) -> State:
        """Return a state of zeros for ``rows`` trials."""
        return {"h": torch.zeros(rows, self.config.layers, self.size, device=device)}

    def step(self, params: Params, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the features ``[R, H]`` of inputs ``[R, I]``, and the next state."""
        after = []
        for i in range(self.config.layers):
            h, (w_ih, w_hh, b_ih, b_hh) = state["h"][:, i], _layer(params, i)
            if x.is_cuda or torch.is_grad_enabled():
                x = torch.gru_cell(x, h, w_ih, w_hh, b_ih, b_hh)
            else:
                x, _, _ = _gru(product(x, w_ih, b_ih), h, w_hh, b_hh)
            after.append(x)
        return x, {"h": torch.stack(after, 1)}

    def scan(self, params: Params, x: Tensor, state: State) -> Tensor:
        """Return the features ``[T, R, H]`` of inputs ``[T, R, I]``; once differentiable in ``params``, ``x`` and ``state``."""
        layers = range(self.config.layers)
        if x.is_cuda:
            flat = [weight for i in layers for weight in _layer(params, i)]
            first = state["h"].transpose(0, 1).contiguous()
            out: Tensor = torch.gru(x, first, flat, True, len(layers), 0.0, torch.is_grad_enabled(), False, False)[0]
            return out
        for i in layers:
            x = _GRUSequence.apply(x, state["h"][:, i], *_layer(params, i))  # type: ignore[no-untyped-call]
        return x


class _LSTMSequence(torch.autograd.Function):
    """One LSTM layer over a sequence: x [T, R, I], h_0 and c_0 [R, H] -> h_1 ... h_T [T, R, H]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, c: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
        states = x.new_empty(len(x) + 1, *h.shape)
        states[0] = h
        ctx.gates = []
        for t, x_t in enumerate(x):
            states[t + 1], after, gates, squashed = _lstm(product(x_t, w_ih, b_ih), states[t], c, w_hh, b_hh)
            ctx.gates.append((gates, c, squashed))
            c = after
        ctx.save_for_backward(x, states, w_ih, w_hh)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, states, w_ih, w_hh = ctx.saved_tensors
        rows, size = states.shape[1:]
        sums = _WeightGrads(x, w_ih, w_hh, ctx.needs_input_grad[0])
        across = w_hh.t().contiguous()
        d_h, d_c = torch.zeros_like(states[0]), torch.zeros_like(states[0])
        for segment in sums.segments:
            d_gates = x.new_empty(segment.stop - segment.start, rows, 4 * size)
            for t in reversed(range(segment.start, segment.stop)):
                gates, previous, squashed = ctx.gates[t]
                d_t = d_gates[t - segment.start]
                i, f, g, o = gates.chunk(4, 1)
                d_i, d_f, d_g, d_o = d_t.chunk(4, 1)
                d_h += grad[t]
                d_c += torch.ops.aten.tanh_backward(d_h * o, squashed)
                sigmoid_backward(d_h * squashed, o, grad_input=d_o)
                tanh_backward(d_c * i, g, grad_input=d_g)
                torch.mul(d_c, g, out=d_i)
                torch.mul(d_c, previous, out=d_f)
                sigmoid_backward(d_t[:, : 2 * size], gates[:, : 2 * size], grad_input=d_t[:, : 2 * size])
                d_c *= f
                d_h = product(d_t, across)
            sums.add(segment, states[segment], d_gates, d_gates)
        return sums.d_x, d_h, d_c, sums.w_ih, sums.w_hh, sums.b_ih, sums.b_hh


class LSTM:
    """Stacked long short-term memory; state ``{"h", "c": [R, layers, H]}``, weights as in ``torch.nn.LSTM``, gates i, f, g, o.

    Weights are named ``memory.<layer>.{weight_ih,weight_hh,bias_ih,bias_hh}``.
    """

    context: int | None = None

    def __init__(self, config: MemoryConfig, inputs: int):
        self.config, self.inputs, self.size = config, inputs, config.size

    def init(self, rng: torch.Generator) -> Params:
        """Draw the initial weights; ``timescale`` sets the biases of the forget and the input gate."""
        return _init_recurrent(self.config, self.inputs, 4, 1, 0, rng)

    def start(self, rows: int, device: torch.device | str) -> State:
        """Return a state of zeros for ``rows`` trials."""
        return {name: torch.zeros(rows, self.config.layers, self.size, device=device) for name in ("h", "c")}

    def step(self, params: Params, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the features ``[R, H]`` of inputs ``[R, I]``, and the next state."""
        after = []
        for i in range(self.config.layers):
            h, c, (w_ih, w_hh, b_ih, b_hh) = state["h"][:, i], state["c"][:, i], _layer(params, i)
            if x.is_cuda or torch.is_grad_enabled():
                x, c = torch.lstm_cell(x, [h, c], w_ih, w_hh, b_ih, b_hh)
            else:
                x, c, _, _ = _lstm(product(x, w_ih, b_ih), h, c, w_hh, b_hh)
            after.append((x, c))
        h, c = (torch.stack(tensors, 1) for tensors in zip(*after, strict=True))
        return x, {"h": h, "c": c}

    def scan(self, params: Params, x: Tensor, state: State) -> Tensor:
        """Return the features ``[T, R, H]`` of inputs ``[T, R, I]``; once differentiable in ``params``, ``x`` and ``state``."""
        layers = range(self.config.layers)
        if x.is_cuda:
            flat = [weight for i in layers for weight in _layer(params, i)]
            first = [state[name].transpose(0, 1).contiguous() for name in ("h", "c")]
            out: Tensor = torch.lstm(x, first, flat, True, len(layers), 0.0, torch.is_grad_enabled(), False, False)[0]
            return out
        for i in layers:
            x = _LSTMSequence.apply(x, state["h"][:, i], state["c"][:, i], *_layer(params, i))  # type: ignore[no-untyped-call]
        return x
