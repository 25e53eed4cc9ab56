"""The returns of the robust policy and of the oracle on held-out tasks: of runs that the user names, or measured before.

Both are found by a hash of each single task, in any of the results of a run, or in the files of ``evaluation/levels``. Each of
those holds what was measured for one configuration of an environment; they are read as data, and written by
:func:`write_levels`.

A run's robust level is its return before adaptation, as a policy that cannot know the task has not adapted; its oracle level
is its return after. A run that does not adapt has one point, which is both.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

import metarl_cli.evaluation
from metarl_cli.config.models import TrainConfig
from metarl_cli.errors import UserError
from metarl_cli.evaluation.curves import UNKNOWN, Level, Levels
from metarl_cli.evaluation.evaluator import Evaluator
from metarl_cli.evaluation.held_out import task_hashes
from metarl_cli.runs.files import read_json, write_json
from metarl_cli.runs.folder import LOCATION_KEYS, RunFolder
from metarl_cli.runs.naming import environment, leaves
from metarl_cli.runs.results import read_results

Returns = dict[str, float]  # mean return of an episode, by the hash of its task
Folders = str | Path | Sequence[str | Path] | None  # of one run, or of several seeds
Role = Literal["robust", "oracle"]
POINT = {"robust": 0, "oracle": -1}  # of the curve of a reference
SHIPPED = Path(metarl_cli.evaluation.__file__).parent / "levels"


class Source(BaseModel):
    """The form of where a level comes from."""

    model_config = ConfigDict(strict=True, extra="forbid")

    runs: list[str]  # their commands
    env_steps: list[int]  # of the training of each


class File(BaseModel):
    """The form of a file of measured levels."""

    model_config = ConfigDict(strict=True)

    environment: dict[str, Any]
    tasks: list[str]  # [M] their hashes
    robust: list[float] | None  # [M]
    oracle: list[float] | None  # [M]
    sources: dict[Role, Source]

    @model_validator(mode="after")
    def _equally_long(self) -> File:
        if any(column is not None and len(column) != len(self.tasks) for column in (self.robust, self.oracle)):
            raise ValueError("its columns differ in length")
        return self


def find_levels(config: TrainConfig, evaluator: Evaluator, robust: Folders, oracle: Folders) -> Levels:
    """Return the levels of the evaluator's tasks: of the runs in these folders, else measured ones, else none.

    Where a family computes its optimum, that takes the place of a measured oracle.

    Raises:
        UserError: if a run cannot be read, or has no result on these tasks; the message says what makes one.
    """
    named, path = _named(robust, oracle), _file(environment(config), SHIPPED)
    if not named and not path.exists():
        return UNKNOWN
    hashes = task_hashes(evaluator.task)
    measured = _measured(path, hashes)
    if measured.oracle and evaluator.family.optimum(evaluator.task) is not None:
        measured = measured._replace(oracle=None)
    return measured._replace(**{role: _of_runs(role, runs, config, evaluator.split, hashes) for role, runs in named})


def _named(robust: Folders, oracle: Folders) -> list[tuple[Role, list[Path]]]:
    """Return the folders of each reference that was named."""
    named: list[tuple[Role, list[Path]]] = [("robust", _paths(robust)), ("oracle", _paths(oracle))]
    return [(role, folders) for role, folders in named if folders]


def _paths(folders: Folders) -> list[Path]:
    return [Path(folders)] if isinstance(folders, str | Path) else [Path(folder) for folder in folders or []]


def _of_runs(role: Role, folders: Sequence[Path], config: TrainConfig, split: str, hashes: list[str]) -> Level:
    """Return the level of the tasks in runs of several seeds: the mean over them."""
    columns = []
    for path in folders:
        folder, num = RunFolder(path), len(hashes)
        other = folder.config()
        if different := _difference(environment(other), environment(config)):
            raise UserError(f"{role}={path}: it was trained on another environment: {different}")
        known = returns_in(folder, POINT[role])
        if not set(hashes) <= set(known):
            text = f"{role}={path} has no result on these {num} {split} tasks"
            if other.tasks_seed != config.tasks_seed:
                raise UserError(f"{text}: its own are those of tasks_seed={other.tasks_seed}, not of {config.tasks_seed}")
            raise UserError(f"{text}; make it with: {folder.command('test')} split={split} tasks={num}")
        columns.append([known[each] for each in hashes])
    names = folders[0].name if len(folders) == 1 else f"the mean of {', '.join(path.name for path in folders)}"
    return Level(np.mean(columns, axis=0), names)


def _difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """Describe the first value in which two environments differ; empty where they are equal."""
    one, two = dict(leaves(theirs)), dict(leaves(ours))
    differ = (key for key in {**one, **two} if one.get(key) != two.get(key))
    return next((f"env.{key}={one.get(key)}, not {two.get(key)}" for key in differ), "")


def returns_in(folder: RunFolder, point: int) -> Returns:
    """Return what the best weights of a run returned at a point of the curve, by task.

    Where several results have a task, that of the latest weights counts, and among these that of most episodes.
    """
    results = [values for name, values in read_results(folder).items() if name.split("-")[1:2] != ["last"]]
    known: Returns = {}
    for values in sorted(results, key=lambda values: (values["env_steps"], values["episodes"])):
        known |= _by_task(values["tasks"].get("each", []), values["adapted"]["task_returns"][point])
    return known


def _by_task(hashes: Iterable[str], returns: Iterable[float | None]) -> Returns:
    """Return the mean return of each task; a family with few tasks may have one of them several times. None: not finite."""
    together: dict[str, list[float]] = {}
    for each, value in zip(hashes, returns, strict=False):  # results of an earlier version have no hashes
        together.setdefault(each, []).append(math.nan if value is None else value)
    return {each: float(np.mean(values)) for each, values in together.items()}


# -- levels measured before


def _file(environment: dict[str, Any], folder: Path) -> Path:
    """Return the file with the levels of an environment."""
    digest = hashlib.sha256(json.dumps(environment, sort_keys=True).encode()).hexdigest()[:12]
    return folder / f"{environment['module']}-{digest}.json"


def _measured(path: Path, hashes: list[str]) -> Levels:
    """Return the levels in a file; none where it does not exist, or does not have each of the tasks."""
    if not path.exists():
        return UNKNOWN
    values = read_json(path, File)
    if not set(hashes) <= set(values["tasks"]):
        return UNKNOWN
    place = {each: i for i, each in enumerate(values["tasks"])}
    rows = [place[each] for each in hashes]

    def level(role: Role) -> Level | None:
        if values[role] is None:
            return None
        runs = len(values["sources"][role]["runs"])
        return Level(np.array(values[role])[rows], f"measured before, {runs} run{'s' if runs > 1 else ''}")

    return Levels(level("robust"), level("oracle"))


def write_levels(robust: Folders, oracle: Folders, into: Path | None = None) -> Path:
    """Write the levels of the tasks that runs were tested on, for everyone who tests on these tasks; returns the file.

    Args:
        robust: folders of runs that cannot know the task, one for each seed; None: the file has no such level.
        oracle: likewise, of runs that are given the task.
        into: the folder of the file; None: where they are looked up.

    Raises:
        UserError: if a run cannot be read, the runs are of different environments, or have no task in common.
    """
    named = _named(robust, oracle)
    folders = [RunFolder(path) for _, paths in named for path in paths]
    if not folders:
        raise UserError("no run to take levels from")
    shared = environment(folders[0].config())
    for folder in folders:
        if different := _difference(environment(folder.config()), shared):
            raise UserError(f"{folder}: it was trained on another environment than {folders[0]}: {different}")
    returns = {role: [returns_in(RunFolder(path), POINT[role]) for path in paths] for role, paths in named}
    every = [known for runs in returns.values() for known in runs]
    tasks = [each for each in every[0] if all(each in known for known in every)]
    if not tasks:
        raise UserError(f"{', '.join(map(str, folders))}: they were tested on no task together")
    columns = {role: [float(np.mean([known[each] for known in runs])) for each in tasks] for role, runs in returns.items()}
    values = {
        "environment": shared,
        "tasks": tasks,
        "robust": columns.get("robust"),
        "oracle": columns.get("oracle"),
        "sources": {role: _source([RunFolder(path) for path in paths]) for role, paths in named},
    }
    into = into or SHIPPED
    path = _file(shared, into)
    into.mkdir(parents=True, exist_ok=True)
    write_json(path, values, File)
    return path


def _source(folders: list[RunFolder]) -> dict[str, Any]:
    steps = [max((values["env_steps"] for values in read_results(folder).values()), default=0) for folder in folders]
    words = [shlex.split(folder.manifest()["command"]) for folder in folders]
    places = tuple(f"{key}=" for key in LOCATION_KEYS)
    commands = [shlex.join(word for word in each if not word.startswith(places)) for each in words]
    return {"runs": commands, "env_steps": steps}
