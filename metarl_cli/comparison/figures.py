"""The figures of a comparison, as one would put them in a paper.

    learning     return on validation tasks after adaptation, along training
    adaptation   return on the held-out tasks, along the steps of adaptation or the episodes of a trial
    profile      share of the tasks with a return above each level (Agarwal 2021, arXiv:2108.13264)
    tasks        each task's return before and after adaptation, a mean over seeds
    scores       the normalised score of each group, where its ends are known; of several comparisons in one figure

A line is the mean over seeds and a band Student's 95 % interval over them; a single seed has no band. Groups differ in colour
(Okabe and Ito's, which colour-blind readers can tell from each other), in stroke and in marker.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from metarl_cli.comparison.groups import Comparison, Group
from metarl_cli.comparison.saved import AXES, LEARNING
from metarl_cli.comparison.tables import after, before, by_tasks, ends, tested
from metarl_cli.errors import visible
from metarl_cli.evaluation.pictures import plain_text
from metarl_cli.evaluation.statistics import Scores, mean, normalised, over_seeds, profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c564b")
STROKES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))
MARKERS = "osD^vPX*"
AXIS_LABELS = {
    "env_steps": "environment steps of training",
    "seconds": "seconds of training",
    "iterations": "iterations of training",
}
POINTS = 200  # of a learning curve and of a profile
FORMATS = ("png", "svg", "pdf")
SHOWN = -0.25, 1.2  # normalised scores
ABREAST = 5  # panels in a row
LONGEST = 40  # [characters] of a name beside a panel


def figures(comparison: Comparison, against: str = "env_steps") -> dict[str, Figure]:
    """Draw the figures of a comparison, those that its runs have data for.

    Args:
        comparison: groups on the same tasks.
        against: one of :data:`AXES`, the axis of the learning curves.
    """
    drawn = {
        "learning": _learning(comparison, against),
        "adaptation": _adaptation(comparison),
        "profile": _profile(comparison),
        "tasks": _tasks(comparison),
        "scores": scores([comparison]),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def encode(figure: Figure, form: str) -> bytes:
    """Encode a figure as one of :data:`FORMATS`; texts stay texts in SVG and PDF, and the same figure has the same bytes."""
    import matplotlib

    buffer = io.BytesIO()
    plain_text(figure)
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "metarl", "pdf.fonttype": 42}):
        figure.savefig(buffer, format=form, dpi=200, metadata=metadata)
    return buffer.getvalue()


def scores(comparisons: Sequence[Comparison]) -> Figure | None:
    """Draw the normalised scores of groups that are not its ends, a panel for each comparison; None where there is none.

    A dot is the mean over seeds and a line the interval; the dot of a single run is hollow, and a cross at the side is beyond.
    """
    known = [(each, limits) for each in comparisons if (limits := ends(each))]
    rows = list(dict.fromkeys(g.name for each, limits in known for g in each.groups if g.name not in limits.groups))
    if not rows:
        return None
    down, across = -(-len(known) // ABREAST), min(len(known), ABREAST)
    figure = _figure((max(6.4, 3.1 * across + 1.6), (0.21 * len(rows) + 0.9) * down + 0.3))
    panels = figure.subplots(down, across, sharey=True, squeeze=False).flat
    for (comparison, limits), axes in zip(known, panels, strict=False):  # which leaves the panels that are left over
        groups = [group for group in comparison.groups if group.name not in limits.groups]
        for group in groups:
            interval = over_seeds(normalised(mean(after(group)), limits.robust, limits.oracle))
            row, inside = rows.index(group.name), SHOWN[0] <= interval.value <= SHOWN[1]
            face = COLOURS[0] if len(group.runs) > 1 else "white"
            axes.plot(np.clip(interval.value, *SHOWN), row, "o" if inside else "X", color=COLOURS[0], markerfacecolor=face)
            axes.plot([interval.low, interval.high], [row, row], color=COLOURS[0], linewidth=2)
        for score, stroke in ((0, ":"), (1, "--")):
            axes.axvline(score, color="black", linestyle=stroke, linewidth=1)
        axes.set(title=comparison.title, xlim=(SHOWN[0] - 0.05, SHOWN[1] + 0.05), ylim=(len(rows) - 0.4, -0.6))
        axes.set_xticks([0, 0.5, 1], ["0\nrobust", "0.5", "1\noracle"])
        axes.set_yticks(range(len(rows)), list(map(_short, rows)), parse_math=False, usetex=False)
        axes.grid(axis="y", alpha=0.3)
    for axes in panels:
        axes.set_visible(False)
    about = "mean and 95 % interval over seeds (hollow: one seed; a cross: beyond)"
    figure.supxlabel(f"normalised score after adaptation{': ' if across > 1 else chr(10)}{about}", fontsize="medium")
    return figure


def learning(comparisons: Sequence[Comparison], against: Sequence[str] = ("env_steps", "seconds")) -> Figure | None:
    """Draw learning curves: a row of panels for each comparison that has some, and a column for each axis of ``against``.

    A group is left out unless all of its runs have curves.
    """
    from matplotlib.ticker import MaxNLocator

    known = [each for each in comparisons if any(run.learning for group in each.groups for run in group.runs)]
    if not known:
        return None
    names = list(dict.fromkeys(group.name for comparison in known for group in comparison.groups))
    figure = _figure((4.2 * len(against) + 1.6, 2.6 * len(known)))
    panels = figure.subplots(len(known), len(against), sharey="row", squeeze=False)
    for comparison, row in zip(known, panels, strict=True):
        legend: dict[str, Any] = {}
        for axis, axes in zip(against, row, strict=True):
            _learn(axes, comparison, axis, names)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.set(xlabel=AXIS_LABELS[axis])
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            handles, labels = axes.get_legend_handles_labels()
            legend |= dict(zip(labels, handles, strict=True))
        row[0].set(ylabel="return after adaptation\n(validation tasks)", title=comparison.title)
        words = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "frameon": False, "fontsize": 8}
        row[-1].legend(list(legend.values()), list(legend), **words)
    return figure


def _short(name: str) -> str:
    """Return a name that has room beside a panel."""
    name = visible(name)
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}\u2026"


def _figure(size: tuple[float, float]) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _empty(comparison: Comparison, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = _figure((6.4, 3.6))
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel, title=comparison.title)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _style(place: int) -> dict[str, Any]:
    return {"color": COLOURS[place % len(COLOURS)], "linestyle": STROKES[place % len(STROKES)], "linewidth": 1.6}


def _label(group: Group) -> str:
    return f"{group.name} ({len(group.runs)} seed{'s' * (len(group.runs) > 1)})"


def _line(axes: Axes, place: int, group: Group, x: Scores, values: Scores, **more: Any) -> None:
    """Draw a group's mean over runs of ``values [S, P]``, with its band."""
    points = [over_seeds(column) for column in values.T]
    axes.plot(x, [p.value for p in points], label=_label(group), **_style(place), **more)
    if len(values) > 1:
        low, high = [p.low for p in points], [p.high for p in points]
        axes.fill_between(x, low, high, color=COLOURS[place % len(COLOURS)], alpha=0.15, linewidth=0)


def _finished(figure: Figure, axes: Axes) -> Figure | None:
    """Add the legend; None where nothing was drawn."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return None
    side = len(handles) <= 8 and max(map(len, labels)) <= 32
    figure.legend(handles, labels, loc="outside right upper" if side else "outside lower center", frameon=False, fontsize=8)
    if not side:
        figure.set_size_inches(6.4, 3.6 + 0.17 * len(handles))
    return figure


def _levels(comparison: Comparison, draw: Callable[..., Any]) -> None:
    """Draw the lines of the robust policy and of the oracle."""
    if limits := ends(comparison):
        draw(limits.robust, color="0.45", linestyle=(0, (1, 2)), linewidth=1.2, label="robust (score 0)")
        draw(limits.oracle, color="0.45", linestyle=(0, (6, 2)), linewidth=1.2, label="oracle (score 1)")


def _learning(comparison: Comparison, against: str) -> Figure | None:
    figure, axes = _empty(comparison, AXIS_LABELS[against], "return after adaptation\n(validation tasks)")
    _learn(axes, comparison, against, [group.name for group in comparison.groups])
    return _finished(figure, axes)


def _learn(axes: Axes, comparison: Comparison, against: str, names: list[str]) -> None:
    """Draw the learning curve of each group, as far as all of its runs have one there; the place in ``names`` is its colour."""
    from matplotlib.ticker import EngFormatter

    axes.xaxis.set_major_formatter(EngFormatter())
    for group in comparison.groups:
        known = [(run.learning[AXES[against]], run.learning[LEARNING]) for run in group.runs if AXES[against] in run.learning]
        begin, end = (max((x[0] for x, _ in known), default=0), min((x[-1] for x, _ in known), default=0))
        if len(known) == len(group.runs) and begin < end:  # where every run counts
            grid = np.linspace(begin, end, POINTS)
            _line(axes, names.index(group.name), group, grid, np.stack([np.interp(grid, x, y) for x, y in known]))


def _adaptation(comparison: Comparison) -> Figure | None:
    from matplotlib.ticker import MaxNLocator

    kinds = {tested(run).trial for group in comparison.groups for run in group.runs if len(tested(run).adapted.steps) > 1}
    words = {True: "previous episodes of the trial", False: "steps of adaptation"}
    xlabel = " or ".join(words[kind] for kind in sorted(kinds))
    figure, axes = _empty(comparison, xlabel, "return (mean over tasks)")
    for place, group in enumerate(comparison.groups):
        curves = [tested(run).adapted for run in group.runs]
        steps = [step for step in curves[0].steps if all(step in curve.steps for curve in curves)]
        values = np.array([[mean(c.scores[c.steps.index(step)]) for step in steps] for c in curves])
        if len(steps) > 1:
            _line(axes, place, group, np.array(steps), values, marker=MARKERS[place % len(MARKERS)], markersize=4)
    if axes.lines:
        _levels(comparison, axes.axhline)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _finished(figure, axes)


def _profile(comparison: Comparison) -> Figure | None:
    scores = [after(group) for group in comparison.groups]
    if scores[0].shape[1] < 5:
        return None
    figure, axes = _empty(comparison, "return after adaptation", "share of tasks above")
    low, high = min(each.min() for each in scores), max(each.max() for each in scores)
    margin = (high - low) * 0.02 or 1.0
    grid = np.linspace(low - margin, high + margin, POINTS)
    for place, (group, each) in enumerate(zip(comparison.groups, scores, strict=True)):
        _line(axes, place, group, grid, profile(each, grid))
    _levels(comparison, axes.axvline)
    axes.set_ylim(0, 1.02)
    return _finished(figure, axes)


def _tasks(comparison: Comparison) -> Figure | None:
    figure, axes = _empty(comparison, "return before adaptation", "return after adaptation")
    for place, group in enumerate(comparison.groups):
        alike = [Group(group.name, runs) for runs in by_tasks(group).values()]
        first, last = (np.concatenate([returns(each).mean(0) for each in alike]) for returns in (before, after))
        if not np.array_equal(first, last):
            marker, colour = MARKERS[place % len(MARKERS)], COLOURS[place % len(COLOURS)]
            axes.scatter(first, last, s=14, alpha=0.7, linewidths=0, marker=marker, color=colour, label=_label(group))
    if axes.collections:
        ends_ = [*axes.get_xlim(), *axes.get_ylim()]
        axes.plot([min(ends_), max(ends_)], [min(ends_), max(ends_)], color="0.45", linewidth=0.8, label="no change")
    return _finished(figure, axes)
