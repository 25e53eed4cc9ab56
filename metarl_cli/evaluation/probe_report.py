"""What an adaptation uses, as a table, a figure and plain values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from metarl_cli.evaluation.probe import BEFORE, OWN, Effect, Probe
from metarl_cli.evaluation.report import LINES, OPTIMUM, ORACLE, ROBUST, levels_as_json, named, sources
from metarl_cli.evaluation.statistics import Interval, number
from metarl_cli.interfaces import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def table(probe: Probe, title: str) -> Table:
    """Return the table that ``metarl test probe=support`` prints."""
    rows = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    rows.collapse_padding, rows.caption_justify = True, "left"
    rows.caption = Text("\n".join(notes(probe)), "table.caption")
    rows.add_column("support", overflow="fold", vertical="bottom")
    change = "minus its own" if probe.span is None else "minus its own,\nshare of range"
    for heading in ("return: mean\n[95 % over tasks]", "worst\ntenth", change):
        rows.add_column(Text(heading), justify="right", overflow="fold", no_wrap=True)
    for effect in probe.effects:
        difference = "" if effect.support == OWN else cost(effect)
        style = "bold" if effect.support == OWN else "dim" if effect.support == BEFORE else ""
        rows.add_row(effect.support, str(effect.mean), number(effect.worst_tenth), difference, style=style)
    return rows


def cost(effect: Effect) -> str:
    """Return the difference to the own support: as a share of the range where that is known."""
    if effect.share is None:
        return str(effect.difference)
    value, low, high = (f"{round(bound, 2) + 0.0:.0%}" for bound in effect.share)  # not -0%
    return value if math.isnan(effect.share.low) else f"{value} [{low}, {high}]"


def notes(probe: Probe) -> list[str]:
    """Return what a reader of the table has to know, one line each."""
    lines = ["The difference is paired over tasks. A change without a difference is in what the adaptation does not use."]
    if probe.span is not None:
        lines.append(f"The range from the robust policy to the oracle is {number(probe.span.mean())}.")
    return lines + sources(probe.levels, known=probe.levels.oracle is None and probe.span is not None)


def figure(probe: Probe, title: str) -> Figure:
    """Plot the mean return after each support as a bar with its interval over tasks, and the references as lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9, 1.2 + 0.32 * len(probe.effects)), layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.subplots()
    effects = probe.effects[::-1]  # the first one on top
    means = [effect.mean for effect in effects]
    bounds = [[m.value - m.low for m in means], [m.high - m.value for m in means]]
    colours = ["#0072b2" if e.support == OWN else "#bbbbbb" if e.support == BEFORE else "#56b4e9" for e in effects]
    axes.barh([e.support for e in effects], [m.value for m in means], xerr=bounds, color=colours, ecolor="black", capsize=3)
    for name, value in lines(probe).items():
        axes.axvline(value, label=name, **LINES[name])
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("return after adaptation (mean, 95 % over tasks)")
    axes.grid(axis="x", alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        drawing.legend(loc="outside right center", frameon=False)
    drawing.suptitle(title)
    return drawing


def lines(probe: Probe) -> dict[str, float]:
    """Return the mean returns of the references, by name."""
    robust, oracle = probe.levels
    returns = {name: float(level.returns.mean()) for name, level in ((ROBUST, robust), (ORACLE, oracle)) if level}
    if robust and oracle is None and probe.span is not None:
        returns[OPTIMUM] = float((robust.returns + probe.span).mean())
    return returns


def as_json(probe: Probe, tasks: Task, extra: dict[str, Any]) -> dict[str, Any]:
    """Convert a probe to plain values."""

    def entry(effect: Effect) -> dict[str, Any]:
        def plain(interval: Interval | None) -> dict[str, float] | None:
            return interval and interval._asdict()

        return {
            "support": effect.support,
            "tasks": effect.rows.tolist(),  # [m] the numbers of the tasks that have such a support
            "task_returns": effect.returns.tolist(),  # [m]
            "mean": plain(effect.mean),
            "worst_tenth": effect.worst_tenth,
            "difference": plain(effect.difference),
            "share_of_range": plain(effect.share),
        }

    effects = [entry(effect) for effect in probe.effects]
    return {**extra, "tasks": named(tasks), "effects": effects, **levels_as_json(probe.levels)}
