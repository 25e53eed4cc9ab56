"""Test results in a run folder, and the checkpoints they were measured with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, model_validator

from metarl_cli.errors import UserError
from metarl_cli.evaluation import probe_report
from metarl_cli.evaluation.curves import UNKNOWN, Levels, Report
from metarl_cli.evaluation.evaluator import Evaluator
from metarl_cli.evaluation.pictures import png
from metarl_cli.evaluation.probe import Probe, probe
from metarl_cli.evaluation.report import SHARED, as_json, figure
from metarl_cli.interfaces import Algorithm, Budget, num_tasks
from metarl_cli.runs.checkpoint import count, fitting, load
from metarl_cli.runs.files import read_json, write_json, write_whole
from metarl_cli.runs.folder import RunFolder

Number = float | None  # JSON has no number that is not finite
PROBE = "probe-"  # how the names of results of another form begin


class Estimate(BaseModel):
    """The form of an interval; its bounds are null where there is none."""

    model_config = ConfigDict(strict=True, extra="forbid")

    value: Number
    low: Number
    high: Number


class Points(BaseModel):
    """The form of a curve in a result: P points of M tasks."""

    model_config = ConfigDict(strict=True)

    iqm: list[Estimate] | None = None
    mean: list[Estimate] | None = None  # in its place, for the episodes of a trial
    steps: list[int]
    gradient_steps: list[int]
    env_steps: list[int]
    task_returns: list[list[Number]]

    @model_validator(mode="after")
    def _equally_long(self) -> Points:
        points = self.iqm if self.iqm is not None else self.mean
        if points is None:
            raise ValueError("it has neither iqm nor mean")
        columns = (points, self.steps, self.gradient_steps, self.env_steps, self.task_returns)
        if not points:
            raise ValueError("it has no points")
        if len({len(column) for column in columns}) > 1 or len({len(row) for row in self.task_returns}) > 1:
            raise ValueError("its columns differ in length")
        return self


class Tasks(BaseModel):
    """The form of the tasks of a result."""

    model_config = ConfigDict(strict=True)

    hash: str
    each: list[str] = []  # [M] their hashes; earlier versions did not write them


class Result(BaseModel):
    """The form of ``results/*.json``, as far as it is the same for all."""

    model_config = ConfigDict(strict=True)

    split: Literal["validation", "test", "ood"]
    env_steps: int
    episodes: int
    tasks: Tasks
    adapted: Points
    sampled: Points | None
    from_scratch: Points | None
    random: Points

    @model_validator(mode="after")
    def _of_these_tasks(self) -> Result:
        if self.tasks.each and any(len(row) != len(self.tasks.each) for row in self.adapted.task_returns):
            raise ValueError("it has returns of other tasks than it names")
        return self


class AdaptedResult(BaseModel):
    """The form of ``adapted/*/adaptation.json``: returns along the adaptation to one task, at P points."""

    model_config = ConfigDict(strict=True)

    task: dict[str, Any]
    returns: list[Estimate]
    gradient_steps: list[int]
    env_steps: list[int]
    sampled: list[Estimate] | None
    played: dict[str, Any] | None


class Effect(BaseModel):
    """The form of what a support leads to."""

    model_config = ConfigDict(strict=True)

    support: str
    tasks: list[int]
    task_returns: list[Number]
    mean: Estimate
    worst_tenth: Number
    difference: Estimate
    share_of_range: Estimate | None


class ProbeResult(BaseModel):
    """The form of ``results/probe-*.json``."""

    model_config = ConfigDict(strict=True)

    split: Literal["validation", "test", "ood"]
    env_steps: int
    episodes: int
    tasks: Tasks
    effects: list[Effect]


def read_result(path: Path) -> dict[str, Any]:
    """Read a test result.

    Raises:
        UserError: if it cannot be read, is damaged or was changed.
    """
    return read_json(path, Result)


def read_results(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """Read every test result of a run, by the name of its file.

    Raises:
        UserError: if one cannot be read, is damaged or was changed.
    """
    paths = sorted(folder.results.glob("*.json"))
    return {path.stem: read_result(path) for path in paths if not path.stem.startswith(PROBE)}


class Measured(NamedTuple):
    """A report, and its figure as a PNG."""

    report: Report
    figure: bytes


def measure(
    folder: RunFolder,
    evaluator: Evaluator,
    algorithm: Algorithm,
    budget: Budget,
    env_steps: int,
    name: str,
    levels: Levels = UNKNOWN,
) -> Measured:
    """Test on the evaluator's tasks and write the result to ``results/<name>.json`` and ``.png``.

    Args:
        folder: the run folder.
        evaluator: evaluates on its tasks.
        algorithm: the algorithm, with the weights to test loaded.
        budget: the budget of adaptation.
        env_steps: environment steps of meta-training up to these weights.
        name: file name without its ending.
        levels: of the references on these tasks.
    """
    folder.make_results()  # before the work
    report = evaluator.report(algorithm, budget, levels=levels)
    task, split = evaluator.task, evaluator.split
    values = as_json(report, task, {"split": split, "env_steps": env_steps})
    write_json(folder.results / f"{name}.json", finite(values), Result)
    picture = png(figure(report, f"{folder.path.name}: {num_tasks(task)} {split} tasks{SHARED if report.shared else ''}"))
    write_whole(folder.results / f"{name}.png", picture)
    return Measured(report, picture)


def measure_probe(
    folder: RunFolder,
    evaluator: Evaluator,
    algorithm: Algorithm,
    budget: Budget,
    env_steps: int,
    name: str,
    levels: Levels,
) -> Probe:
    """Measure what the adaptation uses and write the result to ``results/<name>.json`` and ``.png``; see :func:`measure`."""
    folder.make_results()
    measured = probe(evaluator, algorithm, budget, levels)
    task, split = evaluator.task, evaluator.split
    extra = {"split": split, "env_steps": env_steps, "episodes": evaluator.episodes}
    write_json(folder.results / f"{name}.json", finite(probe_report.as_json(measured, task, extra)), ProbeResult)
    picture = png(probe_report.figure(measured, f"{folder.path.name}: {num_tasks(task)} {split} tasks"))
    write_whole(folder.results / f"{name}.png", picture)
    return measured


def load_weights(folder: RunFolder, algorithm: Algorithm, checkpoint: str) -> int:
    """Load the weights of the ``best`` or ``last`` checkpoint; return their environment steps of meta-training.

    Raises:
        UserError: if the checkpoint does not exist, is damaged or does not fit the run's configuration.
    """
    path = folder.checkpoint(checkpoint)
    if not path.exists():
        other = folder.checkpoint("last" if checkpoint == "best" else "best")
        if folder.finished:
            why = f"{path.name} is gone"
        else:
            why = f"it has no {checkpoint} checkpoint yet ({path.name}); is it still training?"
        advice = f"; take the other one with checkpoint={other.stem}" if other.exists() else ""
        raise UserError(f"cannot test {folder}: {why}{advice}")
    state = load(path)
    with fitting(path):
        algorithm.load_weights(state["algorithm"]["weights"])
        return count(state["env_steps"])


def finite(values: dict[str, Any]) -> dict[str, Any]:
    """Return values as JSON has them, with null in the place of numbers that are not finite."""
    plain: dict[str, Any] = json.loads(json.dumps(values), parse_constant=lambda constant: None)
    return plain
