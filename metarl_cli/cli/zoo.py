"""``metarl zoo``: list the small trained runs that come with metarl, or describe one."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from statistics import fmean
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from metarl_cli.config.messages import known_options
from metarl_cli.errors import UserError
from metarl_cli.progress import wide_console
from metarl_cli.runs.shipped import PREFIX, entries, shipped_json, size

HELP = """\
metarl zoo: list the small trained runs that come with metarl, or describe one.

usage: metarl zoo [NAME ...]

Without a name, one row for each: the mean return on held-out tasks before and after adaptation, and after it on tasks from
wider ranges (ood). With a name, how it was trained and what it has scored. zoo:NAME stands for it wherever a run is named:

  metarl adapt run=zoo:NAME task.PARAMETER=VALUE
  metarl test run=zoo:NAME split=ood
  metarl report zoo:NAME zoo:NAME
  metarl export zoo:NAME

It is copied to outputs/zoo/NAME when it is first used; the package is never written.
From Python: metarl.load("zoo:NAME").
"""


def run(words: list[str]) -> int:
    """List the runs, or show those named in ``words``; returns the exit code.

    Raises:
        UserError: for a flag, or a name that does not exist.
    """
    if {"-h", "--help"} & set(words):
        print(HELP, end="")
        return 0
    if flags := [word for word in words if word.startswith("-")]:
        raise UserError(*(f"{flag}: no such flag; metarl zoo takes names of runs" for flag in flags))
    names = [word.removeprefix(PREFIX) for word in words]
    if wrong := [name for name in names if name not in entries()]:
        raise UserError(*(f"{name}: no such run comes with metarl{known_options(name, entries())}" for name in wrong))
    console = wide_console()
    if not names:
        console.print(_list())
        console.print(Text(f"Try one: {_example(next(iter(entries())))}"), soft_wrap=True)
    for name in names:
        for part in _show(name):
            console.print(part, soft_wrap=isinstance(part, Text))
    return 0


def complete(words: list[str]) -> list[str]:
    """Return the names of the runs, for completion."""
    return [name for name in entries() if name not in words]


def _list() -> Table:
    """Return a table with the mean returns of every run."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    table.collapse_padding = True
    table.add_column("run", overflow="fold")
    for name in ("before", "after", "ood", "KB"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, entry in entries().items():
        test, ood = (_means(shipped_json(name, f"results/{split}.json"), "adapted") for split in ("test", "ood"))
        numbers = [f"{test[0]:.2f}", f"{test[-1]:.2f}", f"{ood[-1]:.2f}" if ood else "", f"{size(name) / 1000:.0f}"]
        table.add_row(Text(f"{PREFIX}{name}", "bold") + Text(f"\n{entry.text}", "not bold dim"), *numbers)
    return table


def _show(name: str) -> Iterator[Text | Table]:
    """Yield what there is to know about a run."""
    manifest, entry = shipped_json(name, "run.json"), entries()[name]
    yield Text(f"{PREFIX}{name}", "bold") + Text(f": {entry.text}", "not bold")
    yield Text(f"made by: metarl {shlex.join(['train', *entry.train])}")
    trained = manifest["ended"][:10], f"metarl {manifest['versions']['metarl-cli']}, torch {manifest['versions']['torch']}"
    yield Text(f"trained on {' with '.join(trained)}, seed {manifest['seed']}; {size(name) / 1000:.0f} KB")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    columns = {split: result for split in ("test", "ood") if (result := shipped_json(name, f"results/{split}.json"))}
    table.add_column("return: mean")
    for split, result in columns.items():
        table.add_column(f"{len(result['adapted']['task_returns'][0])} {split} tasks", justify="right")
    rows = [dict(_points(result)) for result in columns.values()]
    for label in rows[0]:
        table.add_row(label, *(f"{row[label]:.2f}" if label in row else "" for row in rows))
    yield table
    yield Text(_example(name))


def _points(result: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the mean return of each policy that a result has."""
    yield "random policy", _means(result, "random")[0]
    trial, means = result["trial"] is not None, _means(result, "adapted")
    for step, value in zip(result["adapted"]["steps"], means, strict=True):
        yield f"episode {step + 1}" if trial else f"after step {step}" if step else "before adaptation", value
    for role in ("robust", "oracle"):
        if result[role]:
            yield role, fmean(result[role]["task_returns"])
    if result["optimum"]:
        yield "optimum", fmean(result["optimum"])


def _means(result: dict[str, Any], curve: str) -> list[float]:
    """Return the mean over tasks of each point of a curve; none without a result."""
    return [fmean(row) for row in result[curve]["task_returns"]] if result else []


def _example(name: str) -> str:
    return shlex.join(["metarl", "adapt", f"run={PREFIX}{name}", *entries()[name].adapt])
