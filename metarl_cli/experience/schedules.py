"""Schedules of learning rates and exploration; ``progress`` is the share of the schedule that has passed."""

from __future__ import annotations

import math
from collections.abc import Sequence


def linear(span: Sequence[float], progress: float) -> float:
    """Go from the first to the second number of ``span`` on a straight line, and stay."""
    start, end = span
    return start + (end - start) * min(progress, 1.0)


def cosine(end: float, progress: float) -> float:
    """Go from 1 to ``end`` on half a cosine wave, and stay (Loshchilov and Hutter 2017, arXiv:1608.03983)."""
    wave = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    return end + (1 - end) * wave
