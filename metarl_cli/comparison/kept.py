"""Many runs in one file: what reports need of them, without their folders.

``metarl report FOLDER ... format=runs`` writes ``runs.json``, and reports read such a file wherever they read folders. Runs of
one configuration stand together, each on a line of its own:

    {"format": 1, "configurations": [
    {"choices": {"algo": "maml_dqn", ...}, "overridden": [...], "config": {config.yaml without the seed}, "runs": [
    {"run": "NAME", "seed": 0, "status": "finished", "git": "...", "env_steps": 6400000, "seconds": 132.0, ...,
     "learning": {"eval/return_after_mean": [...], "step": [...], ...},
     "results": {"test": {
         "tasks": HASH, "episodes": 5, "trial": false, "references": {"random": [M], "oracle": [M], ...},
         "adapted": {"steps": [P], "gradient_steps": [P], "env_steps": [P], "returns": [P][M], "solved": [P]}}, ...}}
    ]}
    ]}

A number that is not known is null. Such a file may be a stranger's: its size is bounded, its form is checked, and nothing in it
is more than data.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from metarl_cli.comparison.saved import AXES, LEARNING, LEARNING_IQM, SPLITS, Count, Curve, Saved, Tested, compared_values
from metarl_cli.errors import UserError
from metarl_cli.runs.files import LARGEST_TEXT, read_json, write_whole
from metarl_cli.runs.results import finite

FORMAT = 1
Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class Form(BaseModel):
    """A part of the file."""

    model_config = ConfigDict(strict=True, extra="forbid")


class KeptCurve(Form):
    """The form of a :class:`Curve`."""

    steps: list[Count] = Field(min_length=1)
    gradient_steps: list[Count]
    env_steps: list[Count]
    returns: list[list[Number | None]]
    solved: list[Share | None]

    @model_validator(mode="after")
    def _equally_long(self) -> KeptCurve:
        columns = (self.steps, self.gradient_steps, self.env_steps, self.returns, self.solved)
        if len({len(column) for column in columns}) > 1:
            raise ValueError("its columns differ in length")
        return self


class KeptResult(Form):
    """The form of a :class:`Tested`."""

    tasks: str
    episodes: Count
    trial: bool
    adapted: KeptCurve
    references: dict[Literal["robust", "oracle", "optimum", "random"], list[Number | None]]

    @model_validator(mode="after")
    def _of_as_many_tasks(self) -> KeptResult:
        nums = {len(returns) for returns in (*self.adapted.returns, *self.references.values())}
        if len(nums) > 1 or nums == {0}:
            raise ValueError("its curves and references are not of the same tasks, or of none")
        return self


class KeptRun(Form):
    """The form of a run."""

    run: str = Field(pattern=r"^[^/\x00]{1,255}$")
    seed: Count
    status: str
    git: str
    env_steps: Count
    seconds: Annotated[Number, Field(ge=0)]
    memory: Count | None = None
    gpu_memory: Count | None = None
    prolonged: bool = False
    learning: dict[str, list[Number]] = {}
    results: dict[Literal["test", "ood"], KeptResult]

    @model_validator(mode="after")
    def _learning(self) -> KeptRun:
        unknown = self.learning.keys() - {LEARNING, LEARNING_IQM, *AXES.values()}
        if unknown or len({len(values) for values in self.learning.values()}) > 1:
            raise ValueError("learning: its curves differ in length, or are none that reports know")
        if self.learning and not self.learning.get(LEARNING):
            raise ValueError(f"learning: it has no {LEARNING}")
        return self


class Configuration(Form):
    """The form of a configuration, and of its runs."""

    choices: dict[str, str]
    overridden: list[str] = []
    config: dict[str, Any]
    runs: list[KeptRun]


class File(Form):
    """The form of the file."""

    format: int
    configurations: list[Configuration]

    @field_validator("format")
    @classmethod
    def _known(cls, number: int) -> int:
        if number != FORMAT:
            raise ValueError(f"this version of metarl reads format {FORMAT}, and the file is of format {number}")
        return number


def read(path: Path, split: str) -> list[Saved]:
    """Read the runs in a file, with their results on a split.

    Raises:
        UserError: if it cannot be read, or does not have the form that :func:`text` gives.
    """
    file = read_json(path.resolve() if path.is_symlink() else path, File, complete=False)
    try:
        return [run for configuration in file["configurations"] for run in _runs(path, configuration, split)]
    except RecursionError as error:
        raise UserError(f"cannot read {path}: it is nested too deeply") from error


def _runs(path: Path, configuration: Mapping[str, Any], split: str) -> Iterator[Saved]:
    config, choices = configuration["config"], configuration["choices"]
    values, unchecked = compared_values(config, choices)
    for run in configuration["runs"]:
        results = {name: _tested(result) for name, result in run["results"].items()}
        yield Saved(
            path / run["run"],
            run["status"],
            choices,
            configuration.get("overridden", []),
            run["seed"],
            config,
            values,
            run["git"],
            results,
            results.get(split),
            {name: np.array(curve, dtype=np.float64) for name, curve in run.get("learning", {}).items()},
            run["env_steps"],
            run["seconds"],
            run.get("memory"),
            run.get("gpu_memory"),
            run.get("prolonged", False),
            unchecked,
        )


def _tested(result: Mapping[str, Any]) -> Tested:
    adapted = result["adapted"]
    return Tested(
        result["tasks"],
        result["episodes"],
        result["trial"],
        Curve(
            adapted["steps"],
            adapted["gradient_steps"],
            adapted["env_steps"],
            np.array(adapted["returns"], dtype=np.float64),
            adapted["solved"],
        ),
        {role: np.array(returns, dtype=np.float64) for role, returns in result["references"].items()},
    )


def text(runs: Iterable[Saved]) -> str:
    """Return the file of some runs; :func:`read` gives the same runs.

    Configurations stand in the order of their texts, which begin with the algorithm; their runs by seed, and by name.

    Raises:
        UserError: if it would be larger than what can be read again.
    """
    configurations = dict[str, list[str]]()
    for run in sorted(runs, key=lambda run: run.order):
        head = json.dumps({"choices": run.choices, "overridden": run.overridden, "config": run.config})
        configurations.setdefault(head, []).append(json.dumps(finite(_plain(run)), allow_nan=False))
    parts = [f'{head[:-1]}, "runs": {_listed(lines)}}}' for head, lines in sorted(configurations.items())]
    content = f'{{"format": {FORMAT}, "configurations": {_listed(parts)}}}\n'
    if len(content) > LARGEST_TEXT:
        size, most = len(content) / 1e6, LARGEST_TEXT / 1e6
        raise UserError(f"format=runs: the file would have {size:,.0f} MB, more than the {most:,.0f} MB that are read again")
    return content


def _listed(lines: Sequence[str]) -> str:
    """Return a list in JSON with each part on lines of its own."""
    joined = ",\n".join(lines)
    return f"[\n{joined}\n]"


def write(path: Path, runs: Iterable[Saved]) -> None:
    """Write some runs into a file, whole or not at all.

    Raises:
        DiskFault: if it cannot be written.
        UserError: if it would be larger than what can be read again.
    """
    write_whole(path, text(runs).encode())


def _plain(run: Saved) -> dict[str, Any]:
    known = {
        "memory": run.memory,
        "gpu_memory": run.gpu_memory,
        "prolonged": run.prolonged,
        "learning": {name: curve.tolist() for name, curve in run.learning.items()},
    }
    name = run.path.name or run.path.resolve().name  # the path may be "."
    return {
        "run": name.encode(errors="replace").decode(),  # a folder's name may be no text
        "seed": run.seed,
        "status": run.status,
        "git": run.git,
        "env_steps": run.env_steps,
        "seconds": run.seconds,
        **{name: value for name, value in known.items() if value},
        "results": {split: _result(run.results[split]) for split in SPLITS if split in run.results},
    }


def _result(tested: Tested) -> dict[str, Any]:
    curve = tested.adapted
    return {
        "tasks": tested.tasks,
        "episodes": tested.episodes,
        "trial": tested.trial,
        "references": {role: returns.tolist() for role, returns in tested.references.items()},
        "adapted": {
            "steps": curve.steps,
            "gradient_steps": curve.gradient_steps,
            "env_steps": curve.env_steps,
            "returns": curve.scores.tolist(),
            "solved": curve.solved,
        },
    }
