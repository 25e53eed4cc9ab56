"""``metarl test``: adaptation curves of a saved run on held-out tasks, with references."""

from __future__ import annotations

from metarl_cli.cli.process import tune_process
from metarl_cli.config.compatibility import check_budget
from metarl_cli.config.models import Evaluation, Job, TestConfig
from metarl_cli.errors import UserError
from metarl_cli.evaluation.held_out import held_out_tasks
from metarl_cli.evaluation.report import table
from metarl_cli.interfaces import TrialAlgorithm
from metarl_cli.progress import working
from metarl_cli.runs.build import build
from metarl_cli.runs.folder import RunFolder
from metarl_cli.runs.results import load_weights, measure
from metarl_cli.runs.tracking import wide_console

Config = TestConfig


def run(config: TestConfig, job: Job) -> float:
    """Repeat the evaluation of a saved run; returns the curve's ``score``."""
    tune_process(config.hardware)
    folder = RunFolder(config.run)
    trained = folder.config(config.hardware)
    default = trained.test if config.split != "validation" else trained.eval
    budget = Evaluation(
        tasks=config.tasks or default.tasks,
        episodes=config.episodes or default.episodes,
        steps=config.steps or default.steps,
    )
    components = build(trained)
    family, algorithm = components.family, components.algorithm
    if config.split not in family.splits:
        raise UserError(f"the family of {folder} has no {config.split} tasks; choose split={' or '.join(family.splits[1:])}")
    folder.check_tasks(trained, family)
    check_budget(trained.algo, config.steps, config.trial)
    if isinstance(algorithm, TrialAlgorithm):
        algorithm.episodes = config.trial or algorithm.episodes
        budget = budget.model_copy(update={"steps": algorithm.episodes - 1})
    path = load_weights(folder, components, config.checkpoint)
    tasks = held_out_tasks(family, trained, config.split, budget.tasks)
    name = f"{config.split}-{config.checkpoint}-tasks{budget.tasks}-episodes{budget.episodes}-steps{budget.steps}"
    console = wide_console()
    with working(console, f"adapting to {budget.tasks} {config.split} tasks"):
        report, _ = measure(folder, components, config.split, tasks, budget, trained.seed, name)
    console.print(table(report, f"{folder.path.name}: {budget.tasks} {config.split} tasks, {path.name}"))
    console.print(f"written: {folder.results / name}.json and .png", soft_wrap=True)
    return report.curve.score
