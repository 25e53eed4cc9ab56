"""Layers whose derivatives are written by hand: equal to those of autograd, in float64 to rounding, in float32 to 1e-6."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from metarl_cli.networks import dense as module
from metarl_cli.networks.dense import ACTIVATIONS, Layer, affine, dense, layer, plain


def networks(rows: int, dtype: torch.dtype, of_x: bool = True, num: int = 2) -> tuple[Tensor, list[Layer], list[Tensor]]:
    """Inputs, layers, and all tensors to differentiate in."""
    rng = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=dtype)

    x, pairs = draw(num, rows, 4), [(draw(num, o, i) / i**0.5, draw(num, 1, o)) for i, o in pairwise((4, 24, 20, 2))]
    tensors = [tensor.requires_grad_() for tensor in [x] * of_x + [tensor for pair in pairs for tensor in pair]]
    return x, [layer(*pair) for pair in pairs], tensors


def derivatives(y: Tensor, tensors: list[Tensor], order: int) -> list[Tensor]:
    """The gradient of a function of y, of a function of that gradient, and so on."""
    for _ in range(order):
        gradients = torch.autograd.grad(y.sin().sum(), tensors, create_graph=True)
        y = torch.cat([gradient.flatten() for gradient in gradients])
    return list(gradients)


@pytest.mark.parametrize("of_x", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivatives_are_those_of_autograd(monkeypatch: pytest.MonkeyPatch, activation: str, of_x: bool) -> None:
    monkeypatch.setattr(module, "MANY", 1)
    x, layers, tensors = networks(3, torch.float64, of_x)
    by_hand, expected = dense(activation, x, layers), plain(activation, x, layers)
    assert type(by_hand.grad_fn).__name__ == "DenseBackward"
    torch.testing.assert_close(by_hand, expected)
    for order in (1, 2, 3):
        torch.testing.assert_close(derivatives(by_hand, tensors, order), derivatives(expected, tensors, order))


def test_float32_gradients_are_equal_to_1e6() -> None:
    x, layers, tensors = networks(module.MANY // 2, torch.float32)

    def second(y: Tensor) -> tuple[Tensor, ...]:
        """The gradient of the square of the gradient of a mean loss."""
        first = torch.autograd.grad(y.square().mean(), tensors, create_graph=True)
        return torch.autograd.grad(sum(gradient.square().sum() for gradient in first), tensors)

    by_hand, expected = (second(f("silu", x, layers)) for f in (dense, plain))
    for one, other in zip(by_hand, expected, strict=True):
        assert (one - other).norm() <= 1e-6 * other.norm()


@pytest.mark.parametrize("outputs", [2, module.NARROW])
def test_products_do_not_depend_on_their_order_in_memory(outputs: int) -> None:
    x, weight, bias = torch.randn(2, module.MANY, 5), torch.randn(2, outputs, 5), torch.randn(2, 1, outputs)
    found = affine(x, weight, bias)
    torch.testing.assert_close(found, x @ weight.mT + bias)
    assert found.is_contiguous()
