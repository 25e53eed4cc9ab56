"""The tables and the figure that are made of the kept runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matrix import FAMILIES, RESULTS, read
from numpy.typing import ArrayLike

from metarl_cli.evaluation import statistics
from metarl_cli.evaluation.statistics import Interval, iqm, mean, over_seeds, worst_tenth

Kept = dict[str, dict[str, Any]]  # method -> what ``matrix`` keeps of it
MARKER = re.compile(r"(<!-- evidence: (\w+) -->\n).*?(\n<!-- end -->)", re.DOTALL)
HEAD = ["algorithm", "seeds", "before", "after", "normalised score", "IQM", "worst tenth", "solved", "out of distribution"]
HEAD += ["its score", "gradient steps", "support", "env steps", "training"]
MAIN = ["cartpole_family", "navigation_2d", "two_link_arm", "navigation_2d_sparse", "key_to_door"]  # overview, figure
MORE = ["mountain_car_family", "acrobot_family", "pendulum_family", "classic_mix", "gridworld", "scrambled_cartpole"]
ROBOTS = ["half_cheetah_dir", "half_cheetah_vel_maml", "navigation_2d_continuous", "reacher_goal", "walker_params", "ant_dir"]
OVERVIEWS = {"overview": MAIN, "overview_more": MORE, "overview_robots": ROBOTS}
OF_TASKS = "before", "after", "random", "ood"  # what is kept of each task
SHOWN = -0.25, 1.2  # normalised scores of the figure
ROBUSTS, ORACLES = ("robust_dqn", "robust_pg"), ("oracle_dqn", "oracle_pg")  # a family has one of each
UPPER = "oracle_dqn, not scrambled"
ENDS = (*ROBUSTS, *ORACLES, UPPER)


def results(family: str) -> dict[str, Kept]:
    """What is kept of a family's runs, under its title.

    A mix has an entry for each of its families, whose tasks take turns. Where no run on the family itself is its upper line,
    the oracle of the family that the matrix names stands beside its own.
    """
    entry, kept = FAMILIES[family], read(family)
    upper = one_of(ORACLES, kept)
    if "upper" in entry and upper and upper in (other := read(entry["upper"])):
        first = {method: kept[method] for method in ENDS if method in kept}
        kept = first | {UPPER: other[upper]} | kept
    titles = entry.get("mix", [entry["title"]])
    return {title: every(kept, place, len(titles)) for place, title in enumerate(titles)}


def every(kept: Kept, first: int, step: int) -> Kept:
    """The same runs on every ``step``-th task alone."""
    if step == 1:
        return kept
    runs = {
        method: {
            seed: {key: value[first::step] if key in OF_TASKS and value else value for key, value in run.items()}
            | {"solved": None}
            for seed, run in entry["runs"].items()
        }
        for method, entry in kept.items()
    }
    return {method: {**kept[method], "runs": runs[method]} for method in kept}


def one_of(methods: tuple[str, ...], kept: Kept) -> str | None:
    """The first of some methods that has runs."""
    return next((method for method in methods if method in kept), None)


def means(runs: dict[str, Any], which: str) -> np.ndarray | None:
    """The mean over tasks of each run ``[S]``; None where the family has no such tasks."""
    found = [run[which] for run in runs.values()]
    return None if found[0] is None else mean(np.array(found))


def normalised(kept: Kept, method: str, which: str = "after") -> np.ndarray | None:
    """The normalised score of each run ``[S]``, of means over tasks; robust and oracle are means over their seeds too.

    None without one of them, or where the oracle is not above the robust policy.
    """
    lines = one_of(ROBUSTS, kept), one_of((UPPER, *ORACLES), kept)
    ends = [means(kept[end]["runs"], which) if end else None for end in lines]
    values = means(kept[method]["runs"], which)
    if values is None or ends[0] is None or ends[1] is None:
        return None
    scores = statistics.normalised(values, float(ends[0].mean()), float(ends[1].mean()))
    return None if np.isnan(scores).any() else scores


def number(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}"


def interval(values: ArrayLike | None) -> str:
    """An estimate with its interval over seeds, in as many digits as it has a use for."""
    if values is None:
        return "-"
    values = np.asarray(values)
    value, low, high = over_seeds(values)
    digits = 1 if max(abs(value), abs(high)) >= 20 else 2
    text = f"{value:.{digits}f}"
    return text if len(values) < 2 else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def row(kept: dict[str, Any], method: str) -> str:
    """The line of a method."""
    runs = kept[method]["runs"]
    every = list(runs.values())
    after = np.array([run["after"] for run in every])
    steps = every[0]["gradient_steps"]
    solved = [run["solved"] for run in every]
    cells = [f"`{method}`", str(len(every)), interval(means(runs, "before")), interval(means(runs, "after"))]
    cells += [interval(normalised(kept, method)), number(float(iqm(after).mean())), interval(worst_tenth(after))]
    cells += ["-" if solved[0] is None else f"{np.mean(solved):.0%}", interval(means(runs, "ood"))]
    cells += [interval(normalised(kept, method, "ood")), str(steps) if steps else "-", str(every[0]["support"] or "-")]
    cells += [
        f"{np.mean([run['env_steps'] for run in every]) / 1e6:.1f} M",
        f"{np.mean([run['minutes'] for run in every]):.1f} min",
    ]
    return f"| {' | '.join(cells)} |"


def table(family: str) -> str:
    """The table of a family, from the runs that are kept; of a mix, one for each of its families."""
    found = results(family)
    if not any(found.values()):
        return "Not measured yet."
    if len(found) == 1:
        return rows(*found.values())
    return "\n\n".join(f"**{title}**\n\n{rows(kept)}" for title, kept in found.items())


def rows(kept: Kept) -> str:
    """A line for each method."""
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD), *(row(kept, method) for method in kept)]
    drawn = [run["random"] for method, entry in kept.items() if method != UPPER for run in entry["runs"].values()]
    lines.append(f"| random policy | | | {number(float(np.mean(drawn)))} |" + " |" * (len(HEAD) - 4))
    return "\n".join(lines)


def overview(families: list[str]) -> str:
    """The normalised scores of all methods, a column for each of some families; and what they lie between."""
    found = {title: kept for family in families if family in kept_families() for title, kept in results(family).items()}
    lines = [f"| {' | '.join(['algorithm', *found])} |", "|" + "---|" * (1 + len(found))]
    named = dict.fromkeys(method for family in families for method in FAMILIES[family]["methods"])
    for method in dict.fromkeys([*ENDS, *named]):
        scores = [normalised(kept, method) if method in kept else None for kept in found.values()]
        returns = [means(kept[method]["runs"], "after") if method in kept else None for kept in found.values()]
        if method in ENDS:
            cells, name = returns, f"`{method}`: mean return"
        else:
            cells, name = scores, f"`{method}`"
        if any(values is not None for values in cells):
            lines.append(f"| {name} | {' | '.join(interval(values) for values in cells)} |")
    return "\n".join(lines)


def fill(page: str) -> str:
    """The page with the tables that its markers name."""
    return MARKER.sub(
        lambda match: match[1] + (overview(OVERVIEWS[match[2]]) if match[2] in OVERVIEWS else table(match[2])) + match[3], page
    )


def draw(path: Path, families: list[str]) -> None:
    """Draw the normalised scores of all methods on some families: a dot for the mean over seeds, a line for the interval."""
    drawing = Figure(figsize=(3.1 * len(families) + 1.2, 4.4), layout="constrained")
    results = {family: read(family) for family in families}
    every = dict.fromkeys(method for kept in results.values() for method in kept)
    methods = [method for method in every if method not in ENDS]
    for axes, (family, kept) in zip(
        np.atleast_1d(drawing.subplots(1, len(families), sharey=True)), results.items(), strict=True
    ):
        for y, method in enumerate(methods):
            values = normalised(kept, method) if method in kept else None
            if values is not None:
                estimate: Interval = over_seeds(values)
                low, high = SHOWN
                marker, face = "o" if low <= estimate.value <= high else "X", "white" if len(values) < 2 else "#0072b2"
                axes.plot(np.clip(estimate.value, low, high), y, marker, color="#0072b2", markerfacecolor=face)
                axes.plot([estimate.low, estimate.high], [y, y], color="#0072b2", linewidth=2)
        axes.axvline(0, color="black", linestyle=":", linewidth=1)
        axes.axvline(1, color="black", linestyle="--", linewidth=1)
        axes.set(title=FAMILIES[family]["title"], xlim=(SHOWN[0] - 0.05, SHOWN[1] + 0.05), xticks=[0, 0.5, 1])
        axes.set_xticklabels(["0\nrobust", "0.5", "1\noracle"])
        axes.grid(axis="y", alpha=0.3)
        axes.set_yticks(range(len(methods)), methods)
    drawing.get_axes()[0].invert_yaxis()
    drawing.supxlabel(
        "normalised score after adaptation: mean and 95 % interval over seeds (hollow: one seed; a cross: beyond)"
    )
    drawing.savefig(path, dpi=130)


def kept_families() -> list[str]:
    """The families of which some runs are kept."""
    return [family for family in FAMILIES if (RESULTS / f"{family}.json").exists()]
