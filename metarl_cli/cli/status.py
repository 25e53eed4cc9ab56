"""``metarl status``: show which runs of a sweep are done, running or failed, and the remaining time."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from metarl_cli.cli.terminal import waiting
from metarl_cli.errors import UserError
from metarl_cli.progress import wide_console

if TYPE_CHECKING:
    from metarl_cli.comparison.standing import Standing

HELP = """\
metarl status: show which runs of a sweep are done, running or failed, and the remaining time.

usage: metarl status [FOLDER ...] [watch=true]

FOLDER is a run folder, or one that holds run folders; without one it is outputs. Those that need attention come first:

  running      a process trains it; "left" is the time it will take at its mean speed so far
  silent       it was training, and nobody here does: killed, or on a machine that does not answer; issue its command again
  failed       the reason stands below; its folder's console.log has the traceback
  interrupted  it was stopped; issue its command again to go on
  finished     "score" is its return on the test tasks

watch=true shows them anew every few seconds until all have ended.
"""
EVERY = 5.0  # [s] between two looks
COLOURS = {"running": "cyan", "silent": "yellow", "failed": "red", "unreadable": "red", "finished": "green"}


def run(words: list[str]) -> int:
    """Show how the runs in some folders stand; returns the exit code.

    Raises:
        UserError: for a word that is neither a folder nor ``watch=true``, or where there is no run.
    """
    if {"-h", "--help"} & set(words):
        print(HELP, end="")
        return 0
    options = [word for word in words if word.startswith(("-", "watch="))]
    if wrong := [word for word in options if word not in ("watch=true", "watch=false")]:
        raise UserError(*(f"{word}: metarl status takes folders and watch=true" for word in wrong))
    paths = [word for word in words if word not in options] or ["outputs"]
    with waiting("reading ..."):
        from metarl_cli.comparison.standing import standings

        runs = standings(paths)
    if not runs:
        raise UserError(f"there is no run in {', '.join(paths)}; a run folder holds a run.json")
    console = wide_console()
    if "watch=true" not in options or not console.is_terminal:
        console.print(as_table(runs))
        return 0
    with Live(as_table(runs), console=console, auto_refresh=False) as live:
        while any(each.status in ("running", "created") for each in runs):
            time.sleep(EVERY)
            runs = standings(paths)
            live.update(as_table(runs), refresh=True)
    return 0


def complete(words: list[str]) -> list[str]:
    """Return what may come next, for completion."""
    return [] if any(word.startswith("watch=") for word in words) else ["watch=true"]


def as_table(runs: list[Standing]) -> Group:
    """Return a table of runs, with a line on all of them and one on each that failed."""
    from metarl_cli.evaluation.statistics import number

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.collapse_padding = True
    table.add_column("run", overflow="fold", ratio=1)
    for name in ("status", "iterations", "trained", "left", "validation", "score"):
        table.add_column(name, justify="right" if name != "status" else "left", no_wrap=True)
    for each in runs:
        iterations = f"{each.iteration}/{each.iterations}" if each.iterations else str(each.iteration)
        best, score = (("" if value is None else number(value)) for value in (each.best, each.score))
        cells = (each.path.name, each.status, iterations, duration(each.seconds), duration(each.left), best, score)
        table.add_row(*map(Text, cells), style=COLOURS.get(each.status))
    errors = [Text(f"{each.path}: {each.error}") for each in runs if each.error]
    return Group(table, *errors, Text(summary(runs)))


def summary(runs: list[Standing]) -> str:
    """Return how many runs there are of each status, and when those that train will have ended."""
    counts = Counter(each.status for each in runs)
    left = [each.left for each in runs if each.status == "running" and each.left is not None]
    end = f"; those that train end in about {duration(max(left))}" if left else ""
    return f"{len(runs)} run{'s' * (len(runs) > 1)}: {', '.join(f'{num} {status}' for status, num in counts.items())}{end}"


def duration(seconds: float | None) -> str:
    """Return a time as people say it."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
