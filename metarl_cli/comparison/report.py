"""Reports: tables and figures of runs beside each other, in the terminal and in files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metarl_cli.comparison import kept
from metarl_cli.comparison.figures import FORMATS, encode, figures, scores
from metarl_cli.comparison.groups import Comparison, compare
from metarl_cli.comparison.page import page
from metarl_cli.comparison.reading import find
from metarl_cli.comparison.saved import AXES, SPLITS, Saved
from metarl_cli.comparison.tables import (
    INTERVALS,
    Table,
    as_csv,
    as_latex,
    as_markdown,
    as_values,
    find_baseline,
    in_markdown,
    table,
    until,
)
from metarl_cli.config.messages import known_options
from metarl_cli.errors import UserError
from metarl_cli.runs.files import write_whole
from metarl_cli.runs.naming import short_names

TEXTS = ("md", "csv", "json", "html", "tex", "tensorboard", "runs")  # formats beside those of figures


class Report(NamedTuple):
    """Runs, their comparisons, the table of each, and one line on each run that has no place in one."""

    runs: list[Saved]
    comparisons: list[Comparison]
    tables: list[Table]
    notes: list[str]
    against: str

    def values(self) -> dict[str, Any]:
        """Return the tables and notes as plain values."""
        return {"tables": [as_values(each) for each in self.tables], "notes": self.notes}


def report(
    paths: Sequence[str | Path],
    by: Sequence[str] = (),
    against: str = "env_steps",
    split: str = "test",
    step: int | None = None,
    baseline: str | None = None,
    columns: Sequence[str] = (),
    intervals: str = "seeds",
) -> Report:
    """Compare runs.

    Args:
        paths: run folders, folders that hold them, or files that keep runs (``format=runs``).
        by: keys whose values make a group, such as ``algo``; none: all but the seed.
        against: the axis of learning curves, one of :data:`AXES`.
        split: the held-out tasks, one of :data:`SPLITS`.
        step: of adaptation, after which returns are compared; None: the last that a run was tested after.
        baseline: the group that others are compared with; None: the robust policy, else the first group.
        columns: of the tables; none: all that have a value.
        intervals: ``seeds`` (Student's, over runs) or ``stratified`` (a bootstrap within tasks, as rliable's).

    Raises:
        UserError: if there is no run with a result, or a value is none of those there are.
    """
    keys = (("against", against, list(AXES)), ("split", split, list(SPLITS)), ("intervals", intervals, list(INTERVALS)))
    for name, value, choices in keys:
        if value not in choices:
            raise UserError(f"{name}={value}: must be one of {', '.join(choices)}")
    loaded = find(paths, split)
    comparisons, left = compare(loaded.runs, by)
    notes = [*loaded.problems, *left]
    if not comparisons:
        raise UserError(f"no run has a result on {split} tasks", *notes[:5])
    if intervals == "stratified" and any(run.folds for each in comparisons for group in each.groups for run in group.runs):
        raise UserError("intervals=stratified resamples the runs of each task, and folds have no tasks in common")
    counts = Counter(each.env for each in comparisons)
    notes += [
        f"{env} has {num} tables: its runs differ in the environment or the tasks" for env, num in counts.items() if num > 1
    ]
    if step is not None:
        cut = [until(each, step) for each in comparisons]
        notes += [f"{c.title}: no run was tested after step {step}" for c, u in zip(comparisons, cut, strict=True) if u is None]
        if not (comparisons := [each for each in cut if each]):
            raise UserError(f"step={step}: no run was tested after it")
    if baseline is not None and not any(find_baseline(each.groups, baseline) for each in comparisons):
        known = dict.fromkeys(group.name for each in comparisons for group in each.groups)
        raise UserError(f"baseline={baseline}: must be one of {', '.join(known)}")
    whole = [table(each, baseline, intervals) for each in comparisons]
    tables = [each.with_columns(columns) if columns else each.without_empty() for each in whole]
    return Report(loaded.runs, comparisons, tables, notes, against)


def check_formats(formats: Sequence[str]) -> None:
    """Raises UserError for a format that there is not."""
    known = [*TEXTS, *FORMATS]
    if wrong := [form for form in formats if form not in known]:
        raise UserError(*(f"format={form}: no such format{known_options(form, known)}" for form in wrong))


def write(content: Report, folder: Path, formats: Sequence[str], title: str) -> list[Path]:
    """Write a report into a folder, in some formats; returns what was written.

    ``md``, ``csv``, ``json`` and ``html`` hold all tables, ``tex`` has a file for each, and ``png``, ``svg`` and ``pdf`` have
    one for each figure, and one with the scores of all. ``tensorboard`` is a folder of events. ``runs`` is the file
    ``runs.json``, of which reports can be made again.

    Raises:
        UserError: for a format that there is not.
        DiskFault: if a file cannot be written.
    """
    check_formats(formats)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror}") from error
    written, stems = list[Path](), short_names([each.title for each in content.comparisons])

    def keep(name: str, content: str | bytes) -> None:
        write_whole(folder / name, content.encode() if isinstance(content, str) else content)
        written.append(folder / name)

    whole: dict[str, Callable[[], str]] = {
        "md": lambda: "\n".join([f"# {in_markdown(title)}", "", *map(as_markdown, content.tables)]),
        "csv": lambda: as_csv(content.tables),
        "json": lambda: json.dumps(content.values(), indent=1, allow_nan=False) + "\n",
        "html": lambda: page(
            title, content.tables, [_encoded(each, content.against, "svg") for each in content.comparisons], content.notes
        ),
    }
    for form in dict.fromkeys(formats):
        if form in whole:
            keep(f"report.{form}", whole[form]())
        elif form == "runs":
            keep("runs.json", kept.text(content.runs))
        elif form == "tensorboard":
            from metarl_cli.comparison import board

            places = (folder / "tensorboard" / stem for stem in stems)
            written += [
                path for each, place in zip(content.comparisons, places, strict=True) for path in board.write(each, place)
            ]
        else:
            for stem, comparison, rows in zip(stems, content.comparisons, content.tables, strict=True):
                if form == "tex":
                    keep(f"{stem}.tex", as_latex(rows))
                else:
                    for name, image in _encoded(comparison, content.against, form).items():
                        keep(f"{stem}-{name}.{form}", image)
            if form in FORMATS and len(stems) > 1 and (figure := scores(content.comparisons)):
                keep(f"scores.{form}", encode(figure, form))
    return written


def _encoded(comparison: Comparison, against: str, form: str) -> dict[str, bytes]:
    return {name: encode(figure, form) for name, figure in figures(comparison, against).items()}
