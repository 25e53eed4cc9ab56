"""Aggregates against scipy and against what must hold."""

import numpy as np
import pytest

from metarl_cli.evaluation.statistics import iqm, iqm_interval, mean_interval


@pytest.mark.parametrize("size", [1, 3, 4, 7, 50, 101])
def test_iqm_is_the_trimmed_mean(size):
    from scipy.stats import trim_mean  # here, as it is slow to import

    scores = np.random.default_rng(size).normal(size=size)
    assert iqm(scores) == pytest.approx(trim_mean(scores, 0.25))


@pytest.mark.parametrize("over_tasks", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 1), (2, 4), (4, 50)])
def test_resamples_are_drawn_one_after_another(shape, over_tasks):
    """Which is what a published interval can be had again from, whatever is drawn at once."""
    scores = np.random.default_rng(1).normal(size=shape)
    repeats, tasks = shape
    rng, found = np.random.default_rng(5), []
    for _ in range(250):
        columns = rng.integers(tasks, size=tasks) if over_tasks else np.arange(tasks)
        found.append(float(iqm(scores[rng.integers(repeats, size=shape), columns].ravel())))
    interval = iqm_interval(scores, over_tasks, resamples=250, seed=5)
    assert interval == (iqm(scores.ravel()), *np.quantile(found, [0.025, 0.975]))


def test_interval_covers_the_truth_and_shrinks():
    rng = np.random.default_rng(0)
    hits, widths = 0, []
    for _ in range(100):
        interval = iqm_interval(rng.normal(3.0, 1.0, size=(10, 5)), resamples=300)
        hits += interval.low <= 3.0 <= interval.high
        widths.append(interval.high - interval.low)
    assert 85 <= hits <= 100
    wide = iqm_interval(rng.normal(3.0, 1.0, size=(1000, 5)), resamples=300)
    assert wide.high - wide.low < np.mean(widths) / 3


def test_resampling_stays_within_tasks():
    tasks = np.repeat(np.arange(5.0)[None], 8, axis=0)  # every repeat of a task the same: nothing to resample
    interval = iqm_interval(tasks)
    assert interval.low == interval.value == interval.high
    over = iqm_interval(tasks, over_tasks=True)
    assert over.low < over.value < over.high


def test_mean_interval_of_pulls_that_pay_0_or_1():
    """Where the middle half of all pulls pays 1, the IQM says 1; the mean says what a pull is worth."""
    rng = np.random.default_rng(0)
    chance = rng.random(400) * 0.2 + 0.75
    pulls = (rng.random((20, 400)) < chance).astype(float)
    found = mean_interval(pulls)
    assert found.value == pytest.approx(pulls.mean())
    assert found.low < chance.mean() < found.high
    expected = 1.96 * pulls.mean(0).std() / 20
    assert (found.high - found.low) / 2 == pytest.approx(expected, rel=0.15)
    assert iqm_interval(pulls).value == 1.0
