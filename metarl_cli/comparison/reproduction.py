"""A run made again: what is as it was then, and whether the numbers are."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from metarl_cli.comparison.saved import LARGEST_LOG, entry
from metarl_cli.config.models import Job, TrainConfig
from metarl_cli.errors import UserError
from metarl_cli.evaluation.held_out import held_out_tasks, task_hash
from metarl_cli.interfaces import Family
from metarl_cli.runs.files import read
from metarl_cli.runs.folder import RunFolder
from metarl_cli.runs.provenance import git_revision, versions
from metarl_cli.runs.results import read_results

CLOCK = "time/"  # metrics that differ each time


class Fact(NamedTuple):
    """Something that a result can depend on."""

    name: str
    then: str
    now: str

    @property
    def same(self) -> bool:
        """Whether it is as it was."""
        return self.then == self.now


class Agreement(NamedTuple):
    """How far numbers agree."""

    what: str
    total: int
    equal: int
    largest: float  # difference; infinite where one of a pair is missing
    first: str | None  # the first number that differs, in words

    @property
    def exact(self) -> bool:
        """Whether all are equal to the last bit."""
        return self.equal == self.total


def facts(folder: RunFolder, config: TrainConfig, family: Family, device: str) -> list[Fact]:
    """Compare what a run was made with to what is here.

    Args:
        folder: of the run.
        config: its configuration.
        family: built from it.
        device: that the run would be made on now.

    Raises:
        UserError: if the folder cannot be read.
    """
    manifest, here = folder.manifest(), versions()
    then = manifest.get("versions", {})
    compared = [Fact("revision", str(manifest.get("git")), str(git_revision())), Fact("device", manifest["device"], device)]
    compared += [Fact(name, str(then.get(name)), version) for name, version in here.items()]
    for split, digest in manifest["tasks"].items():
        num = config.eval.tasks if split == "validation" else config.test.tasks
        compared.append(Fact(f"{split} tasks", digest, task_hash(held_out_tasks(family, split, num, config.tasks_seed))))
    return compared


def job_of(folder: RunFolder, out: Path) -> Job:
    """Return how the run was composed, for one in the folder ``out``.

    Raises:
        UserError: if its command is not one of ``metarl train``.
    """
    manifest = folder.manifest()
    try:
        words = shlex.split(manifest["command"])
    except ValueError:
        words = []
    if "train" not in words:
        raise UserError(f"{folder}: its command is no metarl train: {manifest['command']}")
    rest = words[words.index("train") + 1 :]
    places = ("run=", "outputs=", "robust=", "oracle=")
    flags = tuple(rest[: next((k for k, word in enumerate(rest) if "=" in word and not word.startswith("-")), len(rest))])
    overrides = [word for word in rest[len(flags) :] if not word.startswith(places)]
    return Job(manifest["choices"], [*overrides, f"run={out}"], flags=flags)


def agreements(one: RunFolder, other: RunFolder) -> list[Agreement]:
    """Compare the numbers of two finished runs: all metrics but times, and the returns of all tasks.

    Raises:
        UserError: if a folder cannot be read, or a result is damaged or was changed.
    """
    pairs = [_agreement("metrics", *(_metrics(folder.path / "metrics.jsonl") for folder in (one, other)))]
    results = [read_results(folder) for folder in (one, other)]
    for name in sorted(results[0].keys() & results[1].keys()):
        pairs.append(_agreement(f"returns on {name} tasks", *(_returns(each[name]) for each in results)))
    return pairs


def _metrics(path: Path) -> dict[str, float]:
    lines = read(path, LARGEST_LOG).decode(errors="replace").splitlines() if path.exists() else []
    metrics = dict[str, float]()
    for values in map(entry, lines):
        step = int(values.pop("step", 0))
        metrics |= {f"{name} at {step:,} env steps": value for name, value in values.items() if not name.startswith(CLOCK)}
    return metrics


def _returns(result: dict[str, Any]) -> dict[str, float]:
    curves = {name: result.get(name) for name in ("adapted", "sampled", "from_scratch", "random")}
    return {
        f"{name}, point {k}, task {m}": math.nan if value is None else float(value)
        for name, curve in curves.items()
        if curve
        for k, row in enumerate(curve["task_returns"])
        for m, value in enumerate(row)
    }


def _agreement(what: str, one: dict[str, float], other: dict[str, float]) -> Agreement:
    names = list(dict.fromkeys([*one, *other]))
    equal, largest, first = 0, 0.0, None
    for name in names:
        then, now = one.get(name), other.get(name)
        if then is not None and now is not None and (then == now or (math.isnan(then) and math.isnan(now))):
            equal += 1
            continue
        first = first or f"{name}: {then} then, {now} now"
        gap = math.inf if then is None or now is None else abs(then - now)
        largest = max(largest, math.inf if math.isnan(gap) else gap)
    return Agreement(what, len(names), equal, largest, first)
