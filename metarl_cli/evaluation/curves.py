"""Adaptation curves: the results of an evaluation, and their metrics under the tags that all algorithms share."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from metarl_cli.evaluation.statistics import Interval, Scores, Summary, number


class Total(NamedTuple):
    """The return of whole trials, summed over their episodes: mean over tasks and trials, standard error over tasks.

    For a single task the standard error is over its trials.
    """

    episodes: int
    mean: float
    standard_error: float | None  # None for a single trial
    each: list[float]  # [episodes] mean return of every episode

    def __str__(self) -> str:
        return number(self.mean) + ("" if self.standard_error is None else f" ± {number(self.standard_error)}")


class Differences(NamedTuple):
    """Expected value differences at P points: the return of the best policy that knows the task, less that of the policy."""

    new: list[Interval]  # [P] mean over the tasks, in the environments of the tasks
    demonstrated: list[Interval]  # [P] where demonstrations took place; as ``new`` before the first


class Curve(NamedTuple):
    """Returns along adaptation to M tasks, with E repeats, at P points: adaptation steps, or episodes of a trial."""

    steps: list[int]  # [P] adaptation steps, or episodes of a trial before this one
    returns: Scores  # [P, E, M]
    points: list[Interval]  # [P] IQM over the tasks' means, with its interval over tasks; the mean for episodes of a trial
    summaries: list[Summary]  # [P] what stands beside the IQM
    gradient_steps: list[int]  # [P] per task
    env_steps: list[int]  # [P] per task
    groups: dict[str, list[Interval]]  # [P] per group of tasks with comparable returns; ``points`` are then their averages
    total: Total | None = None  # of whole trials
    demonstrated: bool = False  # whether ``steps`` are numbers of demonstrations
    differences: Differences | None = None  # then, where the family knows its optimum

    @property
    def over(self) -> str:
        """Return what the intervals are over: ``tasks``, or the ``episodes`` of a single task."""
        return "tasks" if self.returns.shape[-1] > 1 else "episodes"

    @property
    def aggregate(self) -> str:
        """Return the name of the aggregate of the points."""
        return "mean" if self.total or self.over == "episodes" else "IQM"

    @property
    def reuses(self) -> bool:
        """Whether a gradient step learns from environment steps that an earlier one has used."""
        spent = list(zip(self.gradient_steps, self.env_steps, strict=True))
        return any(more > some and same == steps for (some, steps), (more, same) in pairwise(spent) if some)

    @property
    def score(self) -> float:
        """Return the score that ranks algorithms: the mean return after the last adaptation step, or per episode of a trial.

        It is the mean over tasks and not the IQM, which does not see the tasks that fail. All episodes of a trial count:
        exploration is part of the task, and the last episode may be a single pull of a bandit.
        """
        return self.total.mean / self.total.episodes if self.total else self.summaries[-1].mean


class Level(NamedTuple):
    """The returns of a reference that was trained, on the tasks of an evaluation."""

    returns: Scores  # [M] mean return of an episode
    source: str  # where they come from, in words


class Levels(NamedTuple):
    """The references between which the normalised score lies; None where unknown."""

    robust: Level | None = None  # a policy trained over all tasks that cannot know the task
    oracle: Level | None = None  # a policy trained with the task's parameters among its inputs


UNKNOWN = Levels()


class Report(NamedTuple):
    """The curve of an algorithm, and its references on the same tasks at the same budget."""

    curve: Curve
    sampled: Curve | None  # the same trials with sampled actions; None for a deterministic policy
    scratch: Curve | None  # the same learner from fresh weights; None for an algorithm without gradient steps
    random: Curve
    own_tasks: Interval | None  # on the training tasks, if each is learned independently
    optimum: Curve | None  # the return of an episode under the best policy that knows the task, computed; None if unknown
    robust: Curve | None  # the return of an episode of the trained policy that cannot know the task; None if not measured
    oracle: Curve | None  # the return of an episode of the trained policy that is given the task; None if not measured
    normalised: list[Interval] | None  # [P] (adapted - robust) / (oracle - robust); the optimum in place of a missing oracle
    levels: Levels  # what ``robust`` and ``oracle`` were taken from
    shared: bool  # whether training tasks are among the tasks, as the family has few
    trained_steps: int | None  # adaptation steps that the algorithm was trained for; None: any number

    @property
    def score(self) -> float:
        """The number that runs are compared by: of the training tasks where each is learned on its own, else the curve's."""
        return self.own_tasks.value if self.own_tasks else self.curve.score

    @property
    def total(self) -> Total | None:
        """Return the total of whole trials; None for an algorithm that adapts by gradient steps."""
        return self.curve.total

    @property
    def regret(self) -> float | None:
        """Return the regret per episode: the optimum minus the return, mean over tasks; None if unknown.

        The return is that after adaptation, and that of all episodes of a trial.
        """
        if self.optimum is None:
            return None
        return self.optimum.summaries[0].mean - self.curve.score


def metrics(curve: Curve, prefix: str) -> dict[str, float]:
    """Return the metrics of a curve, under the tags that all algorithms share."""
    points, values = curve.points, [point.value for point in curve.points]
    last = curve.summaries[-1]
    scalars = {f"return_step_{k}": value for k, value in zip(curve.steps, values, strict=True)}
    scalars |= {
        "return_before": values[0],
        "return_after": values[-1],
        "return_after_low": points[-1].low,
        "return_after_high": points[-1].high,
        "return_after_mean": last.mean,
        "return_after_worst_tenth": last.worst_tenth,
        "gain": values[-1] - values[0],
        "auc": float(np.trapezoid(values, curve.steps) / curve.steps[-1]) if curve.steps[-1] else values[0],
    }
    if last.solved is not None:
        scalars["solved_after"] = last.solved
    if curve.total:
        scalars["trial_return"] = curve.total.mean
    if curve.differences:
        for name, each in zip(("", "_demonstrated"), curve.differences, strict=True):
            known = list(zip(curve.steps, each, strict=True))[bool(name) :]  # nothing is demonstrated before the first
            steps = {f"value_difference{name}_step_{k}": x.value for k, x in known}
            scalars |= steps | {f"value_difference{name}": each[-1].value}
    for group, points in curve.groups.items():
        scalars |= {f"return_before_{group}": points[0].value, f"return_after_{group}": points[-1].value}
    return {f"{prefix}/{name}": value for name, value in scalars.items()}


def reference_metrics(report: Report, prefix: str) -> dict[str, float]:
    """Return the metrics of the references and of sampled actions."""
    scalars = {"return_random": report.random.points[0].value}
    if report.scratch:
        scalars["return_scratch"] = report.scratch.points[-1].value
    if report.own_tasks:
        scalars["return_learned"] = report.own_tasks.value
    for name in ("robust", "oracle"):
        if level := getattr(report, name):
            scalars[f"return_{name}"] = level.points[0].value
    if report.normalised:
        scalars |= {f"normalised_score_step_{k}": s.value for k, s in zip(report.curve.steps, report.normalised, strict=True)}
        scalars["normalised_score_before"], last = report.normalised[0].value, report.normalised[-1]
        scalars |= {"normalised_score": last.value, "normalised_score_low": last.low, "normalised_score_high": last.high}
    if report.optimum is not None and report.regret is not None:
        scalars["return_optimum"] = report.optimum.points[0].value
        scalars["regret_after"] = report.optimum.summaries[0].mean - report.curve.summaries[-1].mean  # both per episode
        scalars["regret"] = report.regret
    if report.sampled and report.sampled.total:
        scalars["return_sampled_after"] = report.sampled.points[-1].value
        scalars["trial_return_sampled"] = report.sampled.total.mean
    return {f"{prefix}/{name}": value for name, value in scalars.items()}
