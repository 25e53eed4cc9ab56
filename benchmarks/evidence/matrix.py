"""The runs of the main table: what is trained, and what is kept of a run that is finished."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "evidence"
MATRIX: dict[str, Any] = yaml.safe_load((HERE / "matrix.yaml").read_text())
FAMILIES: dict[str, dict[str, Any]] = MATRIX["families"]
Kept = dict[str, dict[str, Any]]  # method -> {"overrides": [...], "runs": {seed: what is kept of a run}}


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


def read(family: str) -> Kept:
    """Return what is kept of a family's runs, as far as they have today's settings, in the order of the matrix."""
    path = RESULTS / f"{family}.json"
    kept: Kept = json.loads(path.read_text()) if path.exists() else {}
    return {m: kept[m] for m in FAMILIES[family]["methods"] if m in kept and kept[m]["overrides"] == settings(family, m)}


def write(job: Job, run: dict[str, Any]) -> None:
    """Keep what the tables need of one more run."""
    kept = read(job.family)
    entry = kept.setdefault(job.method, {"overrides": job.overrides, "runs": {}})
    entry["runs"][str(job.seed)] = run
    entry["runs"] = dict(sorted(entry["runs"].items(), key=lambda item: int(item[0])))
    lines = [f'"{m}": {json.dumps(kept[m])}' for m in FAMILIES[job.family]["methods"] if m in kept]
    RESULTS.mkdir(parents=True, exist_ok=True)
    part = (path := RESULTS / f"{job.family}.json").with_suffix(".part")
    part.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    part.replace(path)


def train(job: Job, outputs: Path, extra: list[str]) -> int:
    """Train and test one run; metarl goes on with one that was stopped, and skips one that is finished."""
    folder = job.folder(outputs)
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "metarl_cli", "train", *job.overrides, f"seed={job.seed}", f"run={folder}", *extra]
    with folder.with_suffix(".log").open("a") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False).returncode


def summary(folder: Path) -> dict[str, Any]:
    """Return what the tables need of a finished run: the mean returns of its held-out tasks ``[M]``, and what it cost."""
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    manifest = json.loads((folder / "run.json").read_text())
    test, ood = (folder / "results" / f"{split}.json" for split in ("test", "ood"))
    tested = json.loads(test.read_text())
    last = -1 if tested["trial"] else first_support(tested["adapted"]["env_steps"])

    def scores(result: dict[str, Any], curve: str, point: int) -> list[float]:
        return [float(f"{value:.5g}") for value in result[curve]["task_returns"][point]]

    beyond = json.loads(ood.read_text()) if ood.exists() else None
    return {
        "revision": manifest["git"],
        "tasks": tested["tasks"]["hash"],
        "env_steps": log[-1]["step"] if log else 0,
        "minutes": round(max((line.get("time/training_seconds", 0.0) for line in log), default=0.0) / 60, 2),
        "gradient_steps": tested["adapted"]["gradient_steps"][last],
        "support": tested["adapted"]["env_steps"][last],  # environment steps before the last policy or episode
        "before": scores(tested, "adapted", 0),
        "after": scores(tested, "adapted", last),
        "random": scores(tested, "random", 0),
        "ood": None if beyond is None else scores(beyond, "adapted", last),
        "solved": tested["adapted"]["beside"][last]["solved"],
    }


def first_support(env_steps: list[int]) -> int:
    """Return the last point of an adaptation that has seen no more than one support: all methods but trials see as much."""
    return max(point for point, steps in enumerate(env_steps) if steps <= env_steps[min(1, len(env_steps) - 1)])
