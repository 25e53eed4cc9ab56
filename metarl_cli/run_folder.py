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

import ctypes
import datetime
import fcntl
import hashlib
import json
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from metarl_cli import __version__
from metarl_cli.building import ConfigError, Hardware, TrainConfig, load, validate
from metarl_cli.checkpoint import refuse_unsafe, write_whole
from metarl_cli.seeding import numpy_rng
from metarl_cli.types import Algorithm, Family, Task, UserError

BEGUN = {".lock", "results", "tasks.json", "config.yaml"}  # what a run killed while it was made may leave
PLACES = ("run", "outputs")  # where a run lies is no part of what it is


class Parts(NamedTuple):
    """What a configuration stands for."""

    family: Family
    algorithm: Algorithm
    device: torch.device


def choose_device(hardware: Hardware) -> torch.device:
    """The device asked for; ``auto`` is the GPU where there is one.

    Raises:
        UserError: if a GPU is asked for and there is none.
    """
    found = torch.cuda.is_available()
    if hardware.device == "cuda" and not found:
        raise UserError("hardware=cuda, but torch finds no CUDA device; use hardware=auto or hardware=cpu")
    torch.set_num_threads(hardware.threads)
    return torch.device("cuda" if found and hardware.device != "cpu" else "cpu")


def keep_memory() -> None:
    """Have the C library, where it is glibc, keep the memory of freed tensors for the next ones.

    It gives large blocks back at once, and then the system clears them page by page whenever they are asked for again: most of
    the time of a large population (docs/throughput.md). The process stays as large as it once was.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no block on its own
        mallopt(-1, -1)  # M_TRIM_THRESHOLD [bytes]: the heap never shrinks


def build(config: TrainConfig) -> Parts:
    """The family, learner and algorithm of a configuration, on its device."""
    device = choose_device(config.hardware)
    keep_memory()
    env_module, env_config = load("env", config.env)
    learner_module, learner_config = load("learner", config.learner)
    algo_module, algo_config = load("algo", config.algo)
    family = env_module.Family(env_config, device)
    learner = learner_module.Learner(learner_config, family.spec)
    try:
        algorithm = algo_module.Algo(algo_config, learner, family, config.train.iterations, config.seed, device)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    return Parts(family, algorithm, device)


def held_out_tasks(family: Family, config: TrainConfig, split: str, num: int) -> Task:
    """The first ``num`` tasks of a held-out split: the same for every algorithm, seed and number of tasks."""
    return family.sample_tasks(num, split, numpy_rng(config.tasks_seed, "tasks", split))


def task_hash(task: Task) -> str:
    """A hash of the tasks' parameters."""
    digest = hashlib.sha256()
    for name in sorted(task):
        digest.update(name.encode() + task[name].detach().cpu().double().numpy().tobytes())
    return digest.hexdigest()[:16]


def check_disjoint(splits: dict[str, Task]) -> None:
    """Raises UserError if two splits share a task."""
    seen: dict[tuple[float, ...], str] = {}
    for split, task in splits.items():
        columns = [value.reshape(len(value), -1) for value in task.values()]
        for number, row in enumerate(torch.cat(columns, 1).tolist()):
            other = seen.setdefault(tuple(row), split)
            if other != split:
                found = {name: value[number].tolist() for name, value in task.items()}
                raise UserError(f"a task stands in both the {other} and the {split} split: {found}")


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
        except OSError as error:
            raise UserError(f"cannot write in {self}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another process is training {self}") from error
        for leftover in (*self.path.glob(".*.tmp"), *self.results.glob(".*.tmp")):  # of one that was killed while it wrote
            leftover.unlink(missing_ok=True)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of what a result can depend on."""
    found = {"metarl-cli": __version__, "python": platform.python_version()}
    for name in ("torch", "numpy", "gymnasium", "hydra-core", "omegaconf", "pydantic"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_revision() -> str | None:
    """The revision of the source tree, with ``+dirty`` if it was changed; None outside a repository."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty=+dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
