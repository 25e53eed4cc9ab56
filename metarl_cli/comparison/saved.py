"""Finished runs: what they were, what they cost, and what they came to, as their folders keep it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from metarl_cli.config.base import result_values
from metarl_cli.errors import UserError
from metarl_cli.evaluation.statistics import Scores
from metarl_cli.runs import shipped
from metarl_cli.runs.files import read, read_json
from metarl_cli.runs.folder import RunFolder, read_config
from metarl_cli.runs.naming import leaves
from metarl_cli.runs.results import Points, Result

AXES = {"env_steps": "step", "seconds": "time/training_seconds", "iterations": "train/iteration"}  # of learning curves
LEARNING = "eval/return_after_mean"  # the return on validation tasks that a learning curve shows
LEARNING_IQM = "eval/return_after"  # the same as an IQM over tasks
LARGEST_LOG = 2**28  # [bytes] of a log: a hundred thousand lines have less
FOLDS, FOLD = "train.folds", "train.fold"
SPLITS = ("test", "ood")  # of held-out tasks that have results
FREE = ("chunk", "processes", "log_every", "checkpoint_every")  # last words of keys that change no result
MOST = 2**63  # no count reaches it
Count = Annotated[int, Field(ge=0, lt=MOST)]
Number = float | None  # JSON has no number that is not finite


class Beside(BaseModel):
    """The form of what stands beside the IQM."""

    model_config = ConfigDict(strict=True)

    solved: Annotated[float, Field(ge=0, le=1)] | None


class Adapted(Points):
    """The form of an adaptation, as far as reports read it."""

    steps: list[Count]
    gradient_steps: list[Count]
    env_steps: list[Count]
    beside: list[Beside] | None = None


class Level(BaseModel):
    """The form of a reference."""

    model_config = ConfigDict(strict=True)

    task_returns: list[Number]


class Readable(Result):
    """The form of a result, as far as reports read it."""

    adapted: Adapted
    robust: Level | None = None
    oracle: Level | None = None
    optimum: list[Number] | None = None

    @model_validator(mode="after")
    def _of_as_many_tasks(self) -> Readable:
        num = len(self.adapted.task_returns[0])
        known = [level.task_returns for level in (self.robust, self.oracle) if level] + [self.optimum or [None] * num]
        if not num or any(len(returns) != num for returns in known):
            raise ValueError("its curves and references are not of the same tasks, or of none")
        if self.adapted.beside is not None and len(self.adapted.beside) != len(self.adapted.steps):
            raise ValueError("adapted: its columns differ in length")
        return self


class Curve(NamedTuple):
    """Returns of M tasks at P points of an adaptation."""

    steps: list[int]  # [P] of adaptation, or episodes of a trial before this one
    gradient_steps: list[int]  # [P]
    env_steps: list[int]  # [P] per task
    scores: Scores  # [P, M]
    solved: list[float | None]  # [P] share of tasks

    def until(self, step: int) -> Curve:
        """Return the curve up to a step, which it has."""
        return self.until_point(self.steps.index(step))

    def until_point(self, point: int) -> Curve:
        """Return the curve up to a point."""
        end = point + 1
        return Curve(self.steps[:end], self.gradient_steps[:end], self.env_steps[:end], self.scores[:end], self.solved[:end])


class Tested(NamedTuple):
    """The result of one split."""

    tasks: str  # the hash of the held-out tasks
    episodes: int  # of each task and point
    trial: bool  # whether the points are episodes of a trial
    adapted: Curve
    references: dict[str, Scores]  # robust, oracle, optimum, random [M], as far as the run knows them


class Saved(NamedTuple):
    """A run."""

    path: Path
    status: str
    choices: dict[str, str]  # the option of each config group
    overridden: list[str]
    seed: int
    config: dict[str, Any]  # its config.yaml, without the seed
    values: dict[str, Any]  # by dotted key, all that can change a result but the seed
    git: str
    results: dict[str, Tested]  # by split
    tested: Tested | None  # on the split of the report; None: not tested there
    learning: dict[str, Scores]  # LEARNING, its IQM and each of AXES, as far as logged, at the evaluations of training
    env_steps: int
    seconds: float
    memory: int | None  # [bytes] the largest; None: a run of an older version
    gpu_memory: int | None
    prolonged: bool  # whether it was given more iterations when it had finished
    unchecked: list[str]  # why its configuration cannot be checked here

    @property
    def notes(self) -> list[str]:
        """What a reader of its numbers has to know, said of "it"."""
        prolonged = "was given more iterations when it had finished, which is not as if it had them from the start"
        return [*([prolonged] if self.prolonged else []), *self.unchecked]

    @property
    def order(self) -> tuple[int, str]:
        """What runs of a group are ordered by: the seed, and the name."""
        return self.seed, self.path.name

    @property
    def env(self) -> str:
        """The option of its environment."""
        return self.choices.get("env", "")

    @property
    def folds(self) -> str:
        """The cross-validation that it is a part of, in words; empty where it is none."""
        num = self.values.get(FOLDS)
        return f"{num} folds of {self.values.get('train.pool')} tasks" if num else ""


def folders(paths: Sequence[str | Path]) -> list[Path]:
    """Return the run folders at or below some paths, each once, in the order of their names.

    Raises:
        UserError: if a path is neither a folder nor ``zoo:NAME``.
    """
    return sorted({each.resolve(): each for path in reversed(paths) for each in _below(shipped.find(path))}.values())


def _below(path: Path) -> Iterator[Path]:
    """Yield the run folders at or below a path; links are not followed."""
    if not os.path.isdir(path):
        raise UserError(f"{path}: no such file or folder")
    for place, inside, names in os.walk(path, onerror=_cannot_read):
        if "run.json" in names:
            inside.clear()
            yield Path(place)


def _cannot_read(error: OSError) -> None:
    raise UserError(f"cannot read {error.filename}: {error.strerror}") from error


def load(path: Path, split: str) -> Saved:
    """Read a run folder, with its result on a split as what is compared.

    Raises:
        UserError: if it cannot be read, is damaged, was changed or is of another format.
    """
    folder = RunFolder(path)
    manifest, log, learning = folder.manifest(), path / "metrics.jsonl", dict[str, Scores]()
    choices = {group: option for group, option in manifest["choices"].items() if option is not None}
    config = {key: value for key, value in folder.values().items() if key != "seed"}
    values, notes = compared_values(config, choices)
    env_steps, seconds, results = 0, 0.0, dict[str, Tested]()
    if log.exists():
        learning, env_steps, seconds = read_log(log)
    if manifest["status"] == "finished":
        files = {name: path / "results" / f"{name}.json" for name in SPLITS}
        results = {name: _tested(read_json(file, Readable)) for name, file in files.items() if file.exists()}
    return Saved(
        path,
        manifest["status"],
        choices,
        manifest.get("overridden", []),
        manifest["seed"],
        config,
        values,
        str(manifest.get("git")),
        results,
        results.get(split),
        learning,
        env_steps,
        seconds,
        manifest.get("memory"),
        manifest.get("gpu_memory"),
        bool(manifest.get("iterations")),
        notes,
    )


def compared_values(config: Mapping[str, Any], choices: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Return what can change a result, by dotted key, and a note where the configuration cannot be checked here.

    Args:
        config: of a run, all but the seed.
        choices: the option of each config group.
    """
    notes = list[str]()
    try:
        values = result_values(read_config({**config, "seed": 0}, None, "it", choices))
        demonstrator = config.get("demonstrator")  # the hash of its weights
        values["demonstrator"] = demonstrator if isinstance(demonstrator, str) else None
    except UserError as error:  # a package that is missing here, or of another version
        values = {key: value for key, value in config.items() if key != "hardware"}
        notes.append(f"is compared by the values in its file, which cannot be checked here: {error.problems[0].text}")
    return {key: value for key, value in leaves(values) if key != "seed" and key.split(".")[-1] not in FREE}, notes


def _tested(result: Mapping[str, Any]) -> Tested:
    adapted, beside = result["adapted"], result["adapted"].get("beside")
    scores = _numbers(adapted["task_returns"])
    references = {role: _numbers(result[role]["task_returns"]) for role in ("robust", "oracle") if result.get(role)}
    references["random"] = _numbers(result["random"]["task_returns"][0])
    if result.get("optimum"):
        references["optimum"] = _numbers(result["optimum"])
    return Tested(
        result["tasks"]["hash"],
        result["episodes"],
        result.get("trial") is not None,
        Curve(
            adapted["steps"],
            adapted["gradient_steps"],
            adapted["env_steps"],
            scores,
            [each["solved"] for each in beside] if beside else [None] * len(scores),
        ),
        references,
    )


def _numbers(values: Any) -> Scores:
    """Return JSON's numbers; null is not a number."""
    return np.array(values, dtype=np.float64)


def read_log(path: Path) -> tuple[dict[str, Scores], int, float]:
    """Return the evaluations of training, and the environment steps and seconds it took.

    An evaluation has the seconds and the iteration of the line before it that names them. No other lines are parsed, and a
    line that is torn or no JSON is left out: a run in training may be writing it.
    """
    rows, lines = list[dict[str, float]](), read(path, LARGEST_LOG).decode(errors="replace").splitlines()
    clock, since = dict[str, float](), list[str]()  # at the last evaluation; lines since, that may have a clock
    for line in lines:
        if LEARNING in line and LEARNING in (values := entry(line)):
            clock = last_clock(since, len(since)) or clock
            since.clear()
            rows.append(clock | values)
        if AXES["seconds"] in line:
            since.append(line)
    known = [key for key in (LEARNING_IQM, *AXES.values()) if rows and all(key in row for row in rows)]
    learning = {key: np.array([row[key] for row in rows]) for key in (LEARNING, *known) if rows}
    last = next((int(values["step"]) for line in reversed(lines) if "step" in (values := entry(line))), 0)
    return learning, last, last_clock(lines, len(lines)).get(AXES["seconds"], 0.0)


def last_clock(lines: Sequence[str], place: int) -> dict[str, float]:
    """Return the numbers of the last line of a log before ``place`` that says how long training took; none without one."""
    key = AXES["seconds"]
    for k in range(place - 1, -1, -1):
        if key in lines[k] and key in (values := entry(lines[k])):
            return values
    return {}


def entry(line: str) -> dict[str, float]:
    """Return the finite numbers of a line of a log; none where it is no JSON object."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    numbers = values.items() if isinstance(values, dict) else ()
    return {key: float(value) for key, value in numbers if isinstance(value, int | float) and abs(value) < MOST}
