"""Aggregates and confidence intervals that are reliable for few runs (Agarwal 2021, arXiv:2108.13264)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Scores = NDArray[np.float64]


class Interval(NamedTuple):
    """An estimate with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def iqm(scores: ArrayLike, axis: int = -1) -> Scores:
    """Compute the interquartile mean: the mean of the middle half along ``axis`` (scipy's ``trim_mean`` at 0.25)."""
    ordered = np.sort(np.asarray(scores, dtype=np.float64), axis=axis)
    size = ordered.shape[axis]
    cut = size // 4
    return np.asarray(np.take(ordered, np.arange(cut, size - cut), axis=axis).mean(axis=axis))


def iqm_interval(scores: ArrayLike, over_tasks: bool = False, resamples: int = 2000, seed: int = 0) -> Interval:
    """Compute the IQM of ``scores [R, M]`` (R repeats of M tasks) with its 95 % percentile bootstrap interval.

    The bootstrap is stratified: repeats (runs with different seeds) are resampled within each task, so that the interval is for
    the score on these tasks. With ``over_tasks`` the tasks are resampled too, so that the interval is for the score on the
    family: the right one for a single run, whose repeats are episodes and may be identical.
    """
    scores = np.asarray(scores, dtype=np.float64)
    repeats, tasks = scores.shape
    rng = np.random.default_rng(seed)

    def resample(num: int) -> Scores:
        """Return the IQMs of ``num`` resamples; the numbers drawn do not depend on the size of a call."""
        bounds = np.repeat([tasks, repeats], [tasks if over_tasks else 0, scores.size])
        drawn = rng.integers(np.broadcast_to(bounds, (num, len(bounds))))
        columns = drawn[:, None, :tasks] if over_tasks else np.arange(tasks)  # [num, 1, M] | [M]
        rows = drawn[:, -scores.size :].reshape(num, repeats, tasks)
        return iqm(scores[rows, columns].reshape(num, scores.size))

    parts = (min(100, resamples - i) for i in range(0, resamples, 100))  # a bound of the memory
    values = np.concatenate([resample(num) for num in parts])
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(iqm(scores.ravel())), float(low), float(high))


def mean_interval(scores: ArrayLike, resamples: int = 2000, seed: int = 0) -> Interval:
    """Compute the mean of ``scores [R, M]`` with its 95 % percentile bootstrap interval over tasks.

    It is for noisy returns (a bandit pays 0 or 1), whose middle half is no estimate of the expectation.
    """
    tasks = np.asarray(scores, dtype=np.float64).mean(axis=0)  # [M]
    rows = np.random.default_rng(seed).integers(len(tasks), size=(resamples, len(tasks)))
    low, high = np.quantile(tasks[rows].mean(axis=1), [0.025, 0.975])
    return Interval(float(tasks.mean()), float(low), float(high))


def average_intervals(intervals: Sequence[Interval]) -> Interval:
    """Average estimates and bounds over groups whose scores are not comparable; the interval is conservative."""
    return Interval(*(float(np.mean(column)) for column in zip(*intervals, strict=True)))
