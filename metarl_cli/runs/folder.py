"""A run folder holds everything about one run, and is enough to go on from it.

config.yaml     the resolved configuration (all but where the folder lies)
run.json        command, versions, git revision, seed, task hashes, status
tasks.json      the held-out tasks, value by value, with their hashes
metrics.jsonl   every metric; events.out.tfevents.* the same for TensorBoard
last.pt best.pt where training goes on; the weights chosen on validation tasks
results/        test results and figures
adapted/        policies adapted with ``metarl adapt``
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import sys
import weakref
from pathlib import Path
from typing import Any

import yaml

from metarl_cli.config.models import Hardware, TrainConfig
from metarl_cli.config.registry import ConfigError, validate
from metarl_cli.errors import UserError
from metarl_cli.evaluation.held_out import check_disjoint, held_out_tasks, task_hash
from metarl_cli.interfaces import Family
from metarl_cli.runs.build import Parts
from metarl_cli.runs.checkpoint import refuse_unsafe, write_whole
from metarl_cli.runs.provenance import git_revision, now, versions

BEGUN = {".lock", "results", "tasks.json", "config.yaml"}  # what a run killed while it was made may leave
PLACES = ("run", "outputs")  # where a run lies is no part of what it is


def content(config: TrainConfig) -> dict[str, Any]:
    """What a run is, without where it lies."""
    return config.model_dump(exclude=set(PLACES))


def default_name(config: TrainConfig, choices: dict[str, str]) -> str:
    """``<algo>-<env>-seed<n>-<hash>``: the same configuration has the same folder, so a sweep can be run again."""
    text = json.dumps(content(config), sort_keys=True)
    algo, env, experiment = (choices.get(group) or "" for group in ("algo", "env", "experiment"))
    names = [experiment, *([] if algo in experiment else [algo])] if experiment else [algo, env]
    return "-".join([*names, f"seed{config.seed}", hashlib.sha256(text.encode()).hexdigest()[:8]]).replace("/", "_")


class RunFolder:
    """One run's files.

    Args:
        path: the folder; need not exist yet.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.last, self.best = self.path / "last.pt", self.path / "best.pt"
        self.results = self.path / "results"

    def __str__(self) -> str:
        return str(self.path)

    @property
    def exists(self) -> bool:
        return (self.path / "run.json").is_file()

    def create(self, config: TrainConfig, choices: dict[str, str], parts: Parts) -> None:
        """Write the configuration, the manifest and the held-out tasks of a new run into the locked folder.

        Raises:
            UserError: if it cannot be written, or a task stands in two splits of a family that has more than one.
        """
        self.results.mkdir(exist_ok=True)
        splits = {"validation": config.eval.tasks, "test": config.test.tasks}
        if "ood" in parts.family.splits:
            splits["ood"] = config.test.tasks
        tasks = {split: held_out_tasks(parts.family, config, split, num) for split, num in splits.items()}
        if not parts.family.finite:
            check_disjoint({"train": parts.algorithm.task, **tasks})
        saved = {
            split: {"hash": task_hash(task), "parameters": {k: v.tolist() for k, v in task.items()}}
            for split, task in tasks.items()
        }
        self.write_json("tasks.json", saved, indent=None)  # may be many numbers
        write_whole(self.path / "config.yaml", yaml.safe_dump(content(config), sort_keys=False).encode())
        manifest = {
            "status": "created",
            "choices": choices,
            "command": " ".join(["metarl", *sys.argv[1:]]),
            "created": now(),
            "seed": config.seed,
            "tasks": {split: entry["hash"] for split, entry in saved.items()},
            "device": str(parts.device),
            "git": git_revision(),
            "versions": versions(),
        }
        self.write_json("run.json", manifest)  # last: a folder with a manifest is complete

    def config(self, hardware: Hardware | None = None) -> TrainConfig:
        """The configuration the run was made with, on other ``hardware`` if given.

        Raises:
            UserError: if there is no run, or its configuration is damaged, unsafe or invalid.
        """
        if not self.exists:
            raise UserError(f"{self} is not a run folder (no run.json in it)")
        path = self.path / "config.yaml"
        try:
            values = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
        if not isinstance(values, dict):
            raise UserError(f"refused {path}: not a configuration")
        refuse_unsafe(values, str(path))
        if hardware:
            values["hardware"] = hardware.model_dump()
        try:
            config = validate("train", {**values, "run": str(self.path), "outputs": str(self.path.parent)})
        except ConfigError as error:
            raise UserError(f"refused {path}: {'; '.join(error.problems)}") from error
        assert isinstance(config, TrainConfig)
        return config

    def check_tasks(self, config: TrainConfig, family: Family) -> None:
        """Raises UserError if the held-out tasks are no longer the ones the run was made with."""
        for split, saved in self.manifest().get("tasks", {}).items():
            num = config.eval.tasks if split == "validation" else config.test.tasks
            if task_hash(held_out_tasks(family, config, split, num)) != saved:
                raise UserError(f"the {split} tasks of {self} are not those it was made with; use the version in its run.json")

    def manifest(self) -> dict[str, Any]:
        try:
            manifest = json.loads((self.path / "run.json").read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {self.path / 'run.json'}: {error}") from error
        if not isinstance(manifest, dict):
            raise UserError(f"refused {self.path / 'run.json'}: not a manifest")
        return manifest

    def note(self, **changes: Any) -> None:
        """Change the manifest (status, times)."""
        self.write_json("run.json", {**self.manifest(), **changes})

    def write_json(self, name: str, value: Any, indent: int | None = 1) -> None:
        write_whole(self.path / name, (json.dumps(value, indent=indent) + "\n").encode())

    def lock(self) -> None:
        """Make the folder if need be, and keep it to this process until it ends.

        Raises:
            UserError: if another process holds it, it is used for something else, or cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            foreign = [p.name for p in self.path.iterdir() if p.name not in BEGUN and not p.name.endswith(".tmp")]
            if foreign and not self.exists:
                raise UserError(f"{self} is not empty and not a run (it holds {foreign[0]}); choose another folder")
            self._lock = (self.path / ".lock").open("w")
            weakref.finalize(self, self._lock.close)
        except OSError as error:
            raise UserError(f"cannot write in {self}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another process is training {self}") from error
        for leftover in (*self.path.glob(".*.tmp"), *self.results.glob(".*.tmp")):  # of one that was killed while it wrote
            leftover.unlink(missing_ok=True)
