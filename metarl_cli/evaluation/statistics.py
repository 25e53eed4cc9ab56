"""Aggregates and intervals that are reliable with few runs (Agarwal 2021, arXiv:2108.13264)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Scores = NDArray[np.float64]


class Interval(NamedTuple):
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def iqm(scores: ArrayLike, axis: int = -1) -> Scores:
    """Interquartile mean: the mean of the middle half along ``axis`` (scipy's ``trim_mean`` at 0.25)."""
    ordered = np.sort(np.asarray(scores, dtype=np.float64), axis=axis)
    size = ordered.shape[axis]
    cut = size // 4
    return np.asarray(np.take(ordered, np.arange(cut, size - cut), axis=axis).mean(axis=axis))


def iqm_interval(scores: ArrayLike, over_tasks: bool = False, resamples: int = 2000, seed: int = 0) -> Interval:
    """IQM of ``scores [R, M]`` (R repeats of M tasks) with its 95 % percentile bootstrap interval.

    Stratified: repeats (runs with different seeds) are resampled within each task, and the interval tells how sure one is of
    the score on these tasks. ``over_tasks`` resamples the tasks too: how sure one is of the score on the family, which is what
    a single run can tell (its repeats are episodes, and may all be the same).
    """
    scores = np.asarray(scores, dtype=np.float64)
    repeats, tasks = scores.shape
    rng = np.random.default_rng(seed)

    def resample(num: int) -> Scores:
        """The IQMs of ``num`` resamples, one after the other of the generator's numbers."""
        bounds = np.repeat([tasks, repeats], [tasks if over_tasks else 0, scores.size])
        drawn = rng.integers(np.broadcast_to(bounds, (num, len(bounds))))
        columns = drawn[:, None, :tasks] if over_tasks else np.arange(tasks)  # [num, 1, M] | [M]
        rows = drawn[:, -scores.size :].reshape(num, repeats, tasks)
        return iqm(scores[rows, columns].reshape(num, scores.size))

    values = np.concatenate([resample(min(100, resamples - i)) for i in range(0, resamples, 100)])  # never all in memory
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(iqm(scores.ravel())), float(low), float(high))


def mean_interval(scores: ArrayLike, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean of ``scores [R, M]`` with its 95 % percentile bootstrap interval over tasks.

    For returns that are mostly chance (a bandit pays 0 or 1): the middle half says nothing of their expectation.
    """
    tasks = np.asarray(scores, dtype=np.float64).mean(axis=0)  # [M]
    rows = np.random.default_rng(seed).integers(len(tasks), size=(resamples, len(tasks)))
    low, high = np.quantile(tasks[rows].mean(axis=1), [0.025, 0.975])
    return Interval(float(tasks.mean()), float(low), float(high))


def average_intervals(intervals: Sequence[Interval]) -> Interval:
    """Average estimates and bounds over groups whose scores do not compare; the interval is conservative."""
    return Interval(*(float(np.mean(column)) for column in zip(*intervals, strict=True)))
