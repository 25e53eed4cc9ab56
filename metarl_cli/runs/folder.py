"""A run folder holds everything about one run, and is enough to go on from it.

config.yaml     the resolved configuration (all but places: of the folder, and of references)
run.json        format, command, versions, git revision, seed, task hashes, status
tasks.json      the held-out tasks, value by value, with their hashes
metrics.jsonl   every metric; events.out.tfevents.* the same for TensorBoard
console.log     what the command has printed, with the traceback of an error
last.pt best.pt the state from which training goes on; the weights chosen on validation tasks
results/        test results and figures
adapted/        policies adapted with ``metarl adapt``
demonstrator/   the run of who demonstrates, as far as it is needed, where one was named
profile.*       the trace of some iterations, with ``hardware.profile=true``
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shlex
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from metarl_cli import progress
from metarl_cli.config.base import operational_keys
from metarl_cli.config.messages import did_you_mean, quoted
from metarl_cli.config.models import Hardware, Job, TrainConfig
from metarl_cli.config.registry import ConfigError, validate
from metarl_cli.errors import UserError
from metarl_cli.evaluation.held_out import check_disjoint, held_out_tasks, task_hash
from metarl_cli.interfaces import Family
from metarl_cli.runs.build import Components
from metarl_cli.runs.checkpoint import fitting, load
from metarl_cli.runs.files import open_regular, read_json, read_yaml, refuse_links, sha256, write_json, write_whole
from metarl_cli.runs.naming import group_hash, hparams, leaves, overridden, within
from metarl_cli.runs.provenance import command, git_revision, now, versions
from metarl_cli.runs.shipped import find

FORMAT = 8  # of run folders
DEMONSTRATOR = "demonstrator"  # folder within that of a run
LOCK = ".lock"  # the first file of a run
INCOMPLETE_FILES = {LOCK, ".reserve", "results", "tasks.json", "config.yaml", DEMONSTRATOR}  # of a run killed at its beginning
# of the user's machine, and of one command: a run folder does not hold them
LOCATION_KEYS = {"run", "outputs", "aggregate", "robust", "oracle", "packages", "demonstrator"}
RESERVE = 2**15  # [bytes] that a run in training keeps for its last words on a full disk
WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # answers of a file system that has none


class Format(BaseModel):
    """What run folders of every format say first."""

    model_config = ConfigDict(strict=True)

    format: int = 1


class Manifest(BaseModel):
    """run.json: what a run was made with, and how it stands."""

    model_config = ConfigDict(strict=True)  # entries that are no business of going on are free

    format: Literal[8]
    status: Literal["created", "running", "interrupted", "failed", "finished"]
    choices: dict[str, str | None]
    overridden: list[str] = []
    command: str
    created: str
    seed: int
    sha256: dict[Literal["config.yaml", "tasks.json"], str]
    tasks: dict[Literal["validation", "test", "ood"], str]
    device: str
    saved: bool = False  # whether there has been a checkpoint to go on from
    iterations: int | None = None  # ``train.iterations`` since it was raised; config.yaml says with how many the run began
    tested: bool = True  # whether a finished run was tested on held-out tasks at its end; trials of a search are not
    score: float | None = None
    group: str | None = Field(None, pattern=r"^[0-9a-f]{8}$")  # the same in runs that differ in the seed alone
    demonstrator: str | None = Field(None, pattern=r"^[0-9a-f]{12}$")  # the first digits of the hash of its weights
    memory: int | None = Field(None, ge=0, lt=2**63)  # [bytes] the largest so far
    gpu_memory: int | None = Field(None, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _complete(self) -> Manifest:
        if self.status == "finished" and self.tested and self.score is None:
            raise ValueError("a finished run that was tested has a score")
        if len(self.sha256) != 2 or not {"validation", "test"} <= set(self.tasks):
            raise ValueError("a hash is missing")
        return self


def reading(hardware: Hardware) -> dict[str, Any]:
    """Return the hardware of a run that is only read: its functions are called too seldom to compile them."""
    return {**hardware.model_dump(), "compile": False, "profile": False}


def read_config(
    values: Mapping[str, Any], run: Path | None, where: str, choices: Mapping[str, str | None] | None = None
) -> TrainConfig:
    """Return the configuration that was saved as ``values``.

    Args:
        values: all but places; ``demonstrator`` is the hash of its weights.
        run: the folder of the run; None: it has none.
        where: the file it was read from, for the messages.
        choices: the option of each config group.

    Raises:
        UserError: if it is unsafe or invalid.
    """
    place = {"run": str(run), "outputs": str(run.parent)} if run else {"run": None, "outputs": "outputs"}
    try:
        own = str(run / DEMONSTRATOR) if run and values.get("demonstrator") else None
        gone: dict[str, Any] = {"aggregate": False, "robust": None, "oracle": None, "packages": [], "demonstrator": own}
        return validate(TrainConfig, {**values, **place, **gone}, choices)
    except ConfigError as error:
        raise UserError(f"refused {where}: {'; '.join(problem.text for problem in error.problems)}") from error


def weights_hash(run: Path) -> str:
    """Return what tells a run's best weights from others: the first digits of their hash."""
    return sha256(run / "best.pt")[:12]


def with_values(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Set values at dotted keys of a configuration, in place; returns it."""
    for key, value in changes.items():
        *groups, last = key.split(".")
        holder: Any = values
        for group in groups:
            holder = holder[group] if isinstance(holder.get(group), dict) else holder.setdefault(group, {})
        holder[last] = value
    return values


class RunFolder:
    """The files of one run.

    Args:
        path: the folder, which need not exist yet, or ``zoo:NAME``.

    Raises:
        UserError: if no such run comes with metarl, or it cannot be copied.
    """

    def __init__(self, path: str | Path):
        self.path = find(path)
        self.last, self.best = self.path / "last.pt", self.path / "best.pt"
        self.results, self.reserve = self.path / "results", self.path / ".reserve"

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
        path, name = (self.best, "score") if self.best.exists() else (self.last, "best")
        with fitting(path, "it has no score"):
            return float(load(path)[name])

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return os.path.lexists(self.path / "run.json")

    @property
    def finished(self) -> bool:
        """Whether the folder holds a run that is finished."""
        return self.exists and self.manifest()["status"] == "finished"

    def create(self, config: TrainConfig, job: Job, components: Components) -> None:
        """Write the configuration, the manifest and the held-out tasks of a new run into the locked folder.

        Raises:
            UserError: if it cannot be written, or a task stands in two splits of a family that has more than one.
        """
        self.make_results()
        splits = {"validation": config.eval.tasks, "test": config.test.tasks}
        if "ood" in components.family.splits:
            splits["ood"] = config.test.tasks
        tasks = {split: held_out_tasks(components.family, split, num, config.tasks_seed) for split, num in splits.items()}
        if not components.family.finite:
            check_disjoint({"train": components.algorithm.task, **tasks})
        hashes = {split: task_hash(task) for split, task in tasks.items()}
        saved = {
            split: {"hash": hashes[split], "parameters": {k: v.tolist() for k, v in task.items()}}
            for split, task in tasks.items()
        }
        values = config.model_dump(exclude=LOCATION_KEYS)
        values["hardware"]["profile"] = False  # a profile is made by the command that asks for it
        files = {
            "tasks.json": (json.dumps(saved) + "\n").encode(),
            "config.yaml": yaml.safe_dump(values, sort_keys=False).encode(),
        }
        for name, content in files.items():
            write_whole(self.path / name, content)
        manifest = {
            "format": FORMAT,
            "status": "created",
            "choices": job.choices,
            "overridden": list(overridden(config, job.overrides)),
            "command": command(job),
            "created": now(),
            "seed": config.seed,
            "group": group_hash(config),
            "demonstrator": weights_hash(self.path / DEMONSTRATOR) if config.demonstrator else None,
            "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
            "tasks": hashes,
            "device": str(components.device),
            "git": git_revision(),
            "versions": versions(),
        }
        write_json(self.path / "run.json", manifest, Manifest)  # last: a folder with a manifest is complete

    def make_results(self) -> None:
        """Make the folder of the results.

        Raises:
            UserError: if it cannot be made, or nothing can be written in it.
        """
        try:
            self.results.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write in {self}: {error.strerror}") from error
        if not os.access(self.results, os.W_OK):
            raise UserError(f"cannot write in {self.results}: no permission")

    def config(self, hardware: Hardware | None = None) -> TrainConfig:
        """Read the configuration the run was made with, on other ``hardware`` if given, uncompiled then.

        Raises:
            UserError: if there is no run, or its configuration is damaged, unsafe or invalid.
        """
        return self._config({f"hardware.{key}": value for key, value in reading(hardware).items()} if hardware else {})

    def continued(self, config: TrainConfig, overrides: list[str]) -> TrainConfig:
        """Return the run's own configuration, with the overridden values of ``config`` that cannot change a result.

        A finished run can be given more iterations.

        Args:
            config: of the command line, composed from the defaults and ``overrides``.
            overrides: of the command line; what they do not name is as the run was made.

        Raises:
            UserError: for an override of a value that can change the result.
        """
        config = self._with_own_demonstrator(config)
        named = {o.split("=", 1)[0].lstrip("+~").replace("/", ".") for o in overrides}
        free = operational_keys(config)
        saved = self.config()
        given, kept = dict(leaves(config.model_dump())), dict(leaves(saved.model_dump()))
        asked = [key for key in sorted(given | kept) if "experiment" in named or within(key, named)]
        if self.manifest()["status"] == "finished" and given["train.iterations"] > kept["train.iterations"]:
            free = free | {"train.iterations"}
        changed = [
            f"{key} is {kept.get(key, 'not there')} in the run, {given.get(key, 'not there')} here"
            for key in asked
            if given.get(key) != kept.get(key) and not within(key, free)
        ]
        if changed:
            raise UserError(f"{self} goes on as it was made; {'; '.join(changed[:3])}; choose another folder for a new run")
        changes = {key: given[key] for key in asked if key in given and within(key, free - LOCATION_KEYS)}
        saved = self._config(changes) if changes else saved
        return saved.model_copy(update={"robust": config.robust, "oracle": config.oracle})

    def refuse_mistyped(self, config: TrainConfig, overrides: list[str]) -> None:
        """Raises UserError where ``overrides`` name this folder, in which there is no run, and nothing to train in it."""
        named = {o.split("=", 1)[0].lstrip("+~") for o in overrides}
        if named and all(within(key, operational_keys(config) | {"train", "eval", "test"}) for key in named):
            runs = [path.parent.name for path in self.path.parent.glob("*/run.json")]
            hint = did_you_mean(self.path.name, runs) or "; to begin one there, say what it learns: algo=NAME env=NAME"
            raise UserError(f"no such run: {self}{hint}")

    def values(self) -> dict[str, Any]:
        """Read the saved configuration as plain values, which may be of a family or an algorithm that cannot run here.

        Raises:
            UserError: if there is no run, or its configuration is damaged or was changed.
        """
        if not self.exists:
            raise UserError(f"{self} is not a run folder (no run.json in it)")
        manifest, path = self.manifest(), self.path / "config.yaml"
        self._check_hash("config.yaml", "undo the change, or begin a new run: the command in its run.json, with your values")
        values = read_yaml(path)
        if not isinstance(values, dict):
            raise UserError(f"refused {path}: not a configuration")
        later = {"train.iterations": manifest.get("iterations"), "demonstrator": manifest.get("demonstrator")}
        return with_values(values, {key: value for key, value in later.items() if value})

    def _config(self, changes: Mapping[str, Any]) -> TrainConfig:
        """Read the saved configuration with other values at some dotted keys."""
        values = with_values(self.values(), changes)
        return read_config(values, self.path, str(self.path / "config.yaml"), self.manifest()["choices"])

    def prolonged(self, config: TrainConfig) -> TrainConfig:
        """Return a configuration of this run with its demonstrator, and the iterations that it has since they were raised."""
        config = self._with_own_demonstrator(config)
        if (iterations := self.manifest().get("iterations")) is None:
            return config
        return config.model_copy(update={"train": config.train.model_copy(update={"iterations": iterations})})

    def _with_own_demonstrator(self, config: TrainConfig) -> TrainConfig:
        """Return a configuration with the run's copy of the demonstrator in the place of the folder that it names.

        Raises:
            UserError: if that folder is there, and has other weights.
        """
        named, known = config.demonstrator, self.manifest().get("demonstrator")
        if named is None or known is None:
            return config
        if RunFolder(named).best.exists() and weights_hash(RunFolder(named).path) != known:
            raise UserError(
                f"{self} goes on as it was made; demonstrator={named} has other weights than {self.path / DEMONSTRATOR}, "
                "its copy; choose another folder for a new run"
            )
        return config.model_copy(update={"demonstrator": str(self.path / DEMONSTRATOR)})

    def _check_hash(self, name: str, advice: str) -> None:
        """Raises UserError if a file is not the one that the run was made with."""
        if sha256(self.path / name) != self.manifest()["sha256"][name]:
            raise UserError(f"refused {self.path / name}: it is not as the run was made with; {advice}")

    def check_tasks(self, config: TrainConfig, family: Family) -> None:
        """Raises UserError if the held-out tasks are no longer the ones the run was made with."""
        saved = self.manifest()["tasks"]
        if (self.path / "tasks.json").exists():  # without it, the tasks are drawn as they were, and compared
            self._check_hash("tasks.json", "remove it: the tasks are drawn again")
        for split in family.splits[1:]:
            num = config.eval.tasks if split == "validation" else config.test.tasks
            if task_hash(held_out_tasks(family, split, num, config.tasks_seed)) != saved.get(split):
                raise UserError(f"the {split} tasks of {self} are not those it was made with; use the version in its run.json")

    def manifest(self) -> dict[str, Any]:
        """Read run.json: the values of a :class:`Manifest`, and more that nothing depends on.

        Raises:
            UserError: if it cannot be read, is of another format, or the folder holds a link.
        """
        refuse_links(self.path)
        path = self.path / "run.json"
        number = read_json(path, Format, complete=False).get("format", 1)
        if number != FORMAT:
            age = "an older" if number < FORMAT else "a newer"
            advice = "train it again, or use the version in its run.json"
            raise UserError(f"{self} was made by {age} version of metarl (format {number}); {advice}")
        return read_json(path, Manifest)

    def hparams(self, config: TrainConfig) -> dict[str, Any]:
        """Return what distinguishes the run from others, for TensorBoard."""
        manifest = self.manifest()
        return hparams(config, manifest["choices"], manifest.get("overridden", []))

    def texts(self) -> dict[str, str]:
        """Return the command and the configuration as Markdown, by their tags in TensorBoard."""
        values = yaml.safe_dump(read_yaml(self.path / "config.yaml"), sort_keys=False)
        return {"run/command": f"    {self.manifest()['command']}", "run/configuration": f"```yaml\n{values}```"}

    def note(self, **changes: Any) -> None:
        """Change entries of the manifest (status, times)."""
        write_json(self.path / "run.json", {**self.manifest(), **changes}, Manifest)

    def unlock(self) -> None:
        """Let other processes use the folder."""
        self.free_reserve()
        self._lock.close()

    def free_reserve(self) -> None:
        """Give back the space that was kept for the last note of a run whose disk is full."""
        with contextlib.suppress(OSError):
            self.reserve.unlink(missing_ok=True)

    def lock(self) -> None:
        """Make the folder if need be, and keep it to this process until it ends.

        Raises:
            UserError: if another process holds it, it is used for something else, or cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            refuse_links(self.path)
            names = {p.name for p in self.path.iterdir() if not p.name.endswith(".tmp")}
            foreign = sorted(names - INCOMPLETE_FILES if LOCK in names else names)
            if foreign and not self.exists:
                raise UserError(f"{self} is not empty and not a run (it holds {foreign[0]}); choose another folder")
            self._lock = os.fdopen(open_regular(self.path / LOCK, os.O_RDWR | os.O_CREAT), "rb+")
            weakref.finalize(self, self._lock.close)
        except OSError as error:
            raise UserError(f"cannot write in {self}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is training {self}") from error
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise UserError(f"cannot lock {self}: {error.strerror}") from error
            progress.note(f"the file system of {self} has no locks: see to it that no other process trains this run")
        for leftover in (*self.path.glob(".*.tmp"), *self.results.glob(".*.tmp")):  # of a process killed while it wrote
            leftover.unlink(missing_ok=True)
        write_whole(self.reserve, os.urandom(RESERVE))
