"""What genomes share: genes of bounded values."""

from __future__ import annotations

from torch import Tensor


def fold(genes: Tensor) -> Tensor:
    """Any number -> [0, 1], going back and forth: a mutation moves a value, and never sticks to a bound."""
    return 1 - (1 - genes % 2).abs()
