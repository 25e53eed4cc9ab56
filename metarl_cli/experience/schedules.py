"""Schedules of learning rates and exploration; ``progress`` is the elapsed share of the schedule, 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Sequence


def linear(span: Sequence[float], progress: float) -> float:
    """Interpolate linearly from the first to the second number of ``span``; constant after progress 1."""
    start, end = span
    return start + (end - start) * min(progress, 1.0)


def cosine(end: float, progress: float) -> float:
    """Anneal from 1 to ``end`` on half a cosine (Loshchilov and Hutter 2017, arXiv:1608.03983); constant after progress 1."""
    wave = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    return end + (1 - end) * wave
