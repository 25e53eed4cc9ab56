"""Genes with bounded values, shared by several parts of a genome."""

from __future__ import annotations

from torch import Tensor


def fold(genes: Tensor) -> Tensor:
    """Reflect genes into [0, 1], so that mutations are never clipped at a bound."""
    return 1 - (1 - genes % 2).abs()
