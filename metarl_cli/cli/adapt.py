"""``metarl adapt``: adapt a saved run to one task you name, in a few steps or episodes; keeps the policy."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from metarl_cli.cli.process import tune_process
from metarl_cli.config.models import AdaptConfig, Job
from metarl_cli.envs.tasks import named
from metarl_cli.errors import UserError
from metarl_cli.evaluation.curves import Report
from metarl_cli.evaluation.evaluator import Evaluator
from metarl_cli.evaluation.pictures import gif, png
from metarl_cli.evaluation.report import figure, table
from metarl_cli.evaluation.statistics import number
from metarl_cli.experience.rollout import Played
from metarl_cli.interfaces import Adapted, Task
from metarl_cli.progress import status, wide_console
from metarl_cli.runs.demonstrations import is_numeric, write_demonstrations
from metarl_cli.runs.files import write_json, write_whole
from metarl_cli.runs.naming import file_name
from metarl_cli.runs.results import AdaptedResult, finite
from metarl_cli.runs.run import FRAMES, Adaptation, Run

Config = AdaptConfig
open_groups = ("task",)  # its keys are the family's parameters


def run(config: AdaptConfig, job: Job) -> float:
    """Adapt to the task; returns the return after the last step, or a trial's mean return of an episode.

    Raises:
        UserError: for a parameter the family does not have, or a run that cannot be read.
    """
    tune_process(config.hardware)
    saved, console = Run(config.run, config.hardware, config.checkpoint), wide_console()
    task, budget = saved.task(config.task), saved.budget(config.steps, config.trial)
    if config.demonstrations is not None:
        budget = saved.demonstrated(budget, config.demonstrations, config.task, config.steps)
    name = "-".join(named(key, value) for key, value in config.task.items()) or "nominal"
    out = Path(config.out) if config.out else saved.path / "adapted" / file_name(name)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {out}: {error.strerror}") from error
    title = f"{saved.path.name} on {name}"
    with status(console, f"adapting to {name}"):
        adaptation = saved.adaptation(task, budget, config.seed, frames=FRAMES if config.gif else 0)
        evaluator = Evaluator(saved.family, task, config.episodes, config.seed, "adapt")
        report = evaluator.report(saved.algorithm, budget, adaptation.steps)
    console.print(table(report, title))
    _keep(report, adaptation, out, title, console)
    _draw(saved, adaptation.steps[-1], out, console)
    if saved.algorithm.learns:
        adaptation.policy.save(out / "policy.pt")
        console.print(f"adapted policy: {out / 'policy.pt'}", soft_wrap=True)
    if config.gif:
        _film(saved, task, adaptation, config.seed, out, console)
    return report.curve.score


def _keep(report: Report, adaptation: Adaptation, out: Path, title: str, console: Console) -> None:
    """Write the returns as a figure and as plain values, with the path of the trial that was played."""
    played = adaptation.played
    if played and played.places:
        console.print("the path of one greedy trial:" if report.sampled else "the path of one trial:")
        for k in report.curve.steps:
            console.print(f"episode {k + 1}: {' '.join(played.places[k])}  return {number(played.returns[k])}", soft_wrap=True)
    kept = {
        "task": adaptation.policy.task,
        "returns": [point._asdict() for point in report.curve.points],
        "gradient_steps": report.curve.gradient_steps,
        "env_steps": report.curve.env_steps,
        "sampled": report.sampled and [point._asdict() for point in report.sampled.points],
        "played": played and {"returns": played.returns, "places": played.places},
    }
    write_json(out / "adaptation.json", finite(kept), AdaptedResult)
    write_whole(out / "adaptation.png", png(figure(report, title)))
    console.print(f"returns: {out / 'adaptation.json'} and .png", soft_wrap=True)


def _draw(saved: Run, adapted: Adapted, out: Path, console: Console) -> None:
    """Write what the policy has to show of itself, here and where demonstrations took place, and these."""
    there = adapted.demonstrated
    for place, policy in (("", adapted.policy), ("demonstrated_", there.policy if there else None)):
        for name, drawing in (policy.diagnostics().figures if policy else {}).items():
            write_whole(out / f"{place}{name}.png", png(drawing))
            console.print(f"{place.replace('_', ' ')}{name}: {out / f'{place}{name}'}.png", soft_wrap=True)
    if there and is_numeric(there.demonstrations.task):
        write_demonstrations(out / "demonstrations.json", saved.family, there.demonstrations)
        console.print(f"demonstrations: {out / 'demonstrations.json'}", soft_wrap=True)


def _film(saved: Run, task: Task, adaptation: Adaptation, seed: int, out: Path, console: Console) -> None:
    """Draw the trial that was played, or an episode before and one after adaptation."""
    films: dict[str, Played]
    if adaptation.played:
        films = {"trial": adaptation.played}
    else:
        first, *_, last = [adaptation.steps[0], *adaptation.steps]
        films = {"before": saved.film(task, first, seed), "after": saved.film(task, last, seed)}
    for name, played in films.items():
        write_whole(out / f"{name}.gif", gif(played.frames))
        console.print(f"{name}: {out / name}.gif", soft_wrap=True)
