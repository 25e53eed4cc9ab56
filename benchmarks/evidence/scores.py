"""The tables and the figures of the documents: those of ``metarl report``, of the kept runs, in the order of the matrix."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from matrix import FAMILIES, Kept, read, shortened

from metarl_cli.comparison.figures import encode, learning, scores
from metarl_cli.comparison.groups import Comparison, Group
from metarl_cli.comparison.saved import Saved
from metarl_cli.comparison.tables import Cell, Table, markdown_rows, table, tested
from metarl_cli.evaluation.statistics import mean

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [*sorted((ROOT / "docs" / "results").glob("*.md")), ROOT / "docs" / "evidence.md", ROOT / "README.md"]
MARKER = re.compile(r"(<!-- evidence: (\w+) -->\n).*?(\n<!-- end -->)", re.DOTALL)
COLUMNS = ["runs", "before", "after", "normalised score", "IQM", "worst tenth", "solved"]  # of the held-out tasks
BEYOND = {"after": "out of distribution", "normalised score": "its score"}  # of tasks beyond the ranges of training
COSTS = ["gradient steps", "support", "env steps", "minutes"]
MAIN = ["cartpole_family", "navigation_2d", "two_link_arm", "navigation_2d_sparse", "key_to_door"]  # overview, figure
MORE = ["mountain_car_family", "acrobot_family", "pendulum_family", "classic_mix", "gridworld", "scrambled_cartpole"]
APPLICATIONS = ["trading", "queues", "recommendation", "following", "arm"]
OVERVIEWS = {"overview": MAIN, "overview_applications": APPLICATIONS, "overview_more": MORE}
ROBUSTS, ORACLES = ("robust_dqn", "robust_pg"), ("oracle_dqn", "oracle_pg")  # a family has one of each
UPPER = "oracle_dqn, not scrambled"
ENDS = (*ROBUSTS, *ORACLES, UPPER)


def with_upper(family: str, split: str) -> Kept:
    """Return what is kept of a family's runs that were tested on a split, up to where all methods have had as much experience.

    Where no run on the family itself is its upper line, the oracle of the family that the matrix names stands beside its own.
    """
    entry, runs = FAMILIES[family], read(family, split)
    if "upper" in entry and runs:
        first = {method: runs[method] for method in ENDS if method in runs}
        others = read(entry["upper"], split)
        upper = [others[oracle] for oracle in ORACLES if oracle in others]
        runs = first | dict(zip([UPPER], upper, strict=False)) | runs
    return {method: found for method, each in runs.items() if (found := [shortened(run) for run in each if run.tested])}


def comparisons(family: str, split: str = "test") -> list[Comparison]:
    """Return a comparison of a family's runs; of a mix, one for each of its families, whose tasks take turns."""
    runs, entry = with_upper(family, split), FAMILIES[family]
    titles = entry.get("mix", [entry["title"]])
    return [
        Comparison(
            title, "", split, [Group(method, [every(run, place, len(titles)) for run in runs[method]]) for method in runs], []
        )
        for place, title in enumerate(titles)
        if runs
    ]


def every(run: Saved, first: int, step: int) -> Saved:
    """Return a run on every ``step``-th task alone, of which no result says how many are solved."""
    if step == 1:
        return run
    found = tested(run)
    curve = found.adapted._replace(scores=found.adapted.scores[:, first::step], solved=[None] * len(found.adapted.steps))
    references = {role: returns[first::step] for role, returns in found.references.items()}
    return run._replace(tested=found._replace(adapted=curve, references=references))


def cells(comparison: Comparison) -> dict[str, dict[str, Cell]]:
    """Return the cells of a report's table, by method and column."""
    found = table(comparison)
    return {str(row[0]): dict(zip(found.columns, row, strict=True)) for row in found.rows}


def tables(family: str) -> str:
    """Return the table of a family in Markdown; of a mix, one for each of its families."""
    found, beyond = comparisons(family), comparisons(family, "ood")
    if not found:
        return "Not measured yet."
    parts = [rows(each, beyond[place] if beyond else None) for place, each in enumerate(found)]
    return (
        parts[0]
        if len(parts) == 1
        else "\n\n".join(f"**{each.title}**\n\n{part}" for each, part in zip(found, parts, strict=True))
    )


def rows(comparison: Comparison, beyond: Comparison | None) -> str:
    """Return a row for each method, one for random actions, and one for the best possible ones where they are known."""
    far = cells(beyond) if beyond else {}
    columns = ["algorithm", *COLUMNS, *BEYOND.values(), *COSTS]
    lines = [
        [
            method,
            *(row[name] for name in COLUMNS),
            *(far.get(method, {}).get(name) for name in BEYOND),
            *(row[name] for name in COSTS),
        ]
        for method, row in cells(comparison).items()
    ]
    for role, name in {"random": "random policy", "optimum": "optimum"}.items():
        if (level := reference(comparison, role)) is not None:
            lines.append([{"algorithm": name, "after": level}.get(column) for column in columns])
    return markdown_rows(Table(comparison.title, columns, lines, []))


def steps(family: str) -> str:
    """Return the returns and normalised scores of a family's methods after each step of adaptation."""
    runs = read(family)
    if not runs:
        return "Not measured yet."
    last = {method: min(len(tested(run).adapted.steps) for run in each) - 1 for method, each in runs.items()}
    points = range(max(last.values()) + 1)
    columns = ["algorithm", "runs", "before", *(f"after {k}" for k in points[1:]), *(f"score {k}" for k in points[1:])]
    found = dict[str, dict[str, Cell]]()
    for k in points:
        groups = [Group(method, [until(run, k) for run in each]) for method, each in runs.items()]
        for method, row in cells(Comparison("", "", "test", groups, [])).items():
            named = found.setdefault(method, {name: row[name] for name in ("algorithm", "runs", "before")})
            if 0 < k <= last[method]:
                named |= {f"after {k}": row["after"], f"score {k}": row["normalised score"]}
    return markdown_rows(Table("", columns, [[row.get(column) for column in columns] for row in found.values()], []))


def until(run: Saved, point: int) -> Saved:
    """Return a run whose adaptation ends at a point, or at its own end."""
    found = tested(run)
    return run._replace(tested=found._replace(adapted=found.adapted.until_point(min(point, len(found.adapted.steps) - 1))))


def reference(comparison: Comparison, role: str) -> float | None:
    """Return the mean return of a policy that the results of runs name; None where none does."""
    runs = [tested(run).references for group in comparison.groups if group.name != UPPER for run in group.runs]
    known = [returns[role] for returns in runs if role in returns]
    return float(mean(np.stack(known)).mean()) if known else None


def overview(families: list[str]) -> str:
    """Return the normalised scores of all methods, a column for each of some families; and what they lie between."""
    measured = [each for family in families for each in comparisons(family)]
    found = {each.title: cells(each) for each in measured}
    methods = dict.fromkeys([*ENDS, *(method for family in families for method in FAMILIES[family]["methods"])])
    lines = list[list[Cell]]()
    for method in methods:
        name, column = (f"{method}: mean return", "after") if method in ENDS else (method, "normalised score")
        row = [each.get(method, {}).get(column) for each in found.values()]
        if any(cell is not None for cell in row):
            lines.append([name, *row])
    optima = [reference(each, "optimum") for each in measured]
    if any(level is not None for level in optima):
        lines.insert(0, ["optimum: mean return", *optima])
    return markdown_rows(Table("", ["algorithm", *found], lines, []))


def fill(page: str) -> str:
    """Return a page with the tables that its markers name."""

    def named(name: str) -> str:
        if name in OVERVIEWS:
            return overview(OVERVIEWS[name])
        return steps(name.removesuffix("_steps")) if name.endswith("_steps") else tables(name)

    return MARKER.sub(lambda match: match[1] + named(match[2]) + match[3], page)


def draw(docs: Path) -> None:
    """Draw the normalised scores of all methods on the main families, and the learning curves of robots."""
    robots = [each for family in FAMILIES if FAMILIES[family].get("by_step") for each in comparisons(family)]
    figures = {
        "evidence": scores([each for family in MAIN for each in comparisons(family)]),
        "results/robots": learning(robots),
    }
    for name, figure in figures.items():
        assert figure
        (docs / f"{name}.png").write_bytes(encode(figure, "png"))
