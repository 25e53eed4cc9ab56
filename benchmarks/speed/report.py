"""From the repetitions of a result file to tables: medians, quartiles, and ratios that are paired by round."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import linear_regression, median, quantiles
from typing import Any, NamedTuple

from tables import REFERENCES

Record = dict[str, Any]
CLOCKS = {  # of repetitions -> in words
    "wall": "wall time",
    "processor": "processor time",
    "path": "processor time of the main thread and the busiest other, which is what idle cores would take",
}
MARKER = re.compile(r"(<!-- speed: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


class Spread(NamedTuple):
    """A median with its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """That of values, at least one."""
        low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
        return cls(median(values), low, high)

    def show(self, digits: int = 3) -> str:
        """``1.25 [1.2, 1.31]``"""
        return f"{number(self.median, digits)} [{number(self.low, digits)}, {number(self.high, digits)}]"


def number(value: float, digits: int = 3) -> str:
    """Three significant digits, and all of those before the point: ``0.0123``, ``1.23``, ``12,345``."""
    if value == 0 or not math.isfinite(value):
        return str(value)
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}"


def rates(contender: Record, clock: str) -> list[float]:
    """Work per second of each repetition."""
    return [run["work"] / run[clock] for run in contender["runs"]]


def ratios(contender: Record, other: Record, clock: str) -> list[float]:
    """How many times as fast a contender is as another, round by round."""
    return [mine / its for mine, its in zip(rates(contender, clock), rates(other, clock), strict=True)]


def measured(case: Record) -> dict[str, Record]:
    """The contenders of a case that were measured, by name; the first one is what others are compared with."""
    return {contender["name"]: contender for contender in case["contenders"] if contender["runs"]}


def cells(result: Record, case: Record, contender: Record) -> dict[str, str]:
    """The cells of a contender's row, by column."""
    clock, contenders, name = result["clock"], measured(case), contender["name"]
    first = case["contenders"][0]["name"]
    mine = rates(contender, clock)
    speed = Spread.of([1000 / rate for rate in mine] if result["milliseconds"] else mine)
    found = {"contender": name, "ms" if result["milliseconds"] else "per second": speed.show()}
    for reference, column in {first: f"{first} over it", **REFERENCES}.items():
        if reference in contenders:
            ratio = (
                "" if name in (reference, *REFERENCES) else Spread.of(ratios(contenders[reference], contender, clock)).show()
            )
            found[column] = ratio
    if "operations" in contender["facts"] and result["limit"] in contenders:
        possible = rates(contenders[result["limit"]], clock)
        shares = [rate * contender["facts"]["operations"] / most for rate, most in zip(mine, possible, strict=True)]
        found["share of the limit"] = f"{median(shares):.0%}"
    if "env_steps" in contender["runs"][0]:
        found["steps per lifetime"] = number(median(run["env_steps"] / run["work"] for run in contender["runs"]))
    return found | {"start-up [s]": number(contender["startup"])}


def rows(result: Record) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of a result's table: a contender each, but for the one that is the arithmetic limit."""
    found = []
    for case in result["cases"]:
        title = f"{case['name']} [{case['unit'] or result['unit']}]"
        for name, contender in measured(case).items():
            if name != result["limit"]:
                found.append({"work": title} | cells(result, case, contender))
                title = ""
    order = ["share of the limit", "steps per lifetime", "start-up [s]"]  # of the columns at the end
    names = dict.fromkeys(column for row in found for column in row)
    head = [*(name for name in names if name not in order), *(name for name in order if name in names)]
    return head, [[row.get(name, "") for name in head] for row in found]


def missing(result: Record) -> list[str]:
    """The contenders that were not measured, with the reason and the cases."""
    found: dict[tuple[str, str], list[str]] = {}
    for case in result["cases"]:
        for contender in case["contenders"]:
            if reason := contender.get("failed") or contender.get("unavailable"):
                found.setdefault((contender["name"], reason), []).append(case["name"])
    return [f"{name} ({', '.join(cases)}): {reason}" for (name, reason), cases in found.items()]


def curves(result: Record) -> dict[str, list[tuple[float, Spread, float]]]:
    """The points of what grows: its value, the milliseconds of a unit, and the peak of memory [MiB]."""
    found: dict[str, list[tuple[float, Spread, float]]] = {}
    for case in result["cases"]:
        axis, _, value = case["name"].partition(" = ")
        for contender in measured(case).values():
            time = Spread.of([1000 / rate for rate in rates(contender, result["clock"])])
            peak = max(run["peak_mib"] for run in [contender["first"], *contender["runs"]])
            found.setdefault(axis, []).append((float(value), time, peak))
    return found


def exponent(points: list[tuple[float, float]]) -> float:
    """The slope of the upper half of a curve on logarithmic axes: 1 is linear."""
    upper = [(math.log(x), math.log(max(y, 1e-9))) for x, y in points[len(points) // 2 :]]
    return linear_regression(*zip(*upper, strict=True)).slope


def growth_rows(result: Record) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of the table of growth."""
    head = ["what grows", "from", "to", "time [ms]", "time ~", "peak memory [MiB]", "memory ~"]
    found = []
    for axis, points in curves(result).items():
        values, times, peaks = zip(*points, strict=True)
        found.append(
            [
                axis,
                f"{values[0]:,.0f}",
                f"{values[-1]:,.0f}",
                f"{number(times[0].median)} to {number(times[-1].median)}",
                f"{exponent([(x, t.median) for x, t, _ in points]):.2f}",
                f"{number(peaks[0])} to {number(peaks[-1])}",
                f"{exponent([(x, p) for x, _, p in points]):.2f}",
            ]
        )
    return head, found


def table(result: Record) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of a result."""
    return growth_rows(result) if result["table"] == "growth" else rows(result)


def versions(result: Record) -> str:
    """The versions of what was measured, one for each package."""
    found: dict[str, str] = {}
    for case in result["cases"]:
        for contender in measured(case).values():
            found |= contender["versions"]
    return ", ".join(f"{name} {version}" for name, version in sorted(found.items()))


def provenance(result: Record) -> str:
    """Where, when and with what a result was measured, in a paragraph."""
    machine, before, after = result["machine"], result["load_before"][0], result["load_after"][0]
    where = f"{machine.get('gpu', machine['processor'])}, {machine['cores']} cores"
    return (
        f"`{result['command']}`, {result['date']}, revision {result['revision']}: {where}, Python {machine['python']}, "
        f"{versions(result)}. Medians [quartiles] of {result['rounds']} rounds, {CLOCKS[result['clock']]}, ratios by round; "
        f"load average {before} before and {after} after."
    )


def markdown(result: Record) -> str:
    """The table and its provenance for the documentation."""
    head, body = table(result)
    align = ["---", "---", *["---:"] * (len(head) - 2)]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, align, *body)]
    notes = [f"Not measured: {'; '.join(missing(result))}."] if missing(result) else []
    return "\n\n".join(['<div class="wide" markdown>', "\n".join(lines), "</div>", provenance(result), *notes]) + "\n"


def fill(page: str, results: Path) -> str:
    """The page with every table between its markers made anew from the result files that are there."""

    def made(match: re.Match[str]) -> str:
        path = results / f"{match[2]}.json"
        return f"{match[1]}\n{markdown(json.loads(path.read_text()))}\n{match[3]}" if path.exists() else match[0]

    return MARKER.sub(made, page)


def draw(result: Record, path: Path) -> None:
    """Draw what grows: time above, memory below, on logarithmic axes, with a linear slope beside each curve."""
    from matplotlib.figure import Figure

    found = curves(result)
    figure = Figure(figsize=(3 * len(found), 5.2), layout="constrained")
    axes = figure.subplots(2, len(found), squeeze=False)
    for column, (axis, points) in enumerate(found.items()):
        x = [value for value, _, _ in points]
        times, peaks = [time.median for _, time, _ in points], [peak for *_, peak in points]
        for place, label, y in zip(axes[:, column], ("time [ms]", "peak memory [MiB]"), (times, peaks), strict=True):
            place.loglog(x, y, "o-")
            place.loglog(x, [y[-1] * value / x[-1] for value in x], "--", color="grey", linewidth=1)
            place.set(xlabel=axis, ylabel=label if column == 0 else "")
            place.set_xscale("log", base=2)
            place.set_yscale("log", base=2)
            for ticks in (place.xaxis, place.yaxis):
                ticks.set_major_formatter("{x:g}")
            place.grid(alpha=0.3)
    figure.savefig(path, dpi=100)
