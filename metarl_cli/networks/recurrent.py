"""Recurrent memory networks as functions of their weights: GRU and LSTM, in the layout and with the kernels of torch.

GRU: Cho 2014, arXiv:1406.1078, in the form of cuDNN, whose reset gate multiplies the recurrent product. LSTM: Gers 2000,
without peepholes. A sequence is one call: of cuDNN on a GPU; on CPU the LSTM in float32 is oneDNN's, and the GRU is our own,
for which torch has no such kernel (:class:`GRUSequence`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

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
        if x.is_cuda:
            out: Tensor = torch.gru(x, state[0], weights, *options)[0]
            return out
        for i, h in enumerate(state[0]):
            layer = weights[i * len(WEIGHTS) : (i + 1) * len(WEIGHTS)]
            x = GRUSequence.apply(x, h, *layer)  # type: ignore[no-untyped-call]  # torch gives apply no types
        return x


class GRUSequence(torch.autograd.Function):
    """One layer of a GRU along a sequence, once differentiable; autograd alone would record a dozen operations at each step.

        r = sigmoid(p_r)    z = sigmoid(p_z)    m = U_n h + c_n    n = tanh(p_n + r m)    h' = n + z (h - n)
        dp_n = dh' (1 - z) (1 - n²)    dp_z = dh' (h - n) z (1 - z)    dp_r = dp_n m r (1 - r)
        dh = dh' z + U_r^T dp_r + U_z^T dp_z + U_n^T (r dp_n)

    Each gradient of a gate is dh' times a factor that depends on the forward pass alone. So the factors of a block of steps,
    which fits in the cache, are computed at once, and a step backward is little more than a product with dh' and three matrix
    products. Gates are the first axis: those of a step are contiguous. The hyperbolic tangent is 2 sigmoid(2 x) - 1, in half
    of torch.tanh's time: the weights and biases of gate n are doubled first. So p_n and m are twice the above, their gradients
    are half, and the gradients of these weights and biases are doubled in the end.
    """

    BLOCK = 2**16  # entries of one gate in a block of steps

    @staticmethod
    def forward(ctx: Any, x: Tensor, start: Tensor, w: Tensor, u: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """Return the states ``[T, R, H]`` after each step.

        Args:
            ctx: of autograd.
            x: the inputs ``[T, R, I]``.
            start: the state before the first step ``[R, H]``.
            w: weights of the inputs ``[3 H, I]``, gates r, z, n.
            u: weights of the state ``[3 H, H]``.
            b: biases of the inputs ``[3 H]``.
            c: biases of the state ``[3 H]``.
        """
        (steps, rows, _), size = x.shape, start.shape[1]
        w, u, b, c = (torch.cat([part[: 2 * size], 2 * part[2 * size :]]) for part in (w, u, b, c))
        u_r, u_z, u_n = u.view(3, size, size).mT
        inputs = torch.cat([x, x.new_ones(steps, rows, 1)], 2).flatten(0, 1)  # 1, which the biases multiply
        bias = torch.cat([b[: 2 * size] + c[: 2 * size], b[2 * size :]])
        weights = torch.cat([w, bias[:, None]], 1).view(3, size, -1)
        gates = torch.bmm(inputs.expand(3, -1, -1), weights.mT).view(3, steps, rows, size)
        states, m = x.new_empty(steps + 1, rows, size), c[2 * size :].expand(steps, rows, size).contiguous()
        states[0] = start
        at, below = states.unbind(0), x.new_full((), -1)
        per_step = zip(at[:-1], at[1:], *(gate.unbind(0) for gate in gates), gates[:2].unbind(1), m.unbind(0), strict=True)
        for h, after, r, z, n, r_and_z, m_t in per_step:
            r.addmm_(h, u_r)
            z.addmm_(h, u_z)
            m_t.addmm_(h, u_n)
            r_and_z.sigmoid_()
            n.addcmul_(r, m_t).sigmoid_()
            torch.add(below, n, alpha=2, out=n)
            torch.lerp(n, h, z, out=after)
        ctx.save_for_backward(inputs, w, u, states, gates, m)
        return states[1:]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the arguments, from those of the states ``[T, R, H]``."""
        inputs, w, u, states, gates, m = ctx.saved_tensors
        steps, rows, size = m.shape
        u_r, u_z, u_n = u.view(3, size, size)
        dw, du, dc_n = m.new_zeros(3, size, inputs.shape[1]), m.new_zeros(3, size, size), m.new_zeros(size)
        db = m.new_zeros(3, size)  # summed by pairs: a product with ones has four times the rounding error
        dx = m.new_empty(steps * rows, w.shape[1]) if ctx.needs_input_grad[0] else None
        dh = torch.zeros_like(m[0])  # of the state before the steps done so far
        length = min(steps, max(1, GRUSequence.BLOCK // (rows * size)))
        buffers = [m.new_empty(*axes, length, rows, size) for axes in ((3,), (3,), (), ())]
        views = [t.unbind(-3)[::-1] for t in (buffers[0], buffers[1], *buffers[1], buffers[3])]  # of each step, the last first
        for end in range(steps, 0, -length):
            block = slice(max(0, end - length), end)
            (r, z, n), before, now = gates[:, block], states[:-1][block], slice(block.start * rows, end * rows)
            factors, d, dp_n, dh_after = (t[..., : end - block.start, :, :] for t in buffers)
            torch.mul(n, n, out=dp_n).mul_(-0.5).add_(0.5).addcmul_(dp_n, z, value=-1)  # a factor so far, as the others
            torch.mul(dp_n, r, out=factors[2])
            torch.mul(factors[2], m[block], out=factors[0]).addcmul_(factors[0], r, value=-1)
            torch.sub(before, n, out=factors[1]).mul_(z).addcmul_(factors[1], z, value=-1)
            written = (view[length - (end - block.start) :] for view in views)
            for factor, d_t, d_r, d_z, d_n, after, z_t, from_above in zip(
                *written, z.unbind(0)[::-1], gradient[block].unbind(0)[::-1], strict=True
            ):
                torch.add(dh, from_above, out=after)
                torch.mul(factor, after, out=d_t)
                torch.mul(after, z_t, out=dh).addmm_(d_r, u_r).addmm_(d_z, u_z).addmm_(d_n, u_n)
            flat = d.flatten(1, 2)  # gradients of U h + c
            du.baddbmm_(flat.mT, before.flatten(0, 1).expand(3, -1, -1))
            dc_n += flat[2].sum(0)
            torch.mul(dp_n, dh_after, out=d[2])  # now of W x + b
            dw.baddbmm_(flat.mT, inputs[now].expand(3, -1, -1))
            db += flat.sum(1)
            if dx is not None:
                torch.sum(torch.bmm(flat, w.view(3, size, -1)), 0, out=dx[now])
        for of_n in (dw[2], du[2], db[2], dc_n):
            of_n.mul_(2)
        dw = dw[..., :-1]
        dx = None if dx is None else dx.view(steps, rows, -1)
        return dx, dh, dw.reshape(w.shape), du.view_as(u), db.reshape(-1), torch.cat([db[0], db[1], dc_n])


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
