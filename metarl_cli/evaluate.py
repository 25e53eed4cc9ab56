"""The one evaluator: adaptation curves of any algorithm on tasks it never trained on; and ``metarl test``.

A curve is the return of full greedy episodes before adaptation and after each adaptation step, per task, against the
gradient steps and environment steps spent (Beck 2023, arXiv:2301.08028, section 2.3). For an algorithm that adapts within a
trial it is the return of each of the trial's episodes; where such a policy is stochastic, its actions sampled instead of greedy
make a second curve, in the same environments. Evaluation owns its environments and random streams: how often and on how many
tasks it runs moves nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from metarl_cli.actions import random_actions
from metarl_cli.building import Evaluation, TestConfig
from metarl_cli.checkpoint import load, write_whole
from metarl_cli.inner_loop import Act, run_episodes
from metarl_cli.progress import counted, working
from metarl_cli.run_folder import Parts, RunFolder, build, held_out_tasks, task_hash
from metarl_cli.seeding import torch_rng
from metarl_cli.statistics import Interval, Scores, iqm_interval, mean_interval, together
from metarl_cli.tracking import png, wide_console
from metarl_cli.types import Adaptation, Algorithm, Family, GradientAlgorithm, Task, TrialAlgorithm, UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Total(NamedTuple):
    """The return of whole trials, all their episodes together: mean over tasks and trials, standard error over tasks.

    On a single task the standard error is over its trials.
    """

    episodes: int
    mean: float
    standard_error: float | None  # none with a single trial
    each: list[float]  # [episodes] mean return of every episode

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.standard_error is None else f" ± {self.standard_error:.2f}")


class Curve(NamedTuple):
    """Returns along adaptation on M tasks, E repeats each, at P points: adaptation steps, or episodes of a trial."""

    steps: list[int]  # [P] adaptation steps, or episodes of a trial before this one
    returns: Scores  # [P, E, M]
    points: list[Interval]  # [P] IQM over tasks and repeats with its interval over both; of a trial's episodes the mean
    gradient_steps: list[int]  # [P] spent per task
    env_steps: list[int]  # [P] spent per task
    groups: dict[str, list[Interval]]  # the same of tasks whose returns do not compare; ``points`` are then their averages
    total: Total | None = None  # of whole trials

    @property
    def score(self) -> float:
        """What algorithms are compared by: the return after the last adaptation step; of trials the mean of an episode.

        Of a trial all episodes count: exploring well is a part of it, and the last may be a single pull of a bandit.
        """
        return self.total.mean / self.total.episodes if self.total else self.points[-1].value


class Report(NamedTuple):
    """The curve of an algorithm, and its references on the same tasks at the same budget."""

    curve: Curve
    sampled: Curve | None  # the same trials with sampled actions; none for a policy that is not stochastic
    scratch: Curve | None  # the same learner from fresh weights; none for an algorithm without gradient steps
    random: Curve
    learned: Interval | None  # the algorithm's own training tasks, where each is learned from scratch
    optimum: Scores | None  # [M] of the best policy that knows the task, where the family can tell
    best: Interval | None  # the same over the tasks

    @property
    def total(self) -> Total | None:
        """Of an algorithm that adapts within a trial."""
        return self.curve.total

    @property
    def regret(self) -> float | None:
        """What knowing the task would have earned beyond a whole trial, on average over tasks; None where unknown."""
        if self.total is None or self.optimum is None:
            return None
        return self.total.episodes * float(self.optimum.mean()) - self.total.mean


@torch.no_grad()
def trial(
    family: Family,
    task: Task,
    algorithm: TrialAlgorithm,
    trials: int,
    env_rng: torch.Generator,
    rng: torch.Generator,
    greedy: bool = True,
) -> tuple[Tensor, Tensor]:
    """Whole trials of ``algorithm.episodes`` episodes: ``trials`` of them on each of M tasks, memory kept throughout.

    Greedy or sampled, the environments draw the same numbers from ``env_rng``; the algorithm's chance comes from ``rng``.
    Returns the undiscounted return and the length [steps] of every episode, ``[episodes, M, trials]`` both.
    """
    env = family.make(task, trials, env_rng)
    memory = algorithm.begin(task, trials, rng, greedy)
    episodes, shape, device = algorithm.episodes, env.obs.shape[:2], env.obs.device
    returns, lengths = torch.zeros(2, episodes + 1, *shape, device=device)  # the last row takes what follows a trial's end
    current = torch.zeros(1, *shape, dtype=torch.long, device=device)
    most = episodes * family.spec.horizon
    for _ in counted(range(most), most, "step of the trials"):
        obs = env.obs
        action, memory = algorithm.choose(memory, obs)
        step = env.step(action)
        memory = algorithm.observe(memory, obs, action, step)
        returns.scatter_add_(0, current, step.reward[None])
        lengths.scatter_add_(0, current, torch.ones_like(step.reward[None]))
        current = (current + (step.terminated | step.truncated)).clamp(max=episodes)
        if (current == episodes).all():
            break
    return returns[:-1], lengths[:-1]


Aggregate = Callable[[Scores], Interval]  # returns [E, M] -> what is reported of them


def iqm_over_tasks(scores: Scores) -> Interval:
    """IQM over tasks and repeats, with its interval over both."""
    return iqm_interval(scores, over_tasks=True)


def mean_over_tasks(scores: Scores) -> Interval:
    """Mean over tasks and repeats, with its interval over tasks; of a single task over its repeats."""
    return mean_interval(scores if scores.shape[1] > 1 else scores.T)


class Evaluator:
    """Measures on a fixed set of tasks.

    Args:
        family: where the tasks live.
        task: the held-out tasks.
        episodes: full episodes per task and adaptation step; trials per task, for an algorithm that adapts within them.
        seed: of the support and evaluation episodes, with the split: a stream of their own for each.
        split: the tasks' split.
    """

    def __init__(self, family: Family, task: Task, episodes: int, seed: int, split: str):
        self.family, self.task, self.episodes, self.seed, self.split = family, task, episodes, seed, split
        self.device = next(iter(task.values())).device
        self.groups = {name: rows.cpu().numpy() for name, rows in family.groups(task).items() if len(rows)}

    def _rng(self, name: str) -> torch.Generator:
        return torch_rng(self.seed, self.split, name, device=self.device)

    def _returns(self, task: Task, act: Act) -> Scores:
        rng = self._rng("episodes")  # the same episodes for every policy
        return run_episodes(self.family, task, act, self.episodes, rng)[0].T.double().cpu().numpy()  # [E, M]

    def _adaptation(
        self, algorithm: GradientAlgorithm, adaptations: Iterator[Adaptation], most: int, what: str = "adaptation, point"
    ) -> Curve:
        steps, returns, gradient_steps, env_steps = [], [], [], []
        for adaptation in counted(adaptations, most + 1, what):
            params = adaptation.params
            steps.append(adaptation.step)
            returns.append(self._returns(self.task, lambda obs, params=params: algorithm.act(params, obs)))  # type: ignore[misc]
            gradient_steps.append(adaptation.gradient_steps)
            env_steps.append(adaptation.env_steps)
        return self._points(steps, returns, gradient_steps, env_steps)

    def _trial(self, algorithm: TrialAlgorithm, greedy: bool) -> Curve:
        rngs = self._rng("episodes"), self._rng("trial")
        found, lengths = trial(self.family, self.task, algorithm, self.episodes, *rngs, greedy)  # [episodes, M, E] both
        steps = _spread(algorithm.episodes)
        returns = found[steps].transpose(1, 2).double().cpu().numpy()  # [P, E, M]
        spent = torch.cat([torch.zeros(1), lengths.mean((1, 2)).cumsum(0).cpu()])[steps].round().long().tolist()
        curve = self._points(steps, list(returns), [0] * len(steps), spent, mean_over_tasks)
        whole = found.sum(0, dtype=torch.float64).cpu().numpy()  # [M, E]
        groups = list(self.groups.values()) or [np.arange(len(whole))]
        mean = float(np.mean([whole[rows].mean() for rows in groups]))
        each = np.mean([found[:, rows].mean((1, 2), dtype=torch.float64).tolist() for rows in groups], axis=0).tolist()
        return curve._replace(total=Total(algorithm.episodes, mean, standard_error([whole[rows] for rows in groups]), each))

    def _points(
        self,
        steps: list[int],
        returns: list[Scores],
        gradient_steps: list[int],
        env_steps: list[int],
        aggregate: Aggregate = iqm_over_tasks,
    ) -> Curve:
        apart = {name: [aggregate(scores[:, rows]) for scores in returns] for name, rows in self.groups.items()}
        points = [together(column) for column in zip(*apart.values(), strict=True)] or [aggregate(x) for x in returns]
        return Curve(steps, np.stack(returns), points, gradient_steps, env_steps, apart)

    def curve(self, algorithm: Algorithm, steps: int) -> Curve:
        """The algorithm's own adaptation: by ``steps`` gradient steps, or along a trial of its own length."""
        if isinstance(algorithm, TrialAlgorithm):
            return self._trial(algorithm, greedy=True)
        adapting = by_gradient(algorithm)
        return self._adaptation(adapting, adapting.adapt(self.task, steps, self._rng("support")), steps)

    def report(self, algorithm: Algorithm, steps: int) -> Report:
        """The algorithm's adaptation beside the references."""
        aggregate, sampled, scratch = iqm_over_tasks, None, None
        if isinstance(algorithm, TrialAlgorithm):
            aggregate = mean_over_tasks
            sampled = self._trial(algorithm, greedy=False) if algorithm.stochastic else None
        else:
            adapting = by_gradient(algorithm)
            begun = adapting.adapt_from_scratch(self.task, steps, self._rng("support"))
            scratch = self._adaptation(adapting, begun, steps, "from scratch, point")
        curve, random, learned = self.curve(algorithm, steps), self.random(aggregate), self.learned(algorithm)
        return Report(curve, sampled, scratch, random, learned, *self._optimum(aggregate))

    def _optimum(self, aggregate: Aggregate) -> tuple[Scores | None, Interval | None]:
        """The best return of each task ``[M]`` and over all, where the family can tell."""
        known = self.family.optimum(self.task)
        if known is None:
            return None, None
        optimum = known.double().cpu().numpy()
        return optimum, self._points([0], [optimum[None]], [0], [0], aggregate).points[0]

    def random(self, aggregate: Aggregate = iqm_over_tasks) -> Curve:
        """A policy that acts uniformly at random."""
        rng = self._rng("random")
        returns = self._returns(self.task, lambda obs: random_actions(self.family.spec, obs, rng))
        return self._points([0], [returns], [0], [0], aggregate)

    def learned(self, algorithm: Algorithm) -> Interval | None:
        """The networks of tasks the algorithm learned from scratch, each on its own task."""
        found = None if isinstance(algorithm, TrialAlgorithm) else by_gradient(algorithm).learned()
        if found is None:
            return None
        task, params = found
        returns = self._returns(task, lambda obs: by_gradient(algorithm).act(params, obs))
        groups = [rows.cpu().numpy() for rows in self.family.groups(task).values() if len(rows)]
        return together([iqm_interval(returns[:, rows]) for rows in groups]) if groups else iqm_interval(returns)


def standard_error(groups: list[Scores]) -> float | None:
    """Of the average of the groups' means; over a group's tasks ``[M, E]``, of a single task over its repeats.

    None where there is nothing to compare with.
    """
    errors = []
    for scores in groups:
        apart = scores.mean(1) if len(scores) > 1 else scores[0]
        if len(apart) < 2:
            return None
        errors.append(apart.std(ddof=1) / np.sqrt(len(apart)))
    return float(np.sqrt(np.sum(np.square(errors))) / len(groups))


def by_gradient(algorithm: Algorithm) -> GradientAlgorithm:
    """What is no :class:`TrialAlgorithm` adapts by gradient steps."""
    return cast(GradientAlgorithm, algorithm)


def _spread(episodes: int, most: int = 20) -> list[int]:
    """At most ``most`` of the episodes of a trial, the first and the last among them, close together where more changes."""
    if episodes <= most:
        return list(range(episodes))
    return sorted({round(k) - 1 for k in np.geomspace(1, episodes, most)})


def metrics(curve: Curve, prefix: str) -> dict[str, float]:
    """A curve as scalars, under the tags every algorithm shares."""
    points, values = curve.points, [point.value for point in curve.points]
    found = {f"return_step_{k}": value for k, value in zip(curve.steps, values, strict=True)}
    found |= {
        "return_before": values[0],
        "return_after": values[-1],
        "return_after_low": points[-1].low,
        "return_after_high": points[-1].high,
        "gain": values[-1] - values[0],
        "auc": float(np.trapezoid(values, curve.steps) / curve.steps[-1]) if curve.steps[-1] else values[0],
    }
    if curve.total:
        found["trial_return"] = curve.total.mean
    for group, apart in curve.groups.items():
        found |= {f"return_before_{group}": apart[0].value, f"return_after_{group}": apart[-1].value}
    return {f"{prefix}/{name}": value for name, value in found.items()}


def reference_metrics(report: Report, prefix: str) -> dict[str, float]:
    """What stands beside the curve, as scalars: the references, and sampled actions."""
    found = {"return_random": report.random.points[0].value}
    if report.scratch:
        found["return_scratch"] = report.scratch.points[-1].value
    if report.learned:
        found["return_learned"] = report.learned.value
    if report.optimum is not None and report.best is not None:
        found["return_optimum"] = report.best.value
        found["regret_after"] = float((report.optimum - report.curve.returns[-1].mean(0)).mean())  # per episode
    if report.regret is not None:
        found["regret"] = report.regret
    if report.sampled and report.sampled.total:
        found["return_sampled_after"] = report.sampled.points[-1].value
        found["trial_return_sampled"] = report.sampled.total.mean
    return {f"{prefix}/{name}": value for name, value in found.items()}


def empty_table(title: str, trial: bool) -> Table:
    """The columns of an adaptation table; no number is ever cut off."""
    shown = Table(title=title, title_justify="left", title_style="bold")
    shown.add_column("", overflow="fold")
    for heading in ("gradient steps", "env steps"):
        shown.add_column(heading, justify="right", overflow="fold")
    shown.add_column(f"return: {'mean' if trial else 'IQM'} [95 %]", justify="right", no_wrap=True)
    return shown


def table(report: Report, title: str) -> Table:
    """The adaptation table people read."""
    shown = empty_table(title, trial=report.total is not None)

    def row(name: str, curve: Curve, k: int, style: str = "") -> None:
        value = str(curve.points[k])
        shown.add_row(name, str(curve.gradient_steps[k]), str(curve.env_steps[k]), value, style=style)

    row("random policy", report.random, 0, "dim")
    if report.scratch:
        row("from scratch", report.scratch, -1, "dim")
    last = len(report.curve.steps) - 1
    for k, step in enumerate(report.curve.steps):
        name = label(step, trial=report.total is not None)
        row(name, report.curve, k, "bold" if k in (0, last) else "")
    for group in report.curve.groups:
        shown.add_section()
        shown.add_row(f"{group}: random policy", "", "", str(report.random.groups[group][0]), style="dim")
        for k in (0, last):
            name = f"{group}: {label(report.curve.steps[k], trial=report.total is not None)}"
            shown.add_row(name, "", "", str(report.curve.groups[group][k]), style="bold")
        if report.scratch:
            shown.add_row(f"{group}: from scratch", "", "", str(report.scratch.groups[group][-1]), style="dim")
    if report.best:
        shown.add_row("optimum, told the task", "", "", f"{report.best.value:.2f}", style="dim")
    if report.total:
        shown.add_row(f"sum of {report.total.episodes} episodes", "", "", str(report.total), style="bold")
    if report.regret is not None:
        shown.add_row("regret, the optimum minus that", "", "", f"{report.regret:.2f}", style="dim")
    if report.sampled and report.sampled.total:
        shown.add_section()
        for k in sorted({0, last}):
            row(f"sampled: {label(report.sampled.steps[k], trial=True)}", report.sampled, k)
        shown.add_row(f"sampled: sum of {report.sampled.total.episodes} episodes", "", "", str(report.sampled.total))
    return shown


def label(step: int, trial: bool) -> str:
    """What a point of a curve is called."""
    if trial:
        return f"episode {step + 1}"
    return "before adaptation" if step == 0 else f"after step {step}"


def figure(report: Report, title: str) -> Figure:
    """Return against gradient steps (or episodes of the trial) and against environment steps, with the references."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(shown)
    left, right = shown.subplots(1, 2, sharey=True)
    lines = [("greedy" if report.sampled else "adapted", report.curve, "tab:blue")]
    if report.sampled:
        lines.append(("sampled", report.sampled, "tab:green"))
    if report.scratch:
        lines.append(("from scratch", report.scratch, "tab:orange"))
    first = "episodes of the trial before" if report.total else "gradient steps of adaptation, per task"
    for axes, name in ((left, "steps"), (right, "env_steps")):
        for text, curve, colour in lines:
            x, points = getattr(curve, name), curve.points
            axes.plot(x, [p.value for p in points], marker="o", color=colour, label=text)
            axes.fill_between(x, [p.low for p in points], [p.high for p in points], color=colour, alpha=0.2)
            if curve.total and name == "steps":
                axes.plot(curve.total.each, color=colour, linewidth=0.6)  # between the points too
        axes.axhline(report.random.points[0].value, color="grey", linestyle=":", label="random policy")
        if report.best:
            axes.axhline(report.best.value, color="black", linestyle="--", label="optimum, told the task")
        axes.set_xlabel(first if name == "steps" else "environment steps of adaptation, per task")
        axes.grid(alpha=0.3)
    left.xaxis.get_major_locator().set_params(integer=True)
    left.set_ylabel(f"return ({'mean' if report.total else 'IQM'}, 95 % interval)")
    left.legend()
    shown.suptitle(title)
    return shown


def as_json(report: Report, tasks: Task, extra: dict[str, Any]) -> dict[str, Any]:
    """A report as plain values: aggregates, and the mean return of every task at every point."""

    def entry(curve: Curve) -> dict[str, Any]:
        return {
            "steps": curve.steps,
            "gradient_steps": curve.gradient_steps,
            "env_steps": curve.env_steps,
            "mean" if report.total else "iqm": [point._asdict() for point in curve.points],
            "groups": {group: [point._asdict() for point in apart] for group, apart in curve.groups.items()},
            "task_returns": curve.returns.mean(axis=1).tolist(),  # [P, M]
        }

    parameters = {name: value.tolist() for name, value in tasks.items() if value.dim() == 1}  # tables stand in tasks.json
    return {
        **extra,
        "tasks": {"hash": task_hash(tasks), "parameters": parameters},
        "episodes": report.curve.returns.shape[1],
        "adapted": entry(report.curve),
        "sampled": report.sampled and entry(report.sampled),
        "from_scratch": report.scratch and entry(report.scratch),
        "random": entry(report.random),
        "learned": report.learned and report.learned._asdict(),
        "optimum": None if report.optimum is None else report.optimum.tolist(),  # [M]
        "trial": report.total and report.total._asdict(),
        "trial_sampled": report.sampled and report.sampled.total and report.sampled.total._asdict(),
        "regret": report.regret,
    }


def measure(
    folder: RunFolder, parts: Parts, split: str, tasks: Task, budget: Evaluation, seed: int, name: str
) -> tuple[Report, bytes]:
    """Test on ``tasks`` and keep the result as ``results/<name>.json`` and ``.png``; returns the latter too."""
    evaluator = Evaluator(parts.family, tasks, budget.episodes, seed, split)
    report = evaluator.report(parts.algorithm, budget.steps)
    folder.results.mkdir(exist_ok=True)
    folder.write_json(
        f"results/{name}.json",
        as_json(
            report,
            tasks,
            {"split": split, "env_steps": parts.algorithm.env_steps},
        ),
    )
    shown = png(figure(report, f"{folder.path.name}: {len(next(iter(tasks.values())))} {split} tasks"))
    write_whole(folder.results / f"{name}.png", shown)
    return report, shown


def load_weights(folder: RunFolder, parts: Parts, checkpoint: str) -> Path:
    """Put the weights of the ``best`` or ``last`` checkpoint into the algorithm; returns the file used.

    Raises:
        UserError: if there is none yet, or it is damaged or does not fit the run's configuration.
    """
    path = folder.best if checkpoint == "best" else folder.last
    if not path.exists():
        raise UserError(f"{folder} has no {checkpoint} checkpoint yet ({path.name}); is it still training?")
    state = load(path)
    try:
        saved = state["algorithm"]["weights"]
        parts.algorithm.load_weights(saved)
        parts.algorithm.env_steps = int(state["env_steps"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"refused {path}: it does not fit the run's configuration ({error})") from error
    return path


def run(config: TestConfig) -> float:
    """``metarl test``: repeat the evaluation of a saved run; returns the curve's ``score``."""
    folder = RunFolder(config.run)
    trained = folder.config(config.hardware)
    default = trained.test if config.split != "validation" else trained.eval
    budget = Evaluation(
        tasks=config.tasks or default.tasks,
        episodes=config.episodes or default.episodes,
        steps=config.steps or default.steps,
    )
    parts = build(trained)
    if config.split not in parts.family.splits:
        raise UserError(
            f"the family of {folder} has no {config.split} tasks; choose split={' or '.join(parts.family.splits[1:])}"
        )
    folder.check_tasks(trained, parts.family)
    if isinstance(parts.algorithm, TrialAlgorithm):
        if config.steps:
            parts.algorithm.episodes = config.steps + 1
        budget = budget.model_copy(update={"steps": parts.algorithm.episodes - 1})
    path = load_weights(folder, parts, config.checkpoint)
    tasks = held_out_tasks(parts.family, trained, config.split, budget.tasks)
    name = f"{config.split}-{config.checkpoint}-tasks{budget.tasks}-episodes{budget.episodes}-steps{budget.steps}"
    console = wide_console()
    with working(console, f"adapting to {budget.tasks} {config.split} tasks"):
        report, _ = measure(folder, parts, config.split, tasks, budget, trained.seed, name)
    console.print(table(report, f"{folder.path.name}: {budget.tasks} {config.split} tasks, {path.name}"))
    console.print(f"written: {folder.results / name}.json and .png", soft_wrap=True)
    return report.curve.score
