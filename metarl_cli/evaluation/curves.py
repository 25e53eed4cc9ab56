"""Adaptation curves: the results of an evaluation, and their metrics under the tags that all algorithms share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from metarl_cli.evaluation.statistics import Interval, Scores


class Total(NamedTuple):
    """The return of whole trials, summed over their episodes: mean over tasks and trials, standard error over tasks.

    For a single task the standard error is over its trials.
    """

    episodes: int
    mean: float
    standard_error: float | None  # None for a single trial
    each: list[float]  # [episodes] mean return of every episode

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.standard_error is None else f" ± {self.standard_error:.2f}")


class Curve(NamedTuple):
    """Returns along adaptation to M tasks, with E repeats, at P points: adaptation steps, or episodes of a trial."""

    steps: list[int]  # [P] adaptation steps, or episodes of a trial before this one
    returns: Scores  # [P, E, M]
    points: list[Interval]  # [P] IQM over tasks and repeats, with its interval over both; the mean for episodes of a trial
    gradient_steps: list[int]  # [P] per task
    env_steps: list[int]  # [P] per task
    groups: dict[str, list[Interval]]  # [P] per group of tasks with comparable returns; ``points`` are then their averages
    total: Total | None = None  # of whole trials

    @property
    def score(self) -> float:
        """Return the score that ranks algorithms: the return after the last adaptation step, or per episode of a trial.

        All episodes of a trial count: exploration is part of the task, and the last episode may be a single pull of a bandit.
        """
        return self.total.mean / self.total.episodes if self.total else self.points[-1].value


class Report(NamedTuple):
    """The curve of an algorithm, and its references on the same tasks at the same budget."""

    curve: Curve
    sampled: Curve | None  # the same trials with sampled actions; None for a deterministic policy
    scratch: Curve | None  # the same learner from fresh weights; None for an algorithm without gradient steps
    random: Curve
    own_tasks: Interval | None  # on the training tasks, if each is learned independently
    optimum: Scores | None  # [M] returns of the oracle, the optimal policy that knows the task; None if unknown
    best: Interval | None  # the return of the oracle over the tasks

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
        """Return the regret of a trial: the oracle's return minus the return, mean over tasks; None if unknown."""
        if self.total is None or self.optimum is None:
            return None
        return self.total.episodes * float(self.optimum.mean()) - self.total.mean


def metrics(curve: Curve, prefix: str) -> dict[str, float]:
    """Return the metrics of a curve, under the tags that all algorithms share."""
    points, values = curve.points, [point.value for point in curve.points]
    scalars = {f"return_step_{k}": value for k, value in zip(curve.steps, values, strict=True)}
    scalars |= {
        "return_before": values[0],
        "return_after": values[-1],
        "return_after_low": points[-1].low,
        "return_after_high": points[-1].high,
        "gain": values[-1] - values[0],
        "auc": float(np.trapezoid(values, curve.steps) / curve.steps[-1]) if curve.steps[-1] else values[0],
    }
    if curve.total:
        scalars["trial_return"] = curve.total.mean
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
    if report.optimum is not None and report.best is not None:
        scalars["return_optimum"] = report.best.value
        scalars["regret_after"] = float((report.optimum - report.curve.returns[-1].mean(0)).mean())  # per episode
    if report.regret is not None:
        scalars["regret"] = report.regret
    if report.sampled and report.sampled.total:
        scalars["return_sampled_after"] = report.sampled.points[-1].value
        scalars["trial_return_sampled"] = report.sampled.total.mean
    return {f"{prefix}/{name}": value for name, value in scalars.items()}
