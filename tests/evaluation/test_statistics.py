"""Aggregates against scipy and numbers worked out by hand; intervals against simulated experiments whose truth is known."""

import math

import numpy as np
import pytest
from conftest import slow_if

from metarl_cli.evaluation.statistics import (
    Interval,
    Summary,
    average_intervals,
    average_summaries,
    improvement,
    iqm,
    mean,
    normalised_over_seeds,
    normalised_over_tasks,
    over_seeds,
    over_tasks,
    profile,
    share_over_tasks,
    stratified,
    student_quantile,
    summarise,
    worst_tenth,
)


@pytest.mark.parametrize("size", [1, 3, 4, 7, 50, 101])
def test_iqm_is_the_trimmed_mean(size):
    from scipy.stats import trim_mean  # here, as it is slow to import

    scores = np.random.default_rng(size).normal(size=size)
    assert iqm(scores) == pytest.approx(trim_mean(scores, 0.25))


@pytest.mark.parametrize(("size", "worst"), [(1, 0), (9, 0), (10, 0), (19, 0), (20, 0.5), (100, 4.5)])
def test_the_worst_tenth_is_of_one_task_at_least(size, worst):
    assert worst_tenth(np.random.default_rng(0).permutation(size)) == worst


@pytest.mark.parametrize("aggregate", [mean, iqm, worst_tenth])
def test_aggregates_go_along_an_axis(aggregate):
    scores = np.random.default_rng(0).normal(size=(4, 3, 20))
    assert aggregate(scores).shape == (4, 3)
    assert aggregate(scores.transpose(2, 0, 1), axis=0) == pytest.approx(aggregate(scores))
    assert float(aggregate(scores[1, 2])) == pytest.approx(aggregate(scores)[1, 2])


def test_a_summary_by_hand():
    scores = np.array([10.0, 1.0, 2.0, 3.0])
    assert summarise(scores) == Summary(4.0, 1.0, None)
    assert summarise(scores, np.array([10.0, 2.0, 2.0, 2.0])).solved == 0.75
    parts = [Summary(1.0, 0.0, 0.5), Summary(3.0, -2.0, 1.0)]
    assert average_summaries(parts) == Summary(2.0, -1.0, 0.75)
    assert average_summaries([*parts, Summary(2.0, -1.0, None)]).solved is None


@pytest.mark.parametrize("freedom", [*range(1, 31), 99, 1000])
@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
def test_the_quantile_of_student(freedom, share):
    from scipy.stats import t

    assert student_quantile(freedom, share) == pytest.approx(t.ppf((1 + share) / 2, freedom), rel=1e-9)


def test_the_interval_over_seeds_is_that_of_student():
    from scipy.stats import sem, t

    values = np.array([1.0, 2.0, 6.0])
    assert over_seeds(values) == pytest.approx((3.0, *t.interval(0.95, 2, 3.0, sem(values))))
    assert over_seeds([2.0, 2.0]) == Interval(2.0, 2.0, 2.0)


def test_a_single_run_has_no_interval_over_seeds():
    found = over_seeds([2.0])
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert str(found) == "2.00"
    assert str(Interval(2, 1, 3)) == "2.00 [1.00, 3.00]"


SIMULATED = 2000  # experiments; a coverage has a standard error of 0.005


def runs(rng, seeds, seed_sd, most=np.inf, tasks=100):
    """Task means ``[experiments, seeds, M]`` of runs on the same tasks; what a seed has learned shows in all of them."""
    task = np.random.default_rng(5).normal(400, 40, size=tasks)
    size = (SIMULATED, seeds, tasks)
    return np.minimum(task + rng.normal(0, seed_sd, size=(SIMULATED, seeds, 1)) + rng.normal(0, 25, size=size), most)


@pytest.mark.parametrize("most", [np.inf, 500], ids=["unbounded", "at most 500"])
@pytest.mark.parametrize("seed_sd", slow_if([0, 5, 20, 60], lambda sd: sd in (0, 5)))
@pytest.mark.parametrize("seeds", [3, 10])
@pytest.mark.parametrize("aggregate", slow_if([iqm, mean, worst_tenth], lambda of: of is mean))
def test_intervals_over_seeds_contain_the_truth(aggregate, seeds, seed_sd, most):
    """In 93 % of all experiments at least, whatever the seeds differ by."""
    rng = np.random.default_rng(seeds)
    truth = float(np.mean([aggregate(runs(rng, 10, seed_sd, most)).mean() for _ in range(3)]))
    found = [over_seeds(values) for values in aggregate(runs(rng, seeds, seed_sd, most))]
    assert np.mean([x.low <= truth <= x.high for x in found]) >= 0.93


def test_a_bootstrap_within_tasks_leaves_the_seeds_out():
    """Which is why there is none: of 95 % intervals over three seeds so made, less than half contain the truth."""
    rng = np.random.default_rng(0)
    truth, hits, num = float(iqm(runs(rng, 10, 20)).mean()), 0, 200
    for scores in runs(rng, 3, 20)[:num]:
        drawn = scores[rng.integers(3, size=(300, *scores.shape)), np.arange(scores.shape[1])]
        low, high = np.quantile(iqm(drawn.reshape(300, -1)), [0.025, 0.975])
        hits += low <= truth <= high
    assert hits / num < 0.5


@pytest.mark.parametrize(("tasks", "least"), [(20, 0.90), (100, 0.925)])
@pytest.mark.parametrize("aggregate", [iqm, mean])
def test_intervals_over_tasks_contain_the_truth(aggregate, tasks, least):
    """A percentile bootstrap of few tasks is a little too narrow."""
    rng, num = np.random.default_rng(0), 600
    found = [over_tasks(3 + rng.normal(size=(1, tasks)) + rng.normal(size=(2, tasks)), aggregate, 400, i) for i in range(num)]
    assert np.mean([x.low <= 3 <= x.high for x in found]) >= least


def test_intervals_over_tasks_resample_whole_tasks():
    tasks = np.repeat(np.arange(5.0)[None], 8, axis=0)  # eight episodes say no more than one where all are the same
    assert over_tasks(tasks) == over_tasks(tasks[:1])
    found = over_tasks(tasks)
    assert found.low < found.value < found.high
    assert over_tasks(np.array([[0.0, 1.0], [2.0, 3.0]])).value == 1.5, "the aggregate is over the tasks' means"


def test_a_single_task_has_its_interval_over_its_episodes():
    episodes = np.array([[1.0], [2.0], [3.0], [10.0]])
    found = over_tasks(episodes)
    assert found.value == 4.0, "the mean: the aggregate of one task is its own score"
    assert found.low < 4.0 < found.high
    assert str(over_tasks(episodes[:1])) == "1.00", "one score has no interval"


@pytest.mark.parametrize("shape", [(1, 7), (3, 1), (2, 4), (4, 50)])
def test_resamples_do_not_depend_on_how_many_are_drawn_at_once(shape):
    returns = np.random.default_rng(1).normal(size=shape)
    scores = returns.mean(0) if shape[1] > 1 else returns[:, 0]
    aggregate = iqm if shape[1] > 1 else mean
    rng = np.random.default_rng(5)
    found = [float(aggregate(scores[rng.integers(len(scores), size=len(scores))])) for _ in range(250)]
    assert over_tasks(returns, resamples=250, seed=5)[1:] == pytest.approx(np.quantile(found, [0.025, 0.975]))


def test_the_mean_of_pulls_that_pay_0_or_1():
    """The interval is about as wide as that of the normal approximation."""
    rng = np.random.default_rng(0)
    chance = rng.random(400) * 0.2 + 0.75
    pulls = (rng.random((20, 400)) < chance).astype(float)
    found = over_tasks(pulls, mean)
    assert found.value == pytest.approx(pulls.mean())
    assert found.low < chance.mean() < found.high
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * pulls.mean(0).std() / 20, rel=0.15)


def test_groups_are_averaged():
    assert average_intervals([Interval(1, 0, 2), Interval(5, 2, 8)]) == Interval(3, 1, 5)


def test_the_normalised_score_is_a_ratio_of_means_over_tasks():
    robust, oracle = np.array([0.0, 10.0, 0.0, 0.0]), np.array([10.0, 10.0, 40.0, 10.0])
    assert normalised_over_tasks(robust, robust, oracle) == (0, 0, 0)
    assert normalised_over_tasks(oracle, robust, oracle) == (1, 1, 1)
    adapted = np.array([10.0, 10.0, 20.0, 10.0])
    found = normalised_over_tasks(adapted, robust, oracle)
    assert found.value == pytest.approx(40 / 60), "not the mean of the tasks' ratios, one of which has no range"
    assert found.low == pytest.approx(0.5)
    assert found.high == pytest.approx(1)
    one = normalised_over_tasks([5.0], [0.0], [10.0])
    assert (one.value, math.isnan(one.low)) == (0.5, True)


def test_where_there_is_no_range_there_is_no_normalised_score():
    assert math.isnan(normalised_over_tasks([5.0, 5.0], [1.0, 2.0], [1.0, 2.0]).value)
    assert math.isnan(normalised_over_tasks([5.0, 5.0], [2.0, 2.0], [1.0, 1.0]).value)
    assert share_over_tasks([1.0, 1.0], [3.0, -1.0]) == (1, -math.inf, math.inf), "a quarter of the resamples has none"


def test_the_interval_of_a_share_covers_the_truth():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(100):
        span = rng.normal(10, 3, 50)
        found = share_over_tasks(0.7 * span + rng.normal(0, 2, 50), span, resamples=400)
        hits += found.low <= 0.7 <= found.high
    assert hits >= 88, "of 95 expected"


def test_the_normalised_score_of_several_seeds_is_students():
    robust, oracle = np.zeros(4), np.full(4, 10.0)
    found = normalised_over_seeds([[4.0] * 4, [6.0] * 4, [8.0] * 4], robust, oracle)
    assert found == pytest.approx(over_seeds([0.4, 0.6, 0.8]))
    assert math.isnan(normalised_over_seeds([[4.0] * 4] * 2, oracle, robust).value)


# -- of several runs, beside rliable 1.2.0 (Agarwal 2021, arXiv:2108.13264; github.com/google-research/rliable): its functions
# aggregate_iqm (of one run at a time), probability_of_improvement and create_performance_profile on these scores

ONE = [
    [1.13, 0.87, 1.64, 1.1, 0.46, 1.36, 2.3, 1.95],
    [0.3, -0.27, 0.38, 1.04, -1.33, 0.78, -0.25, 0.27],
    [0.46, 0.68, 1.41, 2.04, 0.87, 2.37, 0.33, 1.35],
    [1.9, 1.09, 0.26, 0.08, 0.54, 1.22, -0.01, 0.79],
    [0.84, 1.54, 1.21, 1.36, 0.35, 0.87, 1.78, 2.49],
]
OTHER = [
    [0.3, 2.01, 1.85, 1.28, 0.76, 0.19, 1.96, 2.46],
    [2.3, 1.82, 0.86, -0.71, 0.5, 1.16, -0.79, 0.9],
    [0.93, 1.2, -0.68, -0.16, 0.06, -0.67, 2.24, 0.0],
    [0.83, 0.24, 2.08, 1.82, 1.13, -1.7, 0.55, 1.18],
]
LEVELS = [-0.5, 0.0, 0.5, 1.0, 1.5]


def test_the_iqm_of_each_run_is_rliables():
    assert iqm(ONE).tolist() == pytest.approx([1.3075, 0.175, 1.0775, 0.67, 1.245])


def test_the_probability_of_improvement_is_rliables():
    assert improvement(ONE, OTHER).value == pytest.approx(0.509375)
    assert improvement(OTHER, ONE).value == pytest.approx(1 - 0.509375), "equal scores count half"


@pytest.mark.parametrize(
    ("scores", "aggregate", "value", "low", "high"),
    [
        (ONE, iqm, 0.92, 0.6905, 1.1655),
        (ONE, mean, 0.93875, 0.72075, 1.157),
        (OTHER, iqm, 0.864375, 0.483125, 1.26125),
        (OTHER, mean, 0.809375, 0.4909, 1.1253),
    ],
)
def test_stratified_intervals_are_rliables(scores, aggregate, value, low, high):
    """``get_interval_estimates`` with 50,000 resamples; the ends of 2,000 scatter by about 0.015."""
    found = stratified(scores, aggregate)
    assert found.value == pytest.approx(value)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.04)
    assert all(math.isnan(bound) for bound in stratified(scores[:1], aggregate)[1:])


def test_the_interval_of_the_probability_of_improvement_covers_it():
    """Runs differ by their seed, on all tasks alike, and by task; two methods of five runs, of which one is better by 0.5."""
    rng, inside, truth = np.random.default_rng(0), 0, (1 + math.erf(0.5 / math.sqrt(2.5) / math.sqrt(2))) / 2
    for _ in range(400):
        one, two = (rng.normal(size=(5, 1)) / 2 + rng.normal(size=(5, 20)) + shift for shift in (0.5, 0.0))
        _, low, high = improvement(one, two)
        inside += low <= truth <= high
    assert 0.93 <= inside / 400 <= 0.98


def test_the_probability_of_improvement_has_an_interval_with_two_runs_of_each_alone():
    assert math.isnan(improvement(ONE[:1], OTHER).low)
    always = improvement([[2.0], [2.0]], [[1.0], [1.0]])
    assert (always.value, str(always)) == (1.0, "1.00"), "two runs of each do not make it certain"
    assert math.isnan(improvement([[math.nan]], OTHER[:1]).value)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [(ONE, [0.975, 0.9, 0.675, 0.475, 0.225]), (OTHER, [0.84375, 0.78125, 0.625, 0.4375, 0.28125])],
)
def test_the_performance_profile_is_rliables(scores, expected):
    assert profile(scores, LEVELS).mean(0).tolist() == pytest.approx(expected)
