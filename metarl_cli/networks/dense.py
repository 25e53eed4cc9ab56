"""Dense layers of R stacked networks, whose first and second derivatives are written by hand.

    forward    a_0 = x    z_i = a_{i-1} W_i^T + b_i    a_i = f(z_i)    y = z_n                         i = 1 .. n
    gradient   d_n = dy   dW_i = d_i^T a_{i-1}   db_i = sum of d_i over rows   e_{i-1} = d_i W_i   d_i = e_i f'(z_i)   dx = e_0
    and its gradient, for P_i, p_i and E_0 before dW_i, db_i and dx:
               D_i = a_{i-1} P_i^T + p_i + E_{i-1} W_i^T       E_i = D_i f'(z_i)                       of d_i and of e_i
               Z_i = D_i e_i f''(z_i) + A_i f'(z_i)            A_{i-1} = d_i P_i + Z_i W_i             of z_i and of a_{i-1}
               d_i^T E_{i-1} + Z_i^T a_{i-1} of W_i            sum of Z_i over rows of b_i

Autograd would make some hundred operations of a second-order gradient, in which products have their short side last and
gradients lie transposed in memory: both cost several times as much. Third derivatives are autograd's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

MANY = 512  # rows of all networks together, from which on this is faster: with fewer, calls in Python cost more than it saves
NARROW = 16  # outputs; with fewer, a product of many rows is faster if they come first


class Activation(NamedTuple):
    """A nonlinearity f with its derivatives."""

    value: Callable[[Tensor], Tensor]  # z -> f(z)
    back: Callable[[Tensor, Tensor, Tensor], Tensor]  # e, z, f(z) -> e f'(z)
    derivatives: Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]  # z, f(z) -> f'(z), f''(z); none: zero


def _of_silu(z: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(z)
    return torch.addcmul(s, a, 1 - s), torch.ops.aten.sigmoid_backward(torch.sub(z, a, alpha=2).add_(2), s)


def _of_tanh(z: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    slope = 1 - a * a
    return slope, -2 * a * slope


ACTIVATIONS = {
    "silu": Activation(F.silu, lambda e, z, a: torch.ops.aten.silu_backward(e, z), _of_silu),
    "tanh": Activation(torch.tanh, lambda e, z, a: torch.ops.aten.tanh_backward(e, a), _of_tanh),
    "relu": Activation(F.relu, lambda e, z, a: e * (a > 0), lambda z, a: ((a > 0).to(a.dtype), None)),
}


class Layer(NamedTuple):
    """A layer of R networks."""

    weight: Tensor  # [R, O, I]
    bias: Tensor  # [R, 1, O]
    turned: Tensor  # [R, I, O], the weights as a product with inputs on their left takes them


def layer(weight: Tensor, bias: Tensor) -> Layer:
    """Return the layer of these weights ``[R, O, I]`` and biases ``[R, 1, O]``."""
    return Layer(weight, bias, weight.mT)


def dense(activation: str, x: Tensor, layers: Sequence[Layer]) -> Tensor:
    """Return the outputs ``[R, N, O]`` of R networks for their inputs ``[R, N, I]``.

    Args:
        activation: its name, of all layers but the last.
        x: the inputs.
        layers: of the networks.
    """
    if torch.is_grad_enabled() and _many(x):
        # torch gives apply no types, here and below
        out: Tensor = Dense.apply(activation, x, *(tensor for layer in layers for tensor in layer[:2]))  # type: ignore[no-untyped-call]
        return out
    return plain(activation, x, layers)


def plain(activation: str, x: Tensor, layers: Sequence[Layer]) -> Tensor:
    """Return what :func:`dense` does, with derivatives by autograd."""
    many, value = _many(x), ACTIVATIONS[activation].value
    for each in layers[:-1]:
        x = value(_affine(x, each, many))
    return _affine(x, layers[-1], many)


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return ``x @ weight.mT + bias``, ``[R, N, I], [R, O, I], [R, 1, O] -> [R, N, O]``."""
    return _affine(x, layer(weight, bias), _many(x))


def _affine(x: Tensor, layer: Layer, many: bool) -> Tensor:
    """Return what :func:`affine` does, for ``many`` rows or few."""
    if many and layer.weight.shape[1] < NARROW and x.shape[1] > 1:
        return torch.baddbmm(layer.bias.mT, layer.weight, x.mT).mT.contiguous()
    return torch.baddbmm(layer.bias, x, layer.turned)


def _many(x: Tensor) -> bool:
    """Whether so many rows ``[R, N, I]`` pay for the calls; an exported function takes any number of them in one way."""
    return not torch.compiler.is_exporting() and x.shape[0] * x.shape[1] >= MANY


def _pairs(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a.mT @ b``, the sums over rows of the products of ``[R, N, A]`` and ``[R, N, B]``: ``[R, A, B]``."""
    return torch.bmm(a.mT, b) if a.shape[2] <= b.shape[2] else torch.bmm(b.mT, a).mT


class Dense(torch.autograd.Function):
    """The layers, with the gradient of the module's docstring."""

    @staticmethod
    def forward(ctx: Any, activation: str, x: Tensor, *weights: Tensor) -> Tensor:
        """Return the outputs; ``weights`` holds weight and bias of each layer in turn."""
        zs, values = list[Tensor](), [x]
        layers = list(zip(weights[::2], weights[1::2], strict=True))
        for layer in layers[:-1]:
            zs.append(affine(values[-1], *layer))
            values.append(ACTIVATIONS[activation].value(zs[-1]))
        ctx.activation, ctx.layers = activation, len(layers)
        ctx.save_for_backward(*weights, *zs, *values)
        return affine(values[-1], *layers[-1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        """Return the gradients of the arguments."""
        saved, of_x = ctx.saved_tensors, ctx.needs_input_grad[1]
        weights, zs, values = saved[: 2 * ctx.layers], saved[2 * ctx.layers : -ctx.layers], saved[-ctx.layers :]
        if torch.is_grad_enabled():
            hidden = zs, values[1:]
            return None, *DenseGradient.apply(ctx.activation, of_x, hidden, dy, values[0], *weights)  # type: ignore[no-untyped-call]
        d, gradients, back = dy, list[Tensor | None](), ACTIVATIONS[ctx.activation].back
        for i in reversed(range(ctx.layers)):
            gradients += [d.sum(1, keepdim=True), _pairs(d, values[i])]
            if i:
                d = back(torch.bmm(d, weights[2 * i]), zs[i - 1], values[i])
        return None, torch.bmm(d, weights[0]) if of_x else None, *reversed(gradients)


Hidden = tuple[Sequence[Tensor], Sequence[Tensor]]  # z and f(z) of the hidden layers


class DenseGradient(torch.autograd.Function):
    """The gradient of the layers, with its own gradient of the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any, activation: str, of_x: bool, hidden: Hidden, dy: Tensor, *inputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, if it needs one, and of the weights and biases; ``inputs`` holds x and these."""
        x, *weights = inputs
        zs, values = hidden[0], [x, *hidden[1]]
        d, gradients, kept = dy, list[Tensor | None](), list[Tensor | None]()
        for i in reversed(range(len(values))):
            gradients += [d.sum(1, keepdim=True), _pairs(d, values[i])]
            if i:
                slope, bend = ACTIVATIONS[activation].derivatives(zs[i - 1], values[i])
                e = torch.bmm(d, weights[2 * i])
                kept += [d, slope, None if bend is None else bend.mul_(e)]
                d = e.mul_(slope)
        ctx.activation, ctx.of_x, ctx.layers = activation, of_x, len(values)
        ctx.save_for_backward(dy, x, *weights, *hidden[1], *kept, d)
        return torch.bmm(d, weights[0]) if of_x else None, *reversed(gradients)

    @staticmethod
    def backward(ctx: Any, of_dx: Tensor | None, *of_weights: Tensor) -> tuple[Any, ...]:
        """Return the gradients of the arguments, from those of dx, which may be absent, and of each dW and db."""
        saved, layers, of_x = ctx.saved_tensors, ctx.layers, ctx.needs_input_grad[4]
        inputs, values, kept = saved[: 2 + 2 * layers], saved[2 + 2 * layers :][: layers - 1], saved[1 + 3 * layers :]
        if torch.is_grad_enabled():
            return None, None, None, *_by_autograd(ctx.activation, ctx.of_x, (of_dx, *of_weights), *inputs)
        _, x, *weights = inputs
        values, ds = [x, *values], [kept[-1], *kept[-4::-3]]  # those of the first layer first, as below
        slopes, bends = kept[-3::-3], kept[-2::-3]  # f'(z), and e f''(z)
        uppers, of_zs = [of_dx], list[Tensor | None]()  # E, and Z as far as it comes from D
        for i in range(layers):
            upper, of_d = uppers[i], affine(values[i], *of_weights[2 * i : 2 * i + 2])
            if upper is not None:
                of_d.baddbmm_(upper, weights[2 * i].mT)
            if i < layers - 1:
                of_zs.append(None if bends[i] is None else of_d * bends[i])
                uppers.append(of_d * slopes[i])
        gradients, of_a, of_z = list[Tensor | None](), None, None
        for i in reversed(range(layers)):
            of_w = [_pairs(ds[i], upper)] if (upper := uppers[i]) is not None else []
            if of_a is not None:
                of_z, bent = of_a.mul_(slopes[i]), of_zs[i]
                of_z = of_z if bent is None else of_z.add_(bent)
                of_w.append(_pairs(of_z, values[i]))
            gradients += [None if of_z is None else of_z.sum(1, keepdim=True), sum(of_w[1:], of_w[0]) if of_w else None]
            if i or of_x:
                of_a = torch.bmm(ds[i], of_weights[2 * i])
                of_a = of_a if of_z is None else of_a.baddbmm_(of_z, weights[2 * i])
        return None, None, None, of_d, of_a if of_x else None, *reversed(gradients)


def _by_autograd(activation: str, of_x: bool, before: tuple[Tensor | None, ...], *inputs: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradient of the gradient so that it can be differentiated further; the inputs are dy, x and the weights."""
    dy, x, *weights = views = [tensor.view_as(tensor) for tensor in inputs]  # dy may itself depend on the others
    y = plain(activation, x, list(map(layer, weights[::2], weights[1::2])))
    first = torch.autograd.grad(y, [x, *weights] if of_x else weights, dy, create_graph=True)
    moving = [view for view in views if view.requires_grad]
    gradients = iter(torch.autograd.grad(first, moving, before if of_x else before[1:], create_graph=True, allow_unused=True))
    return tuple(next(gradients) if view.requires_grad else None for view in views)
