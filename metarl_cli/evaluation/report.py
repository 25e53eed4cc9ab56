"""An evaluation as a table, a figure and plain values."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from metarl_cli.evaluation.curves import Curve, Levels, Report
from metarl_cli.evaluation.held_out import task_hash, task_hashes
from metarl_cli.evaluation.statistics import Interval, Summary, number
from metarl_cli.interfaces import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure


SHARED = ", training tasks among them"  # of the tasks of a family that has few
ROBUST, ORACLE, OPTIMUM = "robust", "oracle", "optimum"
MEANING = {
    ROBUST: "the policy of a run that cannot know the task",
    ORACLE: "the policy of a run that was given the task",
    OPTIMUM: "the return of the best policy that knows the task, computed",
}
SCORE = "normalised score"
THERE = "where demonstrated"


def empty_table(report: Report, title: str) -> Table:
    """Return an adaptation table without rows; a narrow terminal never truncates its numbers."""
    empty = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    empty.collapse_padding, empty.caption_justify = True, "left"
    lines = notes(report)  # as Text: of a string, a console writes out the ends of lines
    empty.caption = Text("\n".join(lines), "table.caption") if lines else None
    empty.add_column("", overflow="fold", vertical="bottom")
    estimate = f"return: {report.curve.aggregate}\n[95 % over {report.curve.over}]"
    for heading in ("gradient\nsteps", "env\nsteps", estimate, *(name.replace(" ", "\n") for name in beside(report))):
        empty.add_column(Text(heading), justify="right", overflow="fold", no_wrap=heading is estimate)
    return empty


def beside(report: Report) -> dict[str, Callable[[Summary], str]]:
    """Return the columns beside the estimate: their headings, and the text of each."""
    columns: dict[str, Callable[[Summary], str]] = {}
    if report.curve.over == "tasks":
        if report.curve.aggregate != "mean":
            columns["mean"] = lambda summary: number(summary.mean)
        columns["worst tenth"] = lambda summary: number(summary.worst_tenth)
    if report.curve.summaries[0].solved is not None:
        columns["solved"] = lambda summary: "" if summary.solved is None else f"{summary.solved:.0%}"
    return columns


def notes(report: Report) -> list[str]:
    """Return what a reader of the table has to know, one line each."""
    lines = []
    if report.curve.reuses:
        lines.append("Every gradient step learns from the same env steps.")
    if report.total and report.total.standard_error is not None:
        lines.append(f"± is the standard error over {'trials' if report.curve.over == 'episodes' else 'tasks'}.")
    if report.normalised:
        lines.append(f"{SCORE.capitalize()}: (mean - robust) / (oracle - robust), of means over tasks.")
    elif report.robust and (report.oracle or report.optimum):
        lines.append(f"The oracle's mean is not above the robust policy's: there is no {SCORE}.")
    if report.curve.differences:
        new = report.curve.differences.new != report.curve.differences.demonstrated
        where = "; in the environments of the table nothing was shown" if new else ""
        lines.append(f"Env steps are the demonstrator's{where}.")
        lines.append("below optimum: the expected value difference after so many demonstrations, mean over tasks.")
        lines.append(f"{THERE}: the same in the environments of the demonstrations.")
    lines += sources(report.levels, known=report.optimum is not None)
    return lines + beyond_training(report.curve.steps[-1], report.trained_steps)


def sources(levels: Levels, known: bool) -> list[str]:
    """Return a line on what each reference is, and where it comes from; ``known`` if there is an optimum."""
    lines = [f"{role}: {MEANING[role]}: {level.source}" for role, level in levels._asdict().items() if level]
    if known:
        lines.append(f"{OPTIMUM}: {MEANING[OPTIMUM]}{'' if levels.oracle or not levels.robust else '; here it is the oracle'}")
    return lines


def beyond_training(steps: int, trained: int | None) -> list[str]:
    """Return a line where an adaptation has more steps than the algorithm was trained for; ``trained`` is None for any."""
    if trained is None or steps <= trained:
        return []
    return [
        f"It was trained for {trained} step{'s' if trained > 1 else ''} of adaptation; further ones are beyond its training."
    ]


def table(report: Report, title: str) -> Table:
    """Return the adaptation table that the commands print."""
    rows, columns = empty_table(report, title), beside(report)

    def row(name: str, curve: Curve, k: int, style: str = "", spends: bool = True) -> None:
        spent = (str(curve.gradient_steps[k]), str(curve.env_steps[k])) if spends else ("", "")
        more = (text(curve.summaries[k]) for text in columns.values())
        rows.add_row(name, *spent, str(curve.points[k]), *more, style=style)

    row("random policy", report.random, 0, "dim")
    if report.scratch:
        row("from scratch", report.scratch, -1, "dim")
    last = len(report.curve.steps) - 1
    for k, step in enumerate(report.curve.steps):
        name = (
            label(step, report.total is not None, report.curve.demonstrated) if last or report.total else "without adaptation"
        )
        row(name, report.curve, k, "bold" if k in (0, last) else "")
    for group in report.curve.groups:
        rows.add_section()
        rows.add_row(f"{group}: random policy", "", "", str(report.random.groups[group][0]), style="dim")
        for k in (0, last):
            name = f"{group}: {label(report.curve.steps[k], trial=report.total is not None)}"
            rows.add_row(name, "", "", str(report.curve.groups[group][k]), style="bold")
        if report.scratch:
            rows.add_row(f"{group}: from scratch", "", "", str(report.scratch.groups[group][-1]), style="dim")
    for name, curve in references(report):
        row(name, curve, 0, "dim", spends=False)
    if report.normalised:
        for k, when in {0: ", before", last: ", after" if last else ""}.items():
            rows.add_row(f"normalised{when}", "", "", str(report.normalised[k]), style="bold")
    if report.total:
        rows.add_row(f"sum of {report.total.episodes} episodes", "", "", str(report.total), style="bold")
    for name, points in _differences(report):
        rows.add_section()
        for k, (step, point) in enumerate(zip(report.curve.steps, points, strict=True)):
            if k or name != THERE:
                rows.add_row(f"{name}, {step}", "", "", str(point), style="bold" if k in (1, last) else "")
    if report.regret is not None and report.curve.differences is None:
        rows.add_row("regret per episode (optimum minus return)", "", "", number(report.regret), style="dim")
    if report.sampled and report.sampled.total:
        rows.add_section()
        for k in sorted({0, last}):
            row(f"sampled: {label(report.sampled.steps[k], trial=True)}", report.sampled, k)
        rows.add_row(f"sampled: sum of {report.sampled.total.episodes} episodes", "", "", str(report.sampled.total))
    return rows


def _differences(report: Report) -> list[tuple[str, list[Interval]]]:
    """Return the expected value differences after each number of demonstrations, here and where these took place."""
    differences = report.curve.differences
    return [] if differences is None else [("below optimum", differences.new), (THERE, differences.demonstrated)]


def references(report: Report) -> list[tuple[str, Curve]]:
    """Return the names and the levels of the references that know nothing of the task, or all of it."""
    known = [(ROBUST, report.robust), (ORACLE, report.oracle), (OPTIMUM, report.optimum)]
    return [(name, curve) for name, curve in known if curve is not None]


def label(step: int, trial: bool, demonstrations: bool = False) -> str:
    """Return the name of a point of a curve."""
    if trial:
        return f"episode {step + 1}"
    if demonstrations and step:
        return f"{step} demonstration{'s' if step > 1 else ''}"
    return "before adaptation" if step == 0 else f"after step {step}"


LINES: dict[str, dict[str, Any]] = {  # they differ in their strokes too; the colours are Okabe and Ito's
    ROBUST: {"color": "#cc79a7", "linestyle": (0, (5, 2))},
    ORACLE: {"color": "#009e73", "linestyle": (0, (7, 2, 1, 2))},
    OPTIMUM: {"color": "black", "linestyle": "--"},
}


def figure(report: Report, title: str) -> Figure:
    """Plot the return over gradient steps (or episodes of the trial) and over environment steps, with the references."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(drawing)
    left, right = drawing.subplots(1, 2, sharey=report.curve.differences is None)
    lines = [("greedy" if report.sampled else "adapted", report.curve, "tab:blue")]
    if report.sampled:
        lines.append(("sampled", report.sampled, "tab:green"))
    if report.scratch:
        lines.append(("from scratch", report.scratch, "tab:orange"))
    first = "previous episodes of the trial" if report.total else "steps of adaptation, per task"
    if report.curve.demonstrated:
        first = "demonstrations, per task"
    for axes, name in ((left, "steps"), (right, "env_steps"))[: 1 if report.curve.differences else 2]:
        for text, curve, colour in lines:
            x, points = getattr(curve, name), curve.points
            axes.plot(x, [p.value for p in points], marker="o", color=colour, label=text)
            axes.fill_between(x, [p.low for p in points], [p.high for p in points], color=colour, alpha=0.2)
            if curve.total and name == "steps":
                axes.plot(curve.total.each, color=colour, linewidth=0.6)  # every episode, between the points too
        axes.axhline(report.random.points[0].value, color="grey", linestyle=":", label="random policy")
        for text, curve in references(report):
            axes.axhline(curve.points[0].value, label=text, **LINES[text])
        axes.set_xlabel(first if name == "steps" else "environment steps of adaptation, per task")
        axes.grid(alpha=0.3)
    if report.curve.differences:
        _plot_differences(right, [(curve, colour) for _, curve, colour in lines])
    left.xaxis.get_major_locator().set_params(integer=True)
    left.set_ylabel(f"return ({report.curve.aggregate}, 95 % over {report.curve.over})")
    drawing.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False)
    if report.normalised:
        first_score, last_score = report.normalised[0], report.normalised[-1]
        title += f"\n{SCORE}: {number(first_score.value)} before, {last_score} after"
    drawing.suptitle(title)
    return drawing


def _plot_differences(axes: Any, curves: list[tuple[Curve, str]]) -> None:
    """Plot the expected value difference over the number of demonstrations; dashed where these took place."""
    for curve, colour in curves:
        for points, stroke in zip(curve.differences or (), ("-", "--"), strict=False):
            axes.plot(curve.steps, [point.value for point in points], stroke, marker="o", color=colour)
    axes.set_xlabel("demonstrations, per task")
    axes.set_ylabel("value difference; dashed: where demonstrated")
    axes.grid(alpha=0.3)


def as_json(report: Report, tasks: Task, extra: dict[str, Any]) -> dict[str, Any]:
    """Convert a report to plain values: aggregates, and the mean return of every task at every point."""

    def entry(curve: Curve) -> dict[str, Any]:
        return {
            "steps": curve.steps,
            "gradient_steps": curve.gradient_steps,
            "env_steps": curve.env_steps,
            "mean" if report.total else "iqm": [point._asdict() for point in curve.points],
            "over": curve.over,  # what the intervals are over
            "beside": [summary._asdict() for summary in curve.summaries],
            "value_differences": curve.differences
            and {name: [point._asdict() for point in points] for name, points in curve.differences._asdict().items()},
            "groups": {group: [point._asdict() for point in points] for group, points in curve.groups.items()},
            "task_returns": curve.returns.mean(axis=1).tolist(),  # [P, M]
        }

    return {
        **extra,
        "tasks": {**named(tasks), "training_tasks_among_them": report.shared},
        "episodes": report.curve.returns.shape[1],
        "adapted": entry(report.curve),
        "sampled": report.sampled and entry(report.sampled),
        "from_scratch": report.scratch and entry(report.scratch),
        "random": entry(report.random),
        "learned": report.own_tasks and report.own_tasks._asdict(),
        "optimum": report.optimum and report.optimum.returns[0, 0].tolist(),  # [M] return of an episode
        **levels_as_json(report.levels),
        "normalised_score": report.normalised and [score._asdict() for score in report.normalised],  # [P]
        "trial": report.total and report.total._asdict(),
        "trial_sampled": report.sampled and report.sampled.total and report.sampled.total._asdict(),
        "regret": report.regret,  # per episode
    }


def named(tasks: Task) -> dict[str, Any]:
    """Return what tasks are looked up by: the hash of all and of each, and their parameters."""
    parameters = {name: value.tolist() for name, value in tasks.items() if value.dim() == 1}  # larger ones are in tasks.json
    return {"hash": task_hash(tasks), "each": task_hashes(tasks), "parameters": parameters}


def levels_as_json(levels: Levels) -> dict[str, dict[str, Any] | None]:
    """Convert the references of the normalised score to plain values: where they come from, and their returns ``[M]``."""
    return {
        role: level and {"source": level.source, "task_returns": level.returns.tolist()}
        for role, level in levels._asdict().items()
    }
