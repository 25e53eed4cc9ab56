"""Fast matrix products on CPU, for sequences of many rows and steps.

oneDNN's product of float32 matrices is twice as fast as that of MKL, which torch.mm uses, on AMD's AVX-512. On AMD's AVX2 it is
no faster, and its sum of outer products takes 2.5 times as long. Processors without AVX-512 therefore use torch.mm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight
from typing_extensions import override

_ONEDNN = torch.backends.cpu.get_cpu_capability() == "AVX512" and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ weight.t() + bias``, [..., I], [O, I], [O] -> [..., O]; not differentiable."""
    if _ONEDNN and x.dtype == torch.float32 and not x.is_cuda:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return out
    return F.linear(x, weight, bias)


def outer_products(a: Tensor, b: Tensor) -> Tensor:
    """Sum the outer products of [T, R, A] and [T, R, B] over T and R -> [A, B].

    For oneDNN the sum is the weight gradient of a 1 x 1 convolution with a batch of 16; for smaller batches torch uses MKL.
    """
    if _ONEDNN and a.dtype == torch.float32 and a[..., 0].numel() % 16 == 0:
        images = [x.view(16, -1, 1, x.shape[-1]).permute(0, 3, 1, 2) for x in (a, b)]
        kernels: Tensor = conv2d_weight(images[1], (a.shape[-1], b.shape[-1], 1, 1), images[0])  # type: ignore[no-untyped-call]
        return kernels[:, :, 0, 0]
    return a.flatten(0, 1).t() @ b.flatten(0, 1)


class Linear(torch.autograd.Function):
    """``F.linear`` of [R, T, I] with the products of this module."""

    @staticmethod
    @override
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @override
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        d_x = product(grad, weight.t().contiguous()) if ctx.needs_input_grad[0] else None
        return d_x, outer_products(grad, x.contiguous()), grad.sum((0, 1))
