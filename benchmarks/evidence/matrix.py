"""The runs of the main table: what is trained, and what is kept of a run that is finished."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from metarl_cli.comparison import kept, saved
from metarl_cli.comparison.saved import Saved, Tested
from metarl_cli.evaluation.statistics import Scores

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "evidence"
MATRIX: dict[str, Any] = yaml.safe_load((HERE / "matrix.yaml").read_text())
FAMILIES: dict[str, dict[str, Any]] = MATRIX["families"]
Kept = dict[str, list[Saved]]  # by method


class Job(NamedTuple):
    """One run of the table."""

    family: str
    method: str
    seed: int
    overrides: list[str]

    def folder(self, outputs: Path) -> Path:
        """Return its run folder; other settings have another one."""
        digest = hashlib.sha256(" ".join(self.overrides).encode()).hexdigest()[:6]
        return outputs / f"{self.family}-{self.method}-{digest}-seed{self.seed}"


def settings(family: str, method: str) -> list[str]:
    """Return the overrides of every run of a method on a family; an experiment comes first, and names its own family."""
    entry = FAMILIES[family]
    return [f"env={family}", *entry["methods"][method], *entry.get("common", MATRIX["common"])]


def jobs(families: list[str], methods: list[str] | None, seeds: range) -> Iterator[Job]:
    """Yield the runs: the first seed of everything, then the second."""
    for seed in seeds:
        for family in families:
            for method in FAMILIES[family]["methods"]:
                if methods is None or method in methods:
                    yield Job(family, method, seed, settings(family, method))


def results_file(family: str) -> Path:
    """Return the file that keeps the runs of a family: of the form of ``metarl report format=runs``."""
    return RESULTS / f"{family}.json"


def read(family: str, split: str = "test") -> Kept:
    """Return what is kept of a family's runs, as far as they have today's settings, in the order of the matrix."""
    path = results_file(family)
    runs, found = Kept(), all_runs(path, path.stat().st_mtime_ns) if path.exists() else []
    for job in jobs([family], None, range(1)):
        stem = job.folder(path).name.removesuffix("0")
        members = [run for run in found if run.path.name == f"{stem}{run.seed}"]
        if members:
            runs[job.method] = sorted(
                (run._replace(tested=run.results.get(split)) for run in members), key=lambda run: run.seed
            )
    return runs


@cache
def all_runs(path: Path, changed: int) -> list[Saved]:
    """Return the runs in a file that was last changed at that time [ns]."""
    return kept.read(path, "test")


def write(job: Job, run: Saved) -> None:
    """Keep one more run, beside those that have today's settings."""
    members = read(job.family)
    others = [each for each in members.get(job.method, []) if each.seed != job.seed]
    members[job.method] = sorted([*others, run], key=lambda each: each.seed)
    RESULTS.mkdir(parents=True, exist_ok=True)
    methods = [method for method in FAMILIES[job.family]["methods"] if method in members]
    kept.write(results_file(job.family), [run for method in methods for run in members[method]])


def train(job: Job, outputs: Path, extra: list[str]) -> int:
    """Train and test one run; metarl goes on with one that was stopped, and skips one that is finished."""
    folder = job.folder(outputs)
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "metarl_cli", "train", *job.overrides, f"seed={job.seed}", f"run={folder}", *extra]
    with folder.with_suffix(".log").open("a") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False).returncode


def load(folder: Path, family: str) -> Saved:
    """Return what the tables and figures need of a finished run, in five digits.

    Adaptations end where all methods have had as much experience, but for a family whose table has a column for each step: its
    learning curves are kept, too.
    """
    run = saved.load(folder, "test")
    results = {split: rounded_result(tested) for split, tested in run.results.items()}
    by_step = FAMILIES[family].get("by_step", False)
    learning = {name: rounded(curve) for name, curve in run.learning.items()} if by_step else {}
    run = run._replace(results=results, tested=results["test"], learning=learning)
    return run if by_step else shortened(run)


def shortened(run: Saved) -> Saved:
    """Return a run whose adaptations end after the first support; trials, at their end."""

    def short(tested: Tested) -> Tested:
        curve = tested.adapted
        return tested if tested.trial else tested._replace(adapted=curve.until_point(first_support(curve.env_steps)))

    results = {split: short(tested) for split, tested in run.results.items()}
    return run._replace(results=results, tested=short(run.tested) if run.tested else None)


def rounded_result(tested: Tested) -> Tested:
    """Return a result in numbers of five digits."""
    curve = tested.adapted._replace(scores=rounded(tested.adapted.scores))
    return tested._replace(adapted=curve, references={role: rounded(each) for role, each in tested.references.items()})


def rounded(scores: Scores) -> Scores:
    """Return numbers of five digits."""
    return np.array([float(f"{value:.5g}") for value in scores.flat]).reshape(scores.shape)


def first_support(env_steps: list[int]) -> int:
    """Return the last point of an adaptation that has seen no more than one support: all methods but trials see as much."""
    return max(point for point, steps in enumerate(env_steps) if steps <= env_steps[min(1, len(env_steps) - 1)])
