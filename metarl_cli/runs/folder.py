"""A run folder holds everything about one run, and is enough to go on from it.

config.yaml     the resolved configuration (all but where the folder lies)
run.json        format, command, versions, git revision, seed, task hashes, status
tasks.json      the held-out tasks, value by value, with their hashes
metrics.jsonl   every metric; events.out.tfevents.* the same for TensorBoard
last.pt best.pt the state from which training goes on; the weights chosen on validation tasks
results/        test results and figures
adapted/        policies adapted with ``metarl adapt``
profile.*       the trace of some iterations, with ``hardware.profile=true``
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shlex
import weakref
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from metarl_cli.config.base import operational_keys, result_values
from metarl_cli.config.messages import quoted
from metarl_cli.config.models import Hardware, Job, TrainConfig
from metarl_cli.config.registry import ConfigError, validate
from metarl_cli.errors import UserError, visible
from metarl_cli.evaluation.held_out import check_disjoint, held_out_tasks, task_hash
from metarl_cli.interfaces import Family
from metarl_cli.runs.build import Components
from metarl_cli.runs.checkpoint import load, refuse_unsafe, write_whole
from metarl_cli.runs.provenance import git_revision, now, versions

FORMAT = 3  # of run folders
INCOMPLETE_FILES = {".lock", "results", "tasks.json", "config.yaml"}  # a run killed while its folder was made leaves these
LOCATION_KEYS = {"run", "outputs"}


def default_name(config: TrainConfig, choices: Mapping[str, str | None]) -> str:
    """Return ``<algo>-<env>-seed<n>-<hash>``, the hash over every value that can change the result.

    The same experiment has the same folder, so a sweep can be run again, on another machine too.
    """
    text = json.dumps(result_values(config), sort_keys=True)
    algo, env, experiment = (choices.get(group) or "" for group in ("algo", "env", "experiment"))
    names = [experiment, *([] if algo in experiment else [algo])] if experiment else [algo, env]
    return file_name("-".join([*names, f"seed{config.seed}", hashlib.sha256(text.encode()).hexdigest()[:8]]))


def file_name(text: str) -> str:
    """Return a text as the name of one file, not of several folders."""
    return visible(text).replace("/", "_")


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of everything that is not a group itself."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _within(key: str, groups: Collection[str]) -> bool:
    """Whether a dotted key is one of ``groups``, or lies in one."""
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def reading(hardware: Hardware) -> dict[str, Any]:
    """Return the hardware of a run that is only read: its functions are called too seldom to compile them."""
    return {**hardware.model_dump(), "compile": False, "profile": False}


def read_config(
    values: Mapping[str, Any], place: Mapping[str, Any], where: str, choices: Mapping[str, str | None] | None = None
) -> TrainConfig:
    """Return the configuration that was saved as ``values``.

    Args:
        values: all but the location of the run.
        place: the location.
        where: the file it was read from, for the messages.
        choices: the option of each config group.

    Raises:
        UserError: if it is unsafe or invalid.
    """
    refuse_unsafe(values, where)
    try:
        return validate(TrainConfig, {**values, **place}, choices)
    except ConfigError as error:
        raise UserError(f"refused {where}: {'; '.join(problem.text for problem in error.problems)}") from error


class RunFolder:
    """The files of one run.

    Args:
        path: the folder; need not exist yet.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.last, self.best = self.path / "last.pt", self.path / "best.pt"
        self.results = self.path / "results"

    def __str__(self) -> str:
        return str(self.path)

    def command(self, name: str) -> str:
        """Return ``metarl NAME run=FOLDER`` as it is typed."""
        return shlex.join(["metarl", name, f"run={quoted(str(self))}"])

    def checkpoint(self, name: str) -> Path:
        """Return the file of the ``best`` or the ``last`` checkpoint."""
        return self.best if name == "best" else self.last

    def validation_score(self) -> float:
        """Return the best score on the validation tasks so far, that of the ``best`` checkpoint.

        Raises:
            UserError: if there is no such checkpoint, or it is damaged.
        """
        try:
            return float(load(self.best)["score"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"refused {self.best}: it has no score") from error

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return (self.path / "run.json").is_file()

    def create(self, config: TrainConfig, job: Job, components: Components) -> None:
        """Write the configuration, the manifest and the held-out tasks of a new run into the locked folder.

        Raises:
            UserError: if it cannot be written, or a task stands in two splits of a family that has more than one.
        """
        self.results.mkdir(exist_ok=True)
        splits = {"validation": config.eval.tasks, "test": config.test.tasks}
        if "ood" in components.family.splits:
            splits["ood"] = config.test.tasks
        tasks = {split: held_out_tasks(components.family, split, num, config.tasks_seed) for split, num in splits.items()}
        if not components.family.finite:
            check_disjoint({"train": components.algorithm.task, **tasks})
        saved = {
            split: {"hash": task_hash(task), "parameters": {k: v.tolist() for k, v in task.items()}}
            for split, task in tasks.items()
        }
        self.write_json("tasks.json", saved, indent=None)  # may be many numbers
        values = config.model_dump(exclude=LOCATION_KEYS)
        values["hardware"]["profile"] = False  # a profile is made by the command that asks for it
        write_whole(self.path / "config.yaml", yaml.safe_dump(values, sort_keys=False).encode())
        manifest = {
            "format": FORMAT,
            "status": "created",
            "choices": job.choices,
            "command": shlex.join(["metarl", "train", *job.overrides]),
            "created": now(),
            "seed": config.seed,
            "tasks": {split: entry["hash"] for split, entry in saved.items()},
            "device": str(components.device),
            "git": git_revision(),
            "versions": versions(),
        }
        self.write_json("run.json", manifest)  # last: a folder with a manifest is complete

    def config(self, hardware: Hardware | None = None) -> TrainConfig:
        """Read the configuration the run was made with, on other ``hardware`` if given, uncompiled then.

        Raises:
            UserError: if there is no run, or its configuration is damaged, unsafe or invalid.
        """
        return self._config({f"hardware.{key}": value for key, value in reading(hardware).items()} if hardware else {})

    def continued(self, config: TrainConfig, overrides: list[str]) -> TrainConfig:
        """Return the run's own configuration, with the overridden values of ``config`` that cannot change a result.

        Args:
            config: of the command line, composed from the defaults and ``overrides``.
            overrides: of the command line; what they do not name is as the run was made.

        Raises:
            UserError: for an override of a value that can change the result.
        """
        named = {o.split("=", 1)[0].lstrip("+~").replace("/", ".") for o in overrides}
        free = operational_keys(config)
        saved = self.config()
        given, kept = dict(_leaves(config.model_dump())), dict(_leaves(saved.model_dump()))
        asked = [key for key in sorted(given | kept) if "experiment" in named or _within(key, named)]
        changed = [
            f"{key} is {kept.get(key, 'not there')} in the run, {given.get(key, 'not there')} here"
            for key in asked
            if given.get(key) != kept.get(key) and not _within(key, free)
        ]
        if changed:
            raise UserError(f"{self} goes on as it was made; {'; '.join(changed[:3])}; choose another folder for a new run")
        changes = {key: given[key] for key in asked if key in given and _within(key, free - LOCATION_KEYS)}
        return self._config(changes) if changes else saved

    def _config(self, changes: Mapping[str, Any]) -> TrainConfig:
        """Read the saved configuration with other values at some dotted keys."""
        if not self.exists:
            raise UserError(f"{self} is not a run folder (no run.json in it)")
        choices = self.manifest().get("choices")
        path = self.path / "config.yaml"
        try:
            values = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
        if not isinstance(values, dict):
            raise UserError(f"refused {path}: not a configuration")
        for key, value in changes.items():
            *groups, last = key.split(".")
            holder: Any = values
            for group in groups:
                holder = holder[group] if isinstance(holder.get(group), dict) else holder.setdefault(group, {})
            holder[last] = value
        place = {"run": str(self.path), "outputs": str(self.path.parent)}
        return read_config(values, place, str(path), choices if isinstance(choices, dict) else None)

    def check_tasks(self, config: TrainConfig, family: Family) -> None:
        """Raises UserError if the held-out tasks are no longer the ones the run was made with."""
        for split, saved in self.manifest().get("tasks", {}).items():
            num = config.eval.tasks if split == "validation" else config.test.tasks
            if task_hash(held_out_tasks(family, split, num, config.tasks_seed)) != saved:
                raise UserError(f"the {split} tasks of {self} are not those it was made with; use the version in its run.json")

    def manifest(self) -> dict[str, Any]:
        """Read run.json.

        Raises:
            UserError: if it cannot be read, or is of another format.
        """
        try:
            manifest = json.loads((self.path / "run.json").read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {self.path / 'run.json'}: {error}") from error
        if not isinstance(manifest, dict):
            raise UserError(f"refused {self.path / 'run.json'}: not a manifest")
        if (found := manifest.get("format", 1)) != FORMAT:
            age = "an older" if isinstance(found, int) and found < FORMAT else "a newer"
            advice = "train it again, or use the version in its run.json"
            raise UserError(f"{self} was made by {age} version of metarl (format {found}); {advice}")
        return manifest

    def note(self, **changes: Any) -> None:
        """Change entries of the manifest (status, times)."""
        self.write_json("run.json", {**self.manifest(), **changes})

    def write_json(self, name: str, value: Any, indent: int | None = 1) -> None:
        """Write a value as a JSON file of the folder, whole or not at all."""
        write_whole(self.path / name, (json.dumps(value, indent=indent) + "\n").encode())

    def unlock(self) -> None:
        """Let other processes use the folder."""
        self._lock.close()

    def lock(self) -> None:
        """Make the folder if need be, and keep it to this process until it ends.

        Raises:
            UserError: if another process holds it, it is used for something else, or cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            names = {p.name for p in self.path.iterdir() if not p.name.endswith(".tmp")}
            foreign = sorted(names - INCOMPLETE_FILES)
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
        for leftover in (*self.path.glob(".*.tmp"), *self.results.glob(".*.tmp")):  # of a process killed while it wrote
            leftover.unlink(missing_ok=True)
