"""Comparisons as tables: a row for each group, with intervals over seeds.

| column | value |
|---|---|
| before, after | mean return over tasks, before adaptation and after it |
| normalised score | (after - robust) / (oracle - robust), of means over tasks |
| IQM, worst tenth, solved | of the returns after adaptation |
| better | the probability that a run of the row has a higher return on a task than one of the baseline, mean over tasks |
| gradient steps, support | of the adaptation, per task |
| env steps, minutes | of the training |
| peak MB, GPU MB | the largest memory of a run in training [10^6 bytes]: the largest of its runs |
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from metarl_cli.comparison.groups import Comparison, Group
from metarl_cli.comparison.saved import Saved, Tested
from metarl_cli.config.messages import known_options
from metarl_cli.errors import UserError, visible
from metarl_cli.evaluation import statistics
from metarl_cli.evaluation.statistics import (
    Aggregate,
    Interval,
    Scores,
    improvement,
    iqm,
    mean,
    normalised,
    over_seeds,
    stratified,
    worst_tenth,
)

ONE_FOR_ALL = ("conditioned", "conditioned_pg")  # modules of one policy for all tasks, which knows them or does not
Cell = Interval | float | int | str | None


COLUMNS = [
    *("runs", "before", "after", "normalised score", "IQM", "worst tenth", "solved", "better"),
    *("gradient steps", "support", "env steps", "minutes", "peak MB", "GPU MB"),
]


IntervalOf = Callable[[Scores, Aggregate], Interval]  # of an aggregate over the tasks of scores [S, M]


class Intervals(NamedTuple):
    """A way to compute intervals of several runs, and what a reader must know of it."""

    of: IntervalOf
    note: str


INTERVALS = {
    "seeds": Intervals(
        lambda scores, aggregate: over_seeds(aggregate(scores)),
        "Returns and scores are means over runs, with Student's 95 % interval over seeds where there are several.",
    ),
    "stratified": Intervals(
        stratified,
        "Returns and scores are of all runs' tasks together, with the 95 % interval of the stratified bootstrap, as rliable's: "
        "too narrow where a run has one network for all its tasks.",
    ),
}


class Table(NamedTuple):
    """Rows of cells; a column without a value in any row is left out."""

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    notes: list[str]

    def without_empty(self) -> Table:
        """Return the table without columns that have no values."""
        full = [k for k in range(len(self.columns)) if any(row[k] is not None for row in self.rows)]
        return self._replace(columns=[self.columns[k] for k in full], rows=[[row[k] for k in full] for row in self.rows])

    def with_columns(self, names: Sequence[str]) -> Table:
        """Return the table with some of its columns alone, after the first, and without notes on others.

        Names may have ``_`` for a space.

        Raises:
            UserError: for a column that there is not.
        """
        wanted = [name.replace("_", " ") for name in names]
        if wrong := [name for name in wanted if name not in COLUMNS]:
            raise UserError(*(f"columns={name}: no such column{known_options(name, COLUMNS)}" for name in wrong))
        kept = [0, *(self.columns.index(name) for name in wanted if name in self.columns[1:])]
        gone = {*COLUMNS} - {*wanted}
        notes = [note for note in self.notes if note.partition(":")[0] not in gone]
        return self._replace(
            columns=[self.columns[k] for k in kept], rows=[[row[k] for k in kept] for row in self.rows], notes=notes
        )


class Ends(NamedTuple):
    """The means over tasks between which the normalised score lies."""

    robust: float
    oracle: float
    source: str
    groups: list[str]  # the names of those that they are of


def tested(run: Saved) -> Tested:
    """Return the result of a run that has one."""
    assert run.tested
    return run.tested


def until(comparison: Comparison, step: int) -> Comparison | None:
    """Return a comparison whose adaptations end at a step; None where no group was tested after it.

    Runs that do not adapt, which have one point, stay as they are.
    """
    kept, notes = list[Group](), list(comparison.notes)
    for group in comparison.groups:
        if all(step in (steps := tested(run).adapted.steps) or len(steps) == 1 for run in group.runs):
            kept.append(group._replace(runs=[_until(run, step) for run in group.runs]))
        else:
            known = dict.fromkeys(each for run in group.runs for each in tested(run).adapted.steps)
            notes.append(f"{group.name} is left out: it was tested after {', '.join(map(str, known))}, not after step {step}.")
    adapts = any(step in tested(run).adapted.steps for group in kept for run in group.runs)
    return comparison._replace(groups=kept, notes=notes) if adapts else None


def _until(run: Saved, step: int) -> Saved:
    result = tested(run)
    if len(result.adapted.steps) == 1:
        return run
    return run._replace(tested=result._replace(adapted=result.adapted.until(step)))


def after(group: Group) -> Scores:
    """Return the returns ``[S, M]`` of a group's runs on their tasks, after the last step of adaptation."""
    return np.stack([tested(run).adapted.scores[-1] for run in group.runs])


def before(group: Group) -> Scores:
    """Return the returns ``[S, M]`` before adaptation."""
    return np.stack([tested(run).adapted.scores[0] for run in group.runs])


def _best(groups: Sequence[Group], knowledge: bool) -> Group | None:
    """Return the best group of one policy for all tasks, which is given the task or sees the observation alone."""
    candidates = [
        group
        for group in groups
        if (values := group.runs[0].values).get("algo.module") in ONE_FOR_ALL
        and values.get("algo.knowledge") is knowledge
        and not values.get("algo.history")
    ]
    return max(candidates, key=lambda group: float(mean(after(group)).mean()), default=None)


def ends(comparison: Comparison) -> Ends | None:
    """Return the ends of the normalised score: of runs that are compared, else what the runs themselves know; None: unknown."""

    def of(group: Group | None) -> tuple[float, str] | None:
        return None if group is None else (float(mean(after(group)).mean()), group.name)

    def known(*roles: str) -> tuple[float, str] | None:
        for role in roles:
            runs = [run for group in comparison.groups for run in group.runs if role in tested(run).references]
            if runs:  # on the same tasks the first counts; folds have one each
                levels = {tested(run).tasks: float(mean(tested(run).references[role])) for run in reversed(runs)}
                return float(np.mean(list(levels.values()))), f"the {role} policy that the result of {runs[0].path.name} has"
        return None

    best = [_best(comparison.groups, knowledge) for knowledge in (False, True)]
    robust = of(best[0]) or known("robust")
    oracle = of(best[1]) or known("oracle", "optimum")
    if robust is None or oracle is None or not oracle[0] > robust[0]:
        return None
    source = f"0 is {robust[1]} ({number(robust[0])}), 1 is {oracle[1]} ({number(oracle[0])})"
    return Ends(robust[0], oracle[0], source, [group.name for group in best if group])


def table(comparison: Comparison, baseline: str | None = None, intervals: str = "seeds") -> Table:
    """Return the table of a comparison.

    Args:
        comparison: groups on the same tasks.
        baseline: the name or the algorithm of the group that others are compared with, where it is there; None: the robust
            policy, else the first.
        intervals: a key of :data:`INTERVALS`.
    """
    groups, limits = comparison.groups, ends(comparison)
    base = find_baseline(groups, baseline) if len(groups) > 1 else None
    rows = [_row(group, limits, base, INTERVALS[intervals].of) for group in groups]
    notes = list(comparison.notes)
    if any(len(group.runs) > 1 for group in groups):
        notes.insert(0, INTERVALS[intervals].note)
    if limits:
        notes.append(f"normalised score: {limits.source}; its interval holds them fixed.")
    if base:
        notes.append(f"better: the probability of a higher return on a task than {base.name}.")
    num = after(groups[0]).shape[1]
    title = f"{comparison.title}: {num} held-out task{'s' * (num > 1)} ({comparison.tasks})"
    if groups[0].runs[0].folds and any(len(by_tasks(group)) > 1 for group in groups):
        notes.append("A fold is a run: it is tested on tasks of its own, and trained without them.")
    return Table(title, ["algorithm", *COLUMNS], [[row[name] for name in ("algorithm", *COLUMNS)] for row in rows], notes)


def find_baseline(groups: Sequence[Group], name: str | None) -> Group | None:
    """Return the group of a name or an algorithm, of several the best one; None: there is none."""
    if name is None:
        return _best(groups, False) or groups[0]
    named = [group for group in groups if name == group.name] or [group for group in groups if name == group.algo]
    return max(named, key=lambda group: float(mean(after(group)).mean()), default=None)


def _row(group: Group, limits: Ends | None, base: Group | None, of: IntervalOf) -> dict[str, Cell]:
    scores, curves = after(group), [tested(run).adapted for run in group.runs]

    tasks = [tested(run).tasks for run in group.runs]
    folds = [[k for k, each in enumerate(tasks) if each == its] for its in dict.fromkeys(tasks)]

    def interval(scores: Scores, aggregate: Aggregate) -> Interval:
        if len(folds) == 1:
            return of(scores, aggregate)
        return over_seeds([float(aggregate(scores[rows]).mean()) for rows in folds])

    def average(values: Sequence[float]) -> float | None:
        return float(np.mean(values)) or None

    solved = [curve.solved[-1] for curve in curves]
    known = [share for share in solved if share is not None]
    return {
        "algorithm": group.name,
        "runs": len(group.runs),
        "before": interval(before(group), mean),
        "after": interval(scores, mean),
        "normalised score": None if limits is None else interval(normalised(scores, limits.robust, limits.oracle), mean),
        "IQM": interval(scores, iqm),
        "worst tenth": interval(scores, worst_tenth),
        "solved": float(np.mean(known)) if len(known) == len(solved) else None,
        "better": None if base is None or base is group else better(group, base),
        "gradient steps": average([curve.gradient_steps[-1] for curve in curves]),
        "support": average([curve.env_steps[-1] for curve in curves]),
        "env steps": average([run.env_steps for run in group.runs]),
        "minutes": average([run.seconds / 60 for run in group.runs]),
        "peak MB": _most([run.memory for run in group.runs]),
        "GPU MB": _most([run.gpu_memory for run in group.runs]),
    }


def by_tasks(group: Group) -> dict[str, list[Saved]]:
    """Return the runs of a group that were tested on the same tasks: all of them, or those of each fold."""
    runs = dict[str, list[Saved]]()
    for run in group.runs:
        runs.setdefault(tested(run).tasks, []).append(run)
    return runs


def better(group: Group, base: Group) -> Interval | None:
    """Return the probability that a run has a higher return on a task than one of the baseline; None without common tasks."""
    one, two = by_tasks(group), by_tasks(base)
    intervals = [improvement(after(Group("", one[tasks])), after(Group("", two[tasks]))) for tasks in one if tasks in two]
    if len(intervals) > 1:  # folds
        return over_seeds([each.value for each in intervals])
    return intervals[0] if intervals else None


def _most(bytes_taken: Sequence[int | None]) -> float | None:
    """Return the most memory that one of some runs has taken, in megabytes; None where none says it."""
    known = [taken for taken in bytes_taken if taken]
    return max(known) / 1e6 if known else None


# -- texts

COUNTS = {"env steps", "support", "gradient steps", "peak MB", "GPU MB"}


def number(value: float, digits: int | None = None) -> str:
    """Return a number in as many digits as it has a use for."""
    if not math.isfinite(value):
        return "-"
    return statistics.number(value, (1 if abs(value) >= 100 else 2) if digits is None else digits)


def whole(value: float) -> str:
    """Return a whole number, from a million on in millions."""
    return f"{statistics.number(value / 1e6, 1)} M" if value >= 1e6 else f"{round(value):,}"


def text(column: str, cell: Cell) -> str:
    """Return a cell as people read it."""
    if cell is None:
        return "-"
    if isinstance(cell, Interval):
        digits = 1 if max((abs(each) for each in cell if math.isfinite(each)), default=0) >= 100 else 2
        if math.isnan(cell.low):
            return number(cell.value, digits)
        return f"{number(cell.value, digits)} [{number(cell.low, digits)}, {number(cell.high, digits)}]"
    if isinstance(cell, str):
        return cell
    if column in COUNTS:
        return whole(cell)
    if column == "solved":
        return f"{cell:.0%}"
    return str(cell) if isinstance(cell, int) else number(cell)


def as_markdown(table: Table) -> str:
    """Return a table in Markdown, with its title and its notes."""
    notes = [f"- {in_markdown(note)}" for note in table.notes]
    return "\n".join([f"## {in_markdown(table.title)}", "", markdown_rows(table), "", *notes, ""])


def markdown_rows(table: Table) -> str:
    """Return the rows of a table in Markdown, under their headings."""

    def shown(column: str, cell: Cell) -> str:
        return in_markdown(cell) if isinstance(cell, str) else text(column, cell)

    lines = [f"| {' | '.join(shown(*cell) for cell in _cells(table, row))} |" for row in table.rows]
    return "\n".join([f"| {' | '.join(table.columns)} |", "|" + "---|" * len(table.columns), *lines])


def _cells(table: Table, row: list[Cell]) -> list[tuple[str, Cell]]:
    return list(zip(table.columns, row, strict=True))


def in_markdown(words: str) -> str:
    """Return plain text as Markdown that shows it."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~^$])", r"\\\1", visible(words).replace("&", "&amp;").replace("<", "&lt;"))


def as_csv(tables: Sequence[Table]) -> str:
    """Return tables as one CSV with all digits; an interval has two more columns, ``low`` and ``high``."""
    records = [dict([("tasks", _in_csv(table.title)), *_numbers(_cells(table, row))]) for table in tables for row in table.rows]
    names = dict.fromkeys(name for record in records for name in record)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return buffer.getvalue()


def _numbers(cells: list[tuple[str, Cell]]) -> list[tuple[str, Any]]:
    columns = list[tuple[str, Any]]()
    for name, cell in cells:
        columns.append((name, cell.value if isinstance(cell, Interval) else _in_csv(cell) if isinstance(cell, str) else cell))
        if isinstance(cell, Interval):
            columns += [
                (f"{name} {end}", None if math.isnan(bound) else bound)
                for end, bound in (("low", cell.low), ("high", cell.high))
            ]
    return columns


def _in_csv(words: str) -> str:
    """Return a text that a spreadsheet does not take for a formula."""
    return f"'{visible(words)}" if words.startswith(tuple("=+-@\t\r")) else visible(words)


TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}
TEX |= {character: f"\\{character}" for character in "&%$#_{}"}


def as_latex(table: Table) -> str:
    """Return a table in LaTeX, for the package booktabs; its notes are comments before it."""
    align = "l" + "r" * (len(table.columns) - 1)
    head = " & ".join(_in_latex(name) for name in table.columns)
    lines = [" & ".join(_cell_in_latex(*cell) for cell in _cells(table, row)) + r" \\" for row in table.rows]
    comments = [f"% {visible(note)}" for note in (table.title, *table.notes)]
    begin, end = rf"\begin{{tabular}}{{{align}}}", r"\end{tabular}"
    return "\n".join([*comments, begin, r"\toprule", rf"{head} \\", r"\midrule", *lines, r"\bottomrule", end, ""])


def _cell_in_latex(column: str, cell: Cell) -> str:
    """Return a cell in LaTeX: numbers with a minus sign, a text that is no argument of the end of the line before."""
    words = _in_latex(text(column, cell))
    return f"{{}}{words}" if isinstance(cell, str) else re.sub(r"-(?=\d)", "$-$", words)


def _in_latex(words: str) -> str:
    return "".join(TEX.get(character, character) for character in visible(words))


def as_values(table: Table) -> dict[str, Any]:
    """Return a table as plain values: a dict for each row, an interval as ``{"value", "low", "high"}``.

    What is no finite number, such as the bounds of a single run, is None.
    """

    def plain(cell: Cell) -> Any:
        if isinstance(cell, Interval):
            return {name: plain(value) for name, value in cell._asdict().items()}
        return None if isinstance(cell, float) and not math.isfinite(cell) else cell

    rows = [{name: plain(cell) for name, cell in _cells(table, row)} for row in table.rows]
    return {"title": table.title, "rows": rows, "notes": table.notes}
