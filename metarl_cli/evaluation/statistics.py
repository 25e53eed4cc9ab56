"""The aggregates of returns and their 95 % confidence intervals: one definition for training, tests, benchmarks and documents.

The score of a task is the mean return of its episodes, and an aggregate summarises the scores of the tasks of one run:

    mean          the mean over tasks
    IQM           the interquartile mean: the mean of the middle half of the tasks (Agarwal 2021, arXiv:2108.13264)
    worst tenth   the mean of the lowest tenth of the tasks
    solved        the share of tasks whose score reaches what their family calls solved

Two intervals say how sure an aggregate is, and every table says which one it has:

    over tasks    of one run: for the aggregate of this run over all tasks of the family, by a bootstrap of whole tasks
    over seeds    of several runs: for the aggregate of a new seed's run on the same tasks, Student's, from one value a run

The normalised score of a method on tasks is (adapted - robust) / (oracle - robust), each of them a mean over the same tasks: 0
where adaptation brought nothing over the best policy that cannot know the task, 1 where it is as good as being given the task.

A seed trains one network for all its tasks, so its task scores rise and fall together. A bootstrap within tasks would take them
for independent: its intervals over three seeds contain the truth in 17 to 62 % of simulated experiments instead of 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Scores = NDArray[np.float64]
Aggregate = Callable[..., Scores]  # (scores, axis) -> scores without this axis


def number(value: float, digits: int = 2) -> str:
    """Return a number for a table: with some digits after the point, from ten millions on with a power of ten."""
    return f"{value:z.{digits}f}" if abs(value) < 1e7 else f"{value:.{digits}e}"


class Interval(NamedTuple):
    """An estimate with its 95 % confidence interval; without one (not a number) where a single value gives none."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        bounds = "" if math.isnan(self.low) else f" [{number(self.low)}, {number(self.high)}]"
        return number(self.value) + bounds


class Summary(NamedTuple):
    """What stands beside the IQM: aggregates of the tasks' scores."""

    mean: float
    worst_tenth: float
    solved: float | None  # share of tasks; None where the family does not say what solved is


def mean(scores: ArrayLike, axis: int = -1) -> Scores:
    """Compute the mean along ``axis``."""
    return np.asarray(np.mean(np.asarray(scores, dtype=np.float64), axis=axis))


def iqm(scores: ArrayLike, axis: int = -1) -> Scores:
    """Compute the interquartile mean: the mean of the middle half along ``axis`` (scipy's ``trim_mean`` at 0.25)."""
    scores = np.asarray(scores, dtype=np.float64)
    size = scores.shape[axis]
    return _of_sorted(scores, np.arange(size // 4, size - size // 4), axis)


def worst_tenth(scores: ArrayLike, axis: int = -1) -> Scores:
    """Compute the mean of the lowest tenth along ``axis``, of one score at least."""
    scores = np.asarray(scores, dtype=np.float64)
    return _of_sorted(scores, np.arange(max(scores.shape[axis] // 10, 1)), axis)


def _of_sorted(scores: Scores, places: NDArray[np.int64], axis: int) -> Scores:
    """Return the mean of some places in the order of the scores; not a number where a score is none, as the mean is."""
    chosen = np.take(np.sort(scores, axis=axis), places, axis=axis).mean(axis=axis)
    return np.asarray(np.where(np.isnan(scores).any(axis=axis), math.nan, chosen))


def summarise(scores: Scores, solved: Scores | None = None) -> Summary:
    """Summarise the tasks' scores ``[M]``; a task is solved whose score reaches ``solved [M]``."""
    return Summary(float(mean(scores)), float(worst_tenth(scores)), None if solved is None else float(mean(scores >= solved)))


def over_tasks(returns: ArrayLike, aggregate: Aggregate = iqm, resamples: int = 2000, seed: int = 0) -> Interval:
    """Aggregate the ``returns [E, M]`` of E episodes on each of M tasks, with the percentile bootstrap interval over tasks.

    Whole tasks are resampled. A single task has its mean return, with the interval over its episodes; a single
    score has none.
    """
    returns = np.asarray(returns, dtype=np.float64)
    scores, aggregate = (returns.mean(0), aggregate) if returns.shape[1] > 1 else (returns[:, 0], mean)
    if len(scores) < 2:
        return Interval(float(aggregate(scores, axis=0)), math.nan, math.nan)
    values = np.concatenate([aggregate(scores[rows], axis=1) for rows in _resampled(len(scores), resamples, seed)])
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(aggregate(scores, axis=0)), float(low), float(high))


def _resampled(num: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield the rows ``[n, num]`` of so many bootstrap samples of ``num`` tasks, a hundred at a time to bound memory."""
    rng = np.random.default_rng(seed)
    for i in range(0, resamples, 100):
        yield rng.integers(num, size=(min(100, resamples - i), num))


def share_over_tasks(gains: ArrayLike, spans: ArrayLike, resamples: int = 2000, seed: int = 0) -> Interval:
    """Compute the mean of ``gains [M]`` as a share of the mean of ``spans [M]``, with the percentile bootstrap over tasks.

    Whole tasks are resampled, with their gain and their span. The share is not a number where the mean span is not above 0,
    and has no bounds (infinite ones) where that is so in more than the 2.5 % of the resamples that an interval leaves out.
    """
    pairs = np.stack([np.asarray(gains, dtype=np.float64), np.asarray(spans, dtype=np.float64)])  # [2, M]
    gain, span = pairs.mean(1)
    if not span > 0:
        return Interval(math.nan, math.nan, math.nan)
    if (num := pairs.shape[1]) < 2:
        return Interval(float(gain / span), math.nan, math.nan)
    means = np.concatenate([pairs[:, rows].mean(2) for rows in _resampled(num, resamples, seed)], axis=1)  # [2, resamples]
    known = means[1] > 0
    if known.mean() < 0.975:
        return Interval(float(gain / span), -math.inf, math.inf)
    low, high = np.quantile(means[0, known] / means[1, known], [0.025, 0.975])
    return Interval(float(gain / span), float(low), float(high))


def normalised_over_tasks(adapted: ArrayLike, robust: ArrayLike, oracle: ArrayLike) -> Interval:
    """Compute the normalised score of one run from the scores ``[M]`` on the same tasks, with its interval over tasks."""
    adapted, robust, oracle = (np.asarray(scores, dtype=np.float64) for scores in (adapted, robust, oracle))
    return share_over_tasks(adapted - robust, oracle - robust)


def normalised_over_seeds(adapted: ArrayLike, robust: ArrayLike, oracle: ArrayLike) -> Interval:
    """Compute the mean normalised score of S runs with Student's interval over seeds, from the runs' scores ``[S, M]``.

    The references' scores ``[M]`` are means over runs of their own; the interval holds them fixed.
    """
    return over_seeds(normalised(mean(adapted), float(mean(robust)), float(mean(oracle))))


def normalised(adapted: ArrayLike, robust: float, oracle: float) -> Scores:
    """Compute normalised scores from means over tasks; not a number where the oracle is not above the robust policy."""
    span = oracle - robust if oracle > robust else math.nan
    return np.asarray((np.asarray(adapted, dtype=np.float64) - robust) / span)


def over_seeds(values: ArrayLike) -> Interval:
    """Compute the mean of one value for each run ``[S]``, such as its IQM over tasks, with Student's 95 % interval.

    A single run has no interval over seeds.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return Interval(float(values.mean()), math.nan, math.nan)
    half = student_quantile(len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return Interval(float(values.mean()), float(values.mean() - half), float(values.mean() + half))


def profile(scores: ArrayLike, thresholds: ArrayLike) -> Scores:
    """Compute the share of the tasks of each of S runs whose score is above each of L thresholds, ``[S, L]``.

    The mean over runs is the run-score performance profile of Agarwal 2021, arXiv:2108.13264.

    Args:
        scores: of the runs' tasks ``[S, M]``.
        thresholds: ``[L]``.
    """
    scores, thresholds = np.asarray(scores, dtype=np.float64), np.asarray(thresholds, dtype=np.float64)
    return np.asarray((scores[:, :, None] > thresholds).mean(1))


def improvement(scores: ArrayLike, other: ArrayLike) -> Interval:
    """Compute the probability that a run has a higher score on a task than a run of another method, mean over M tasks.

    Equal scores count half: the statistic of Mann and Whitney for each task (Agarwal 2021, arXiv:2108.13264). The interval is
    over the seeds of both methods, from the share of the others that each run is above (DeLong 1988, doi:10.2307/2531595), with
    Welch's degrees of freedom. There is none with a single run of a method, or where these shares do not differ, which does not
    say how much those of new runs will, and no value where a score is none.

    Args:
        scores: of one method's runs ``[S, M]``.
        other: of the other's ``[R, M]``.
    """
    one, two = np.asarray(scores, dtype=np.float64)[:, None], np.asarray(other, dtype=np.float64)[None]
    if np.isnan(one).any() or np.isnan(two).any():
        return Interval(math.nan, math.nan, math.nan)
    above = ((one > two) + (one == two) / 2).mean(2)  # [S, R]
    value = float(above.mean())
    if min(above.shape) < 2:
        return Interval(value, math.nan, math.nan)
    parts = [(shares.var(ddof=1) / len(shares), len(shares) - 1) for shares in (above.mean(1), above.mean(0))]
    squared = sum(part for part, _ in parts)
    if not squared > 0:
        return Interval(value, math.nan, math.nan)
    freedom = squared**2 / sum(part**2 / free for part, free in parts)
    half = student_quantile(max(1, int(freedom))) * math.sqrt(squared)
    return Interval(value, max(0.0, value - half), min(1.0, value + half))


def stratified(scores: ArrayLike, aggregate: Aggregate = iqm, resamples: int = 2000, seed: int = 0) -> Interval:
    """Aggregate the scores ``[S, M]`` of S runs on M tasks together, with the stratified bootstrap of Agarwal 2021.

    It resamples the runs of each task anew, as rliable does, as if every task had networks of its own: for comparison with
    published numbers. Where one network serves all tasks the interval is too narrow; :func:`over_seeds` is not.
    """
    scores = np.asarray(scores, dtype=np.float64)
    runs, tasks = scores.shape
    value = float(aggregate(scores.ravel()))
    if runs < 2 or math.isnan(value):
        return Interval(value, math.nan, math.nan)
    rng, columns = np.random.default_rng(seed), np.arange(tasks)
    drawn = (scores[rng.integers(runs, size=scores.shape), columns].ravel() for _ in range(resamples))
    low, high = np.quantile([aggregate(each) for each in drawn], [0.025, 0.975])
    return Interval(value, float(low), float(high))


def student_quantile(freedom: int, share: float = 0.95) -> float:
    """Return t such that Student's distribution has ``share`` of its mass within -t and t, by bisection of its angle.

    The mass within is a finite series for whole degrees of freedom (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4).
    """
    odd = freedom % 2

    def within(angle: float) -> float:
        term = math.sin(angle) * (math.cos(angle) if odd else 1.0)
        total = term if freedom > 1 else 0.0
        for k in range(2 + odd, freedom - 1, 2):
            term *= (k - 1) / k * math.cos(angle) ** 2
            total += term
        return 2 / math.pi * (angle + total) if odd else total

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < share else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def average_intervals(intervals: Sequence[Interval]) -> Interval:
    """Average estimates and bounds over groups whose scores are not comparable; the interval is conservative."""
    return Interval(*(float(np.mean(column)) for column in zip(*intervals, strict=True)))


def average_summaries(summaries: Sequence[Summary]) -> Summary:
    """Average summaries over groups whose scores are not comparable."""
    means, worst, solved = zip(*summaries, strict=True)
    known = [share for share in solved if share is not None]
    return Summary(float(np.mean(means)), float(np.mean(worst)), float(np.mean(known)) if len(known) == len(solved) else None)
