"""A step within a trust region: the largest step along the natural gradient for which the policies move by ``kl``.

    direction  s = H^-1 g        H the curvature of the divergence, by conjugate gradients on products H v
    step       theta - sqrt(2 kl / s'Hs) s, shortened until the loss is lower and the divergence at most ``kl``

TRPO: Schulman 2015, arXiv:1502.05477, appendix C.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from pydantic import Field
from torch import Tensor

from metarl_cli.config.base import StrictModel

TINY = 1e-10  # of the squared residual at which conjugate gradients have found the solution


class TrustConfig(StrictModel):
    """A trust region."""

    kl: float = Field(gt=0, description="divergence of the policies from those that acted, which a step must not pass")
    products: int = Field(gt=0, description="steps of conjugate gradients: products with the curvature of the divergence")
    damping: float = Field(ge=0, description="added to the diagonal of the curvature")
    trials: int = Field(gt=0, description="lengths of the step that are tried before it is given up")
    shrink: float = Field(gt=0, lt=1, description="factor of the length from one trial to the next")


def conjugate_gradients(product: Callable[[Tensor], Tensor], right: Tensor, steps: int) -> Tensor:
    """Solve ``H x = right`` for a matrix that is positive definite; exact after as many steps as there are unknowns.

    Args:
        product: returns ``H v`` for a vector ``v [n]``.
        right: the right side ``[n]``.
        steps: at most.

    Returns:
        The solution ``[n]``.
    """
    solution, residual = torch.zeros_like(right), right.clone()
    direction, square = residual, residual @ residual
    for _ in range(steps):
        if square <= TINY * (right @ right):
            break
        curved = product(direction)
        length = square / (direction @ curved)
        solution, residual = solution + length * direction, residual - length * curved
        before, square = square, residual @ residual
        direction = residual + square / before * direction
    return solution


@torch.no_grad()
def trust_region_step(
    weights: list[Tensor],
    gradient: Tensor,
    product: Callable[[Tensor], Tensor],
    measure: Callable[[], tuple[float, float]],
    config: TrustConfig,
) -> tuple[float, int]:
    """Move the weights in place; where no trial is accepted they keep their very bits.

    Args:
        weights: what moves.
        gradient: of the loss in all of them, flat ``[n]``.
        product: returns the product ``[n]`` of the curvature of the divergence with a vector ``[n]``.
        measure: returns the loss and the divergence with the weights as they are.
        config: see :class:`TrustConfig`.

    Returns:
        The divergence after the step, and the number of the trial that was accepted; 0 for none.
    """
    start = [weight.clone() for weight in weights]
    before, _ = measure()

    def curved(vector: Tensor) -> Tensor:
        return product(vector) + config.damping * vector

    direction = conjugate_gradients(curved, gradient, config.products)
    size = float(direction @ curved(direction))
    length = math.sqrt(2 * config.kl / size) if size > 0 else 0.0
    for trial in range(config.trials):
        moves = split(length * config.shrink**trial * direction, weights)
        for weight, origin, move in zip(weights, start, moves, strict=True):
            weight.copy_(origin - move)
        loss, divergence = measure()
        if loss < before and divergence <= config.kl:
            return divergence, trial + 1
    for weight, origin in zip(weights, start, strict=True):
        weight.copy_(origin)
    return 0.0, 0


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors as one vector ``[n]``."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def split(vector: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Return the parts of a vector ``[n]`` in the shapes of some tensors."""
    parts = torch.split(vector, [tensor.numel() for tensor in like])
    return [part.view_as(tensor) for part, tensor in zip(parts, like, strict=True)]
