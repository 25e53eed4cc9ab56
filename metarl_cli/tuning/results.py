"""The results of a search: the best trial beside the defaults, the settings as a file, and a picture of the trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from metarl_cli.comparison import report
from metarl_cli.comparison.groups import Comparison, compare
from metarl_cli.comparison.reading import find
from metarl_cli.comparison.tables import table
from metarl_cli.runs.files import write_whole
from metarl_cli.runs.folder import with_values
from metarl_cli.tuning.ranges import Numbers, Range
from metarl_cli.tuning.study import Ended

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"finished": "#0072b2", "stopped early": "#e69f00"}  # Okabe and Ito's


def compared(folders: Mapping[str, Path], baseline: str) -> report.Report:
    """Return the tables of runs on fresh seeds, with intervals over them.

    Args:
        folders: of the runs, by the name that the table gives them.
        baseline: the name that the others are compared with.

    Raises:
        UserError: if no run has a result.
    """
    paths = [folder for folder in folders.values() if folder.is_dir()]
    runs = find(paths, "test").runs
    comparisons, left = compare(runs, ())
    named = [_named(each, folders) for each in comparisons]
    tables = [table(each, baseline).without_empty() for each in named]
    notes = ["the two were tested on different tasks, and have a table each"] if len(named) > 1 else []
    return report.Report(runs, named, tables, [*left, *notes], "env_steps")


def _named(comparison: Comparison, folders: Mapping[str, Path]) -> Comparison:
    """Return a comparison whose groups have the names of their folders."""
    names = {folder.resolve(): name for name, folder in folders.items()}
    groups = [group._replace(name=names[group.runs[0].path.parent.resolve()]) for group in comparison.groups]
    return comparison._replace(groups=sorted(groups, key=lambda group: list(names.values()).index(group.name)))


def write_settings(
    path: Path, experiment: str | None, overrides: Sequence[str], groups: Sequence[str], values: Mapping[str, Any], about: str
) -> None:
    """Write settings as an experiment of Hydra.

    Args:
        path: the file.
        experiment: that they change; None: they stand alone.
        overrides: those of config groups, as ``algo=rl2``.
        groups: the names of all config groups.
        values: the others, by dotted key.
        about: the first line.

    Raises:
        DiskFault: if it cannot be written.
    """
    chosen = [override.split("=", 1) for override in overrides if override.split("=", 1)[0] in groups]
    defaults: list[Any] = [experiment] if experiment else []
    defaults += [{f"override /{group}": option} for group, option in chosen if group != "experiment"]
    content = {**({"defaults": [*defaults, "_self_"]} if defaults else {}), **with_values({}, values)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, f"# @package _global_\n# {about}\n{yaml.safe_dump(content, sort_keys=False)}".encode())


def picture(trials: Sequence[Ended], ranges: Mapping[str, Range], best: Ended, title: str) -> Figure:
    """Draw the scores over the trials, and over the values of each key."""
    from matplotlib.figure import Figure

    scored = [trial for trial in trials if trial.score is not None]
    columns = min(len(ranges) + 1, 3)
    rows = -(-(len(ranges) + 1) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.6 * rows), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(rows, columns, sharey=True)).flat)
    scores = [trial.score or 0.0 for trial in scored]
    axes[0].plot([trial.number for trial in scored], scores, "o", color=COLOURS["finished"], ms=4, label="finished")
    axes[0].step([t.number for t in scored], np.maximum.accumulate(scores), where="post", color="#000000", lw=1, label="best")
    early = [trial.number for trial in trials if trial.state == "stopped early"]
    if early:
        axes[0].plot(early, [min(scores)] * len(early), "|", color=COLOURS["stopped early"], label="stopped early")
    axes[0].set(xlabel="trial", ylabel="score on validation tasks")
    axes[0].legend(fontsize=7)
    for axis, (key, each) in zip(axes[1:], ranges.items(), strict=False):
        _values(axis, key, each, scored, best)
    for axis in axes[len(ranges) + 1 :]:
        axis.set_visible(False)
    figure.suptitle(title, fontsize=9)
    return figure


def _values(axis: Axes, key: str, range_: Range, trials: Sequence[Ended], best: Ended) -> None:
    def place(trial: Ended) -> float:
        text = trial.values[key]
        return float(text) if isinstance(range_, Numbers) else float(range_.texts.index(text))

    axis.plot(
        [place(trial) for trial in trials], [trial.score or 0.0 for trial in trials], "o", color=COLOURS["finished"], ms=4
    )
    axis.plot([place(best)], [best.score or 0.0], "o", mfc="none", mec="#d55e00", ms=9)
    axis.set_xlabel(key.removeprefix("algo."))
    if isinstance(range_, Numbers):
        low, high = range_.low, range_.high
        middle = (low * high) ** 0.5 if range_.log else (low + high) / 2
        axis.set_xscale("log" if range_.log else "linear")
        axis.set_xticks([], minor=True)
        axis.set_xticks([low, middle, high], [f"{tick:.2g}" for tick in (low, middle, high)])
    else:
        axis.set_xticks(range(len(range_.texts)), range_.texts, fontsize=7)
