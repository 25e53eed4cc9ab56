"""Cosines and sines of a few angles."""

from __future__ import annotations

import torch
from torch import Tensor


def turned(angle: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosine and sine; torch's functions of these names would wake all of its threads, and wait for them."""
    both = torch.polar(angle.new_ones(()).expand_as(angle), angle)
    return both.real, both.imag
