"""The one evaluator: adaptation curves of any algorithm on tasks it never trained on; and ``metarl test``.

A curve is the return of full greedy episodes before adaptation and after each adaptation step, per task, against the
gradient steps and environment steps spent (Beck 2023, arXiv:2301.08028, section 2.3). Evaluation owns its environments and
random streams: how often and on how many tasks it runs moves nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from metarl_cli.actions import random_actions
from metarl_cli.building import Evaluation, TestConfig
from metarl_cli.checkpoint import load
from metarl_cli.inner_loop import Act
from metarl_cli.run_folder import Parts, RunFolder, build, held_out_tasks, task_hash
from metarl_cli.seeding import torch_rng
from metarl_cli.statistics import Interval, Scores, iqm_interval
from metarl_cli.types import Adaptation, Algorithm, Family, Task, UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Curve(NamedTuple):
    """Returns along adaptation on M tasks, E episodes each."""

    returns: Scores  # [K + 1, E, M]
    iqm: list[Interval]  # [K + 1] over tasks and episodes, with its interval over both
    gradient_steps: list[int]  # [K + 1] spent per task
    env_steps: list[int]  # [K + 1] spent per task


class Report(NamedTuple):
    """The curve of an algorithm, and its references on the same tasks at the same budget."""

    curve: Curve
    scratch: Curve
    random: Curve
    learned: Interval | None  # the algorithm's own training tasks, where each is learned from scratch


@torch.no_grad()
def episode_returns(family: Family, task: Task, act: Act, episodes: int, rng: torch.Generator) -> Tensor:
    """Undiscounted returns ``[M, episodes]`` of one full episode in each of ``episodes`` fresh environments per task."""
    env = family.make(task, episodes, rng)
    total = torch.zeros(env.obs.shape[:2], device=env.obs.device)
    running = torch.ones_like(total, dtype=torch.bool)
    for _ in range(family.spec.horizon):
        step = env.step(act(env.obs))
        total += step.reward * running
        running &= ~(step.terminated | step.truncated)
        if not running.any():
            break
    return total


class Evaluator:
    """Measures on a fixed set of tasks.

    Args:
        family: where the tasks live.
        task: the held-out tasks.
        episodes: full episodes per task and adaptation step.
        seed: of the support and evaluation episodes, with the split: a stream of their own for each.
        split: the tasks' split.
    """

    def __init__(self, family: Family, task: Task, episodes: int, seed: int, split: str):
        self.family, self.task, self.episodes, self.seed, self.split = family, task, episodes, seed, split
        self.device = next(iter(task.values())).device

    def _returns(self, task: Task, act: Act) -> Scores:
        rng = torch_rng(self.seed, self.split, "episodes", device=self.device)  # the same episodes for every policy
        return episode_returns(self.family, task, act, self.episodes, rng).T.double().cpu().numpy()  # [E, M]

    def _curve(self, algorithm: Algorithm, adaptations: Iterator[Adaptation]) -> Curve:
        returns, gradient_steps, env_steps = [], [], []
        for adaptation in adaptations:
            params = adaptation.params
            returns.append(self._returns(self.task, lambda obs, params=params: algorithm.act(params, obs)))  # type: ignore[misc]
            gradient_steps.append(adaptation.gradient_steps)
            env_steps.append(adaptation.env_steps)
        return _curve(returns, gradient_steps, env_steps)

    def curve(self, algorithm: Algorithm, steps: int) -> Curve:
        """The algorithm's own adaptation."""
        rng = torch_rng(self.seed, self.split, "support", device=self.device)
        return self._curve(algorithm, algorithm.adapt(self.task, steps, rng))

    def report(self, algorithm: Algorithm, steps: int) -> Report:
        """The algorithm's adaptation beside the references."""
        rng = torch_rng(self.seed, self.split, "support", device=self.device)
        scratch = self._curve(algorithm, algorithm.adapt_from_scratch(self.task, steps, rng))
        return Report(self.curve(algorithm, steps), scratch, self.random(), self.learned(algorithm))

    def random(self) -> Curve:
        """A policy that acts uniformly at random."""
        rng = torch_rng(self.seed, self.split, "random", device=self.device)

        def act(obs: Tensor) -> Tensor:
            return random_actions(self.family.spec, obs, rng)

        return _curve([self._returns(self.task, act)], [0], [0])

    def learned(self, algorithm: Algorithm) -> Interval | None:
        """The networks of tasks the algorithm learned from scratch, each on its own task."""
        found = algorithm.learned()
        if found is None:
            return None
        task, params = found
        return iqm_interval(self._returns(task, lambda obs: algorithm.act(params, obs)))


def _curve(returns: list[Scores], gradient_steps: list[int], env_steps: list[int]) -> Curve:
    points = [iqm_interval(scores, over_tasks=True) for scores in returns]
    return Curve(np.stack(returns), points, gradient_steps, env_steps)


def metrics(curve: Curve, prefix: str) -> dict[str, float]:
    """A curve as scalars, under the tags every algorithm shares."""
    points = curve.iqm
    values = [point.value for point in points]
    found = {f"return_step_{k}": value for k, value in enumerate(values)}
    found |= {
        "return_before": values[0],
        "return_after": values[-1],
        "return_after_low": points[-1].low,
        "return_after_high": points[-1].high,
        "gain": values[-1] - values[0],
        "auc": float(np.trapezoid(values) / max(len(values) - 1, 1)),
    }
    return {f"{prefix}/{name}": value for name, value in found.items()}


def table(report: Report, title: str) -> Table:
    """The adaptation table people read."""
    shown = Table(title=title, title_justify="left", title_style="bold")
    for heading in ("", "gradient steps", "env steps", "return: IQM [95 %]"):
        shown.add_column(heading, justify="right" if heading else "left", no_wrap=True)

    def row(name: str, curve: Curve, k: int, style: str = "") -> None:
        value = str(curve.iqm[k])
        shown.add_row(name, str(curve.gradient_steps[k]), str(curve.env_steps[k]), value, style=style)

    row("random policy", report.random, 0, "dim")
    row("from scratch", report.scratch, len(report.scratch.returns) - 1, "dim")
    last = len(report.curve.returns) - 1
    for k in range(last + 1):
        name = "before adaptation" if k == 0 else f"after step {k}"
        row(name, report.curve, k, "bold" if k in (0, last) else "")
    return shown


def figure(report: Report, title: str) -> Figure:
    """Return against gradient steps and against environment steps, with the references."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(shown)
    left, right = shown.subplots(1, 2, sharey=True)
    for axes, name in ((left, "gradient_steps"), (right, "env_steps")):
        for label, curve, colour in (
            ("adapted", report.curve, "tab:blue"),
            ("from scratch", report.scratch, "tab:orange"),
        ):
            x, points = getattr(curve, name), curve.iqm
            axes.plot(x, [p.value for p in points], marker="o", color=colour, label=label)
            axes.fill_between(x, [p.low for p in points], [p.high for p in points], color=colour, alpha=0.2)
        axes.axhline(report.random.iqm[0].value, color="grey", linestyle=":", label="random policy")
        axes.set_xlabel(f"{name.replace('_', ' ').replace('env', 'environment')} of adaptation, per task")
        axes.grid(alpha=0.3)
    left.xaxis.get_major_locator().set_params(integer=True)
    left.set_ylabel("return (IQM, 95 % interval)")
    left.legend()
    shown.suptitle(title)
    return shown


def as_json(report: Report, tasks: Task, extra: dict[str, Any]) -> dict[str, Any]:
    """A report as plain values: aggregates, and the mean return of every task at every step."""

    def entry(curve: Curve) -> dict[str, Any]:
        return {
            "gradient_steps": curve.gradient_steps,
            "env_steps": curve.env_steps,
            "iqm": [point._asdict() for point in curve.iqm],
            "task_returns": curve.returns.mean(axis=1).tolist(),  # [K + 1, M]
        }

    parameters = {name: value.tolist() for name, value in tasks.items()}
    return {
        **extra,
        "tasks": {"hash": task_hash(tasks), "parameters": parameters},
        "episodes": report.curve.returns.shape[1],
        "adapted": entry(report.curve),
        "from_scratch": entry(report.scratch),
        "random": entry(report.random),
    }


def measure(
    folder: RunFolder, parts: Parts, split: str, tasks: Task, budget: Evaluation, seed: int, name: str
) -> tuple[Report, Figure]:
    """Test on ``tasks`` and keep the result as ``results/<name>.json`` and ``.png``."""
    evaluator = Evaluator(parts.family, tasks, budget.episodes, seed, split)
    report = evaluator.report(parts.algorithm, budget.steps)
    shown = figure(report, f"{folder.path.name}: {len(next(iter(tasks.values())))} {split} tasks")
    folder.results.mkdir(exist_ok=True)
    folder.write_json(
        f"results/{name}.json",
        as_json(
            report,
            tasks,
            {"split": split, "env_steps": parts.algorithm.env_steps, "learned": report.learned and report.learned._asdict()},
        ),
    )
    shown.savefig(folder.results / f"{name}.png", dpi=150)
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
    """``metarl test``: repeat the evaluation of a saved run; returns the IQM after adaptation."""
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
    path = load_weights(folder, parts, config.checkpoint)
    tasks = held_out_tasks(parts.family, trained, config.split, budget.tasks)
    name = f"{config.split}-{config.checkpoint}-tasks{budget.tasks}-episodes{budget.episodes}-steps{budget.steps}"
    console = Console()
    with console.status(f"adapting to {budget.tasks} {config.split} tasks"):
        report, _ = measure(folder, parts, config.split, tasks, budget, trained.seed, name)
    console.print(table(report, f"{folder.path.name}: {budget.tasks} {config.split} tasks, {path.name}"))
    console.print(f"written: {folder.results / name}.json and .png", soft_wrap=True)
    return report.curve.iqm[-1].value
