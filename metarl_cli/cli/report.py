"""``metarl report``: compare runs: tables with intervals over seeds, figures, LaTeX, a web page."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table as Drawn
from rich.text import Text

from metarl_cli.cli.terminal import waiting
from metarl_cli.config.messages import did_you_mean
from metarl_cli.errors import UserError
from metarl_cli.progress import wide_console

if TYPE_CHECKING:
    from metarl_cli.comparison.tables import Table

HELP = """\
metarl report: compare runs, with intervals over seeds.

usage: metarl report [FOLDER ...] [key=value ...]

Runs that differ in the seed alone are a group, with a row of the table for their environment and tasks. FOLDER is a run
folder, one that holds run folders, or a file that keeps runs (format=runs); without one it is outputs.

  by=algo              what makes a group: options and keys, by=algo,outer.lr; all but the seed
  split=test           the held-out tasks: test, or ood (beyond the ranges of training)
  step=3               returns after so many steps of adaptation; the last
  baseline=robust_dqn  the group that "better" compares with; robust, else the first
  columns=after,IQM    columns of the tables: before, after, normalised_score, ...; all that have a value
  intervals=seeds      over seeds (Student's), or stratified: a bootstrap within tasks, as rliable's
  against=env_steps    the axis of learning curves: env_steps, seconds, iterations
  format=html,tex      files to write: md, csv, json, html, tex (booktabs), png, svg, pdf, tensorboard; none.
                       runs: all that a report needs of the runs, in one file
  out=report           the folder of these files

examples
  metarl report                                     all runs in outputs
  metarl report outputs by=algo format=html         one page with tables and figures, for a browser
  metarl report outputs format=tex,pdf out=paper columns=after,normalised_score
                                                    a LaTeX table and figures for a paper
  metarl report outputs format=tensorboard          then: tensorboard --logdir report/tensorboard

From Python: metarl.report("outputs", by=["algo"])["tables"].
"""
LISTS = ("by", "columns", "format")
KEYS = ("by", "split", "step", "baseline", "columns", "intervals", "against", "format", "out")
FORMAT, OUT = "format", "out"
GAP = 2  # [characters] between columns
MOST_IN_TITLE = 3  # paths
MOST_NAMES = 6  # of files that are listed one by one


def run(words: list[str]) -> int:
    """Compare the runs in some folders; returns the exit code.

    Raises:
        UserError: for a word that is neither a folder nor one of the keys, or where there is nothing to compare.
    """
    if {"-h", "--help"} & set(words):
        print(HELP, end="")
        return 0
    paths, options = parse(words)
    formats, out = options.pop(FORMAT, []), Path(options.pop(OUT, "report"))
    began = time.monotonic()
    with waiting("reading ..."):
        from metarl_cli.comparison.report import check_formats, report, write

        check_formats(formats)
        compared = report(paths, **options)
    console = wide_console()
    for table in compared.tables:
        for part in drawn(table, console.width):
            console.print(part)
        for note in table.notes:
            console.print(Text(note, "table.caption"))
        console.print()
    for note in compared.notes:
        console.print(Text(note), soft_wrap=True)
    if formats:
        with waiting("drawing ..."):
            more = f" and {len(paths) - MOST_IN_TITLE} more" if len(paths) > MOST_IN_TITLE else ""
            written = write(compared, out, formats, f"Report on {', '.join(map(str, paths[:MOST_IN_TITLE]))}{more}")
        for path in written if len(written) <= MOST_NAMES else [out]:
            console.print(Text(f"written: {path}{f', {len(written)} files' if path == out else ''}"), soft_wrap=True)
    runs = sum(len(group.runs) for comparison in compared.comparisons for group in comparison.groups)
    console.print(Text(f"{runs} runs in {time.monotonic() - began:.1f} s"))
    return 0


def complete(words: list[str]) -> list[str]:
    """Return the keys that are not given yet, for completion."""
    return [f"{key}=" for key in KEYS if not any(word.startswith(f"{key}=") for word in words)]


def parse(words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the folders and the options of a command line.

    Raises:
        UserError: for a flag, an unknown key, a key given twice, or a step that is no whole number.
    """
    paths, options, problems = list[str](), dict[str, Any](), list[str]()
    for word in words:
        key, equals, value = word.partition("=")
        if word.startswith("-"):
            problems.append(f"{word}: no such flag; metarl report takes folders and key=value")
        elif not equals or os.path.exists(word):
            paths.append(word)
        elif key not in KEYS:
            problems.append(f"{key}: no such key{did_you_mean(key, KEYS) or '; known: ' + ', '.join(KEYS)}")
        elif key in options:
            problems.append(f"{key}: is given twice")
        elif key == "step" and not (value.isascii() and value.isdecimal() and len(value) < 9):
            problems.append(f"step={value}: must be an integer >= 0")
        elif not value:
            problems.append(f"{key}=: has no value")
        else:
            options[key] = value.split(",") if key in LISTS else int(value) if key == "step" else value
    if problems:
        raise UserError(*problems)
    return paths or ["outputs"], options


def drawn(table: Table, width: int) -> Iterator[Drawn]:
    """Yield a table for a terminal, in parts that fit its width; each part has the first column."""
    from metarl_cli.comparison.tables import text

    columns = list(zip(table.columns, zip(*table.rows, strict=True), strict=True))
    cells = [[text(name, cell).replace(" [", "\n[") for cell in column] for name, column in columns]
    headings = [name.replace(" ", "\n") for name in table.columns]
    sizes = [
        max(len(line) for lines in (heading, *each) for line in lines.split("\n"))
        for heading, each in zip(headings, cells, strict=True)
    ]
    sizes[0] = min(sizes[0], width // 3)
    parts, left = [[0]], 0
    for place in range(1, len(sizes)):
        left = width - sum(sizes[k] + GAP for k in parts[-1]) - GAP
        if sizes[place] > left and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(place)
    for number, part in enumerate(parts):
        drawn = Drawn(title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        drawn.collapse_padding, drawn.title = True, table.title if number == 0 else None
        for place in part:
            options: dict[str, Any] = {"justify": "right" if place else "left", "min_width": sizes[place], "vertical": "top"}
            drawn.add_column(Text(headings[place]), overflow="fold", **options)
        for row in zip(*(cells[place] for place in part), strict=True):
            drawn.add_row(*map(Text, row))
        yield drawn
