"""``metarl test``: adaptation curves of a saved run on held-out tasks, with references."""

from __future__ import annotations

from metarl_cli.cli.process import tune_process
from metarl_cli.config.models import Job, TestConfig
from metarl_cli.evaluation.report import SHARED, table
from metarl_cli.progress import status, wide_console
from metarl_cli.runs.run import Run

Config = TestConfig


def run(config: TestConfig, job: Job) -> float | None:
    """Repeat the evaluation of a saved run; returns its score on validation tasks, else None: sweepers see no test."""
    tune_process(config.hardware)
    saved = Run(config.run, config.hardware, config.checkpoint)
    console = wide_console()
    with status(console, f"adapting to {config.split} tasks"):
        name, report = saved.measure(config.split, config.tasks, config.episodes, config.steps, config.trial)
    tasks = report.curve.returns.shape[-1]
    shared = SHARED if report.shared else ""
    console.print(table(report, f"{saved.folder.path.name}: {tasks} {config.split} tasks{shared}, {saved.checkpoint.name}"))
    console.print(f"written: {saved.folder.results / name}.json and .png", soft_wrap=True)
    return report.score if config.split == "validation" else None
