"""Memory networks as pure functions of their weights: GRU, LSTM and a causal transformer.

What RL² (Duan 2016, arXiv:1611.02779) remembers a trial with. One interface: ``step`` acts, ``scan`` learns from a whole
trial or a segment of one; both give the same features. GRU: Cho 2014, arXiv:1406.1078, in the form of cuDNN, whose reset
gate works on the product. LSTM: Gers 2000, without peepholes. Transformer: Vaswani 2017, arXiv:1706.03762, with layer
norm before each part (Xiong 2020, arXiv:2002.04745) and fixed sinusoidal positions.

On CPU the recurrent cells are autograd functions of the whole sequence: back through time a step is one matrix product and
a few element-wise operations, and the weights' gradients are products over thousands of rows and steps at once. On a GPU
they are cuDNN's.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from metarl_cli.config.base import StrictModel
from metarl_cli.interfaces import Params, State


class MemoryConfig(StrictModel):
    """The shape of a memory."""

    cell: Literal["gru", "lstm", "transformer"] = Field(description="what remembers")
    size: int = Field(gt=0, description="H, units of each layer and features out")
    layers: int = Field(gt=0, description="recurrent layers or transformer blocks, one on another")
    timescale: float = Field(ge=2, description="fresh units remember for 2 to this many steps (gru, lstm); 2: zero biases")
    heads: int = Field(gt=0, description="attention heads of a block (transformer only); divides size")
    context: int = Field(gt=0, description="longest trial that can be remembered [steps] (transformer only)")

    @model_validator(mode="after")
    def _heads_divide_size(self) -> MemoryConfig:
        if self.cell == "transformer" and self.size % self.heads:
            raise ValueError(f"size {self.size} is not a multiple of heads {self.heads}")
        return self


class Memory(Protocol):
    """Inputs and state -> features, step by step or over a sequence; rows R never meet."""

    size: int  # H, features out

    def init(self, rng: torch.Generator) -> Params:
        """Fresh weights, named ``memory.*``."""
        ...

    def start(self, rows: int, device: torch.device | str) -> State:
        """The state before the first step of ``rows`` trials; every tensor leads with [R]."""
        ...

    def step(self, params: Params, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Features ``[R, H]`` of inputs ``[R, I]``, and the state after them."""
        ...

    def scan(self, params: Params, x: Tensor, state: State) -> Tensor:
        """Features ``[T, R, H]`` of inputs ``[T, R, I]`` from ``state`` on; differentiable once in all three."""
        ...


def build_memory(config: MemoryConfig, inputs: int) -> Memory:
    """The memory of ``config`` for inputs of ``inputs`` entries."""
    cells: dict[str, type[GRU] | type[LSTM] | type[Transformer]] = {"gru": GRU, "lstm": LSTM, "transformer": Transformer}
    return cells[config.cell](config, inputs)


WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _layer(params: Params, index: int) -> list[Tensor]:
    return [params[f"memory.{index}.{name}"] for name in WEIGHTS]


def _init_recurrent(
    config: MemoryConfig, inputs: int, gates: int, keep: int, write: int | None, rng: torch.Generator
) -> Params:
    """Orthogonal recurrent weights, gate by gate, Glorot-uniform input weights, zero biases but for the time scale.

    Each unit keeps its memory for T steps, uniform from 2 to ``timescale``: its gate ``keep`` has the bias log(T - 1), the gate
    ``write`` the opposite (chrono initialisation, Tallec and Ollivier 2018, arXiv:1804.11188).
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


# oneDNN's product of float32 matrices, which torch.compile uses too: on AMD's AVX-512 twice as fast as MKL's behind torch.mm
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]
_SEGMENT = 4096  # rows x steps whose gradients are in memory at once: few enough for the cache, enough for a fast product

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.t() + bias``; [..., I], [O, I], [O] -> [..., O]; without a gradient."""
    if _ONEDNN and x.dtype == torch.float32 and not x.is_cuda:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return out
    return F.linear(x, weight, bias)


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """The sum over T and R of the outer products of [T, R, A] and [T, R, B]: [A, B].

    For oneDNN it is the weight gradient of a 1 x 1 convolution, over batches of at least 16: below, torch takes MKL.
    """
    if _ONEDNN and a.dtype == torch.float32 and a[..., 0].numel() % 16 == 0:
        images = [x.view(16, -1, 1, x.shape[-1]).permute(0, 3, 1, 2) for x in (a, b)]
        kernels: Tensor = conv2d_weight(images[1], (a.shape[-1], b.shape[-1], 1, 1), images[0])  # type: ignore[no-untyped-call]
        return kernels[:, :, 0, 0]
    return a.flatten(0, 1).t() @ b.flatten(0, 1)


class _Linear(torch.autograd.Function):
    """``F.linear`` of [R, T, I] by the faster products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        d_x = _product(grad, weight.t().contiguous()) if ctx.needs_input_grad[0] else None
        return d_x, _outer(grad, x.contiguous()), grad.sum((0, 1))


def _tanh_(x: Tensor) -> Tensor:
    """tanh(x) = 2 sigmoid(2 x) - 1 in place: on CPU a fifth of torch.tanh's time, and as exact for what is near 1 in size."""
    return x.mul_(2).sigmoid_().mul_(2).sub_(1)


class _WeightGrads:
    """Sums the gradients of a layer's weights, and keeps those of its inputs, segment by segment from the end."""

    def __init__(self, x: Tensor, w_ih: Tensor, w_hh: Tensor, x_too: bool):
        self.x, self.across = x.contiguous(), w_ih.t().contiguous()
        self.w_ih, self.w_hh = torch.zeros_like(w_ih), torch.zeros_like(w_hh)
        self.b_ih, self.b_hh = w_ih.new_zeros(len(w_ih)), w_hh.new_zeros(len(w_hh))
        self.d_x = torch.empty_like(self.x) if x_too else None
        length = max(1, _SEGMENT // x.shape[1])
        self.segments = [slice(max(0, end - length), end) for end in range(len(x), 0, -length)]

    def add(self, segment: slice, before: Tensor, d_driven: Tensor, d_gates: Tensor) -> None:
        """Add what ``d_driven`` (of W x + b) and ``d_gates`` (of U h + c), [T', R, gates * H], teach; before is [T', R, H]."""
        self.w_ih += _outer(d_driven, self.x[segment])
        self.w_hh += _outer(d_gates, before)
        self.b_hh += d_gates.sum((0, 1))
        self.b_ih += d_driven.sum((0, 1))
        if self.d_x is not None:
            self.d_x[segment] = _product(d_driven, self.across)


def _gru(driven: Tensor, h: Tensor, w_hh: Tensor, b_hh: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """h' [R, H] from W x + b [R, 3 H] and h; with it r, z and m side by side [R, 3 H], and n [R, H].

    r = sigmoid(W_r x + U_r h + b_r), z likewise, n = tanh(W_n x + b_n + r * m) with m = U_n h + c_n, h' = n + z * (h - n).
    """
    size = h.shape[1]
    gates = _product(h, w_hh, b_hh)
    gates[:, : 2 * size].add_(driven[:, : 2 * size]).sigmoid_()
    r, z, m = gates.chunk(3, 1)
    n = _tanh_(torch.addcmul(driven[:, 2 * size :], r, m))
    return torch.lerp(n, h, z, out=out), gates, n


def _lstm(driven: Tensor, h: Tensor, c: Tensor, w_hh: Tensor, b_hh: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h' and c' [R, H] from W x + b [R, 4 H], h and c; with them i, f, g, o side by side [R, 4 H], and tanh(c') [R, H].

    i, f, o = sigmoid(W x + U h + b), g = tanh(W_g x + U_g h + b_g), c' = f * c + i * g, h' = o * tanh(c').
    """
    size = h.shape[1]
    gates = _product(h, w_hh, b_hh).add_(driven)
    i, f, g, o = gates.chunk(4, 1)
    gates[:, : 2 * size].sigmoid_()
    _tanh_(g)
    o.sigmoid_()
    after = (f * c).addcmul_(i, g)
    squashed = _tanh_(after.clone())
    return o * squashed, after, gates, squashed


class _GRUSequence(torch.autograd.Function):
    """One GRU layer over a sequence: x [T, R, I], h_0 [R, H] -> h_1 ... h_T [T, R, H]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
        states = x.new_empty(len(x) + 1, *h.shape)
        states[0] = h
        ctx.gates = []  # [R, 3 H] and [R, H] a step: in one piece for all steps the system would map fresh memory every time
        for t, x_t in enumerate(x):
            _, gates, n = _gru(_product(x_t, w_ih, b_ih), states[t], w_hh, b_hh, out=states[t + 1])
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
                _tanh_backward(torch.addcmul(d_h, d_h, z, value=-1), n, grad_input=d_n)
                torch.mul(d_n, r, out=d_m)
                torch.mul(d_n, m, out=d_r)
                _sigmoid_backward(both[:, : 2 * size], gates[:, : 2 * size], grad_input=squashed)
                both[:, : 2 * size] = squashed
                d_h = _product(both, across).addcmul_(d_h, z)
            sums.add(segment, states[segment], d_driven, d_gates)
        return sums.d_x, d_h, sums.w_ih, sums.w_hh, sums.b_ih, sums.b_hh


class GRU:
    """Stacked gated recurrent units; state ``{"h": [R, layers, H]}``, weights as in ``torch.nn.GRU``, gates r, z, n.

    Weights are named ``memory.<layer>.{weight_ih,weight_hh,bias_ih,bias_hh}``.
    """

    def __init__(self, config: MemoryConfig, inputs: int):
        self.config, self.inputs, self.size = config, inputs, config.size

    def init(self, rng: torch.Generator) -> Params:
        """Orthogonal recurrent weights, Glorot-uniform input weights, the update gate's biases by ``timescale``."""
        return _init_recurrent(self.config, self.inputs, 3, 1, None, rng)

    def start(self, rows: int, device: torch.device | str) -> State:
        """Zeros."""
        return {"h": torch.zeros(rows, self.config.layers, self.size, device=device)}

    def step(self, params: Params, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Features ``[R, H]`` of inputs ``[R, I]``, and the state after them."""
        after = []
        for i in range(self.config.layers):
            h, (w_ih, w_hh, b_ih, b_hh) = state["h"][:, i], _layer(params, i)
            if x.is_cuda or torch.is_grad_enabled():
                x = torch.gru_cell(x, h, w_ih, w_hh, b_ih, b_hh)
            else:
                x, _, _ = _gru(_product(x, w_ih, b_ih), h, w_hh, b_hh)
            after.append(x)
        return x, {"h": torch.stack(after, 1)}

    def scan(self, params: Params, x: Tensor, state: State) -> Tensor:
        """Features ``[T, R, H]`` of inputs ``[T, R, I]`` from ``state`` on; differentiable once in all three."""
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
            states[t + 1], after, gates, squashed = _lstm(_product(x_t, w_ih, b_ih), states[t], c, w_hh, b_hh)
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
                _sigmoid_backward(d_h * squashed, o, grad_input=d_o)
                _tanh_backward(d_c * i, g, grad_input=d_g)
                torch.mul(d_c, g, out=d_i)
                torch.mul(d_c, previous, out=d_f)
                _sigmoid_backward(d_t[:, : 2 * size], gates[:, : 2 * size], grad_input=d_t[:, : 2 * size])
                d_c *= f
                d_h = _product(d_t, across)
            sums.add(segment, states[segment], d_gates, d_gates)
        return sums.d_x, d_h, d_c, sums.w_ih, sums.w_hh, sums.b_ih, sums.b_hh


class LSTM:
    """Stacked long short-term memory; state ``{"h", "c": [R, layers, H]}``, weights as in ``torch.nn.LSTM``, gates i, f, g, o.

    Weights are named ``memory.<layer>.{weight_ih,weight_hh,bias_ih,bias_hh}``.
    """

    def __init__(self, config: MemoryConfig, inputs: int):
        self.config, self.inputs, self.size = config, inputs, config.size

    def init(self, rng: torch.Generator) -> Params:
        """As the GRU's, with the forget and input gates' biases by ``timescale``."""
        return _init_recurrent(self.config, self.inputs, 4, 1, 0, rng)

    def start(self, rows: int, device: torch.device | str) -> State:
        """Zeros."""
        return {name: torch.zeros(rows, self.config.layers, self.size, device=device) for name in ("h", "c")}

    def step(self, params: Params, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Features ``[R, H]`` of inputs ``[R, I]``, and the state after them."""
        after = []
        for i in range(self.config.layers):
            h, c, (w_ih, w_hh, b_ih, b_hh) = state["h"][:, i], state["c"][:, i], _layer(params, i)
            if x.is_cuda or torch.is_grad_enabled():
                x, c = torch.lstm_cell(x, [h, c], w_ih, w_hh, b_ih, b_hh)
            else:
                x, c, _, _ = _lstm(_product(x, w_ih, b_ih), h, c, w_hh, b_hh)
            after.append((x, c))
        h, c = (torch.stack(tensors, 1) for tensors in zip(*after, strict=True))
        return x, {"h": h, "c": c}

    def scan(self, params: Params, x: Tensor, state: State) -> Tensor:
        """Features ``[T, R, H]`` of inputs ``[T, R, I]`` from ``state`` on; differentiable once in all three."""
        layers = range(self.config.layers)
        if x.is_cuda:
            flat = [weight for i in layers for weight in _layer(params, i)]
            first = [state[name].transpose(0, 1).contiguous() for name in ("h", "c")]
            out: Tensor = torch.lstm(x, first, flat, True, len(layers), 0.0, torch.is_grad_enabled(), False, False)[0]
            return out
        for i in layers:
            x = _LSTMSequence.apply(x, state["h"][:, i], state["c"][:, i], *_layer(params, i))  # type: ignore[no-untyped-call]
        return x


class Transformer:
    """Causal self-attention over the trial so far; blocks of attention and of a GELU layer of 4 H units.

    The state is ``{"keys", "values": [R, layers, heads, context, H / heads], "position": [R]}``. ``step`` writes into its
    state's keys and values, at the positions it moves past, instead of copying them: of two states, only go on with the later.

    Weights are named ``memory.embed.{weight,bias}``, ``memory.norm.{weight,bias}`` (after the last block) and
    ``memory.<block>.{norm_attention,attention,merge,norm_mlp,widen,narrow}.{weight,bias}``.
    """

    def __init__(self, config: MemoryConfig, inputs: int):
        self.config, self.inputs, self.size = config, inputs, config.size

    def init(self, rng: torch.Generator) -> Params:
        """Orthogonal weights; those that add to the residual stream scaled by 1 / sqrt(2 layers), as in GPT-2."""
        params: Params = {}
        size = self.size

        def linear(name: str, fan_out: int, fan_in: int, gain: float = 1.0) -> None:
            weight = torch.empty(fan_out, fan_in, device=rng.device)
            params[f"{name}.weight"] = torch.nn.init.orthogonal_(weight, gain, generator=rng)
            params[f"{name}.bias"] = torch.zeros(fan_out, device=rng.device)

        def norm(name: str) -> None:
            params[f"{name}.weight"] = torch.ones(size, device=rng.device)
            params[f"{name}.bias"] = torch.zeros(size, device=rng.device)

        residual = 1 / math.sqrt(2 * self.config.layers)
        linear("memory.embed", size, self.inputs)
        for i in range(self.config.layers):
            norm(f"memory.{i}.norm_attention")
            linear(f"memory.{i}.attention", 3 * size, size)
            linear(f"memory.{i}.merge", size, size, residual)
            norm(f"memory.{i}.norm_mlp")
            linear(f"memory.{i}.widen", 4 * size, size)
            linear(f"memory.{i}.narrow", size, 4 * size, residual)
        norm("memory.norm")
        return params

    def start(self, rows: int, device: torch.device | str) -> State:
        """Nothing remembered."""
        c = self.config
        shape = (rows, c.layers, c.heads, c.context, c.size // c.heads)
        state: State = {name: torch.zeros(shape, device=device) for name in ("keys", "values")}
        return {**state, "position": torch.zeros(rows, dtype=torch.long, device=device)}

    def step(self, params: Params, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Features ``[R, H]`` of inputs ``[R, I]``, and the state after them.

        Raises:
            ValueError: if a trial is longer than ``context``.
        """
        position: Tensor = state["position"]
        last = int(position.max())
        if last >= self.config.context:
            raise ValueError(f"the memory's context of {self.config.context} steps is full: raise memory.context")
        rows = torch.arange(len(position), device=position.device)
        seen = torch.arange(last + 1, device=position.device) <= position[:, None]  # [R, C]

        def attend(block: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = state["keys"][:, block], state["values"][:, block]  # [R, heads, C, H / heads]
            keys[rows, :, position], values[rows, :, position] = key[:, :, 0], value[:, :, 0]
            keys, values = keys[:, :, : last + 1], values[:, :, : last + 1]
            return F.scaled_dot_product_attention(query, keys, values, attn_mask=seen[:, None, None])

        out = self._blocks(params, x[:, None], position[:, None], attend)[:, 0]
        return out, {**state, "position": position + 1}

    def scan(self, params: Params, x: Tensor, state: State) -> Tensor:
        """Features ``[T, R, H]`` of inputs ``[T, R, I]`` from the start of the trials; differentiable in params and x.

        Raises:
            ValueError: if ``state`` is not that of a start, or there are more steps than ``context``.
        """
        if len(x) > self.config.context:
            raise ValueError(f"{len(x)} steps are more than the memory's context of {self.config.context}")
        if state["position"].any():
            raise ValueError("a transformer learns from whole trials, not from segments that go on from a state")

        def attend(block: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)

        position = torch.arange(len(x), device=x.device)
        rows = x.shape[1] if x.is_cuda else max(1, _SEGMENT // len(x))
        parts = torch.split(x.transpose(0, 1), rows)
        return torch.cat([self._blocks(params, part, position, attend) for part in parts]).transpose(0, 1)

    def _blocks(self, params: Params, x: Tensor, position: Tensor, attend: Any) -> Tensor:
        """[R, T, I] at positions [..., T] -> [R, T, H]; ``attend(block, query, key, value)``, [R, heads, T, H / heads] each."""
        heads = self.config.heads

        def linear(name: str, x: Tensor) -> Tensor:
            weight, bias = params[f"memory.{name}.weight"], params[f"memory.{name}.bias"]
            out: Tensor = F.linear(x, weight, bias) if x.is_cuda else _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
            return out

        def norm(name: str, x: Tensor) -> Tensor:
            return F.layer_norm(x, (self.size,), params[f"memory.{name}.weight"], params[f"memory.{name}.bias"])

        x = linear("embed", x) + _sinusoids(position, self.size, x.dtype)
        for i in range(self.config.layers):
            projected = linear(f"{i}.attention", norm(f"{i}.norm_attention", x))
            query, key, value = projected.view(*x.shape[:-1], 3, heads, -1).permute(2, 0, 3, 1, 4)
            mixed = attend(i, query, key, value).transpose(1, 2).flatten(2)
            x = x + linear(f"{i}.merge", mixed)
            x = x + linear(f"{i}.narrow", F.gelu(linear(f"{i}.widen", norm(f"{i}.norm_mlp", x))))
        return norm("norm", x)


def _sinusoids(position: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """[...] -> [..., size]: sines and cosines whose wavelengths grow from 2 pi to 10,000 * 2 pi [steps]."""
    index = torch.arange(size, device=position.device)
    angle = position[..., None] * 10000.0 ** -((index // 2 * 2).to(dtype) / size)
    return torch.where(index % 2 == 0, angle.sin(), angle.cos())
