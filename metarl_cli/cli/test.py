"""``metarl test``: test a saved run on held-out tasks: adaptation curves with references, or what its adaptation uses."""

from __future__ import annotations

from metarl_cli.cli.process import tune_process
from metarl_cli.config.models import Job, TestConfig
from metarl_cli.envs.tasks import shares
from metarl_cli.evaluation import probe_report
from metarl_cli.evaluation.report import SHARED, table
from metarl_cli.progress import status, wide_console
from metarl_cli.runs.run import Run

Config = TestConfig


def run(config: TestConfig, job: Job) -> float | None:
    """Repeat the evaluation of a saved run; returns its score on validation tasks, else None: sweepers see no test."""
    tune_process(config.hardware)
    saved = Run(config.run, config.hardware, config.checkpoint)
    console, score = wide_console(), None
    arguments = (config.split, config.tasks, config.episodes, config.steps, config.trial, config.robust, config.oracle)
    with status(console, f"adapting to {config.split} tasks"):
        if config.probe:
            name, probe = saved.measure_probe(*arguments)
            tasks, shared = len(probe.effects[0].rows), shares(saved.family, config.split)
        else:
            name, report = saved.measure(*arguments)
            tasks, shared = report.curve.returns.shape[-1], report.shared
            score = report.score if config.split == "validation" else None
    title = f"{saved.folder.path.name}: {tasks} {config.split} tasks{SHARED if shared else ''}, {saved.checkpoint.name}"
    console.print(probe_report.table(probe, title) if config.probe else table(report, title))
    console.print(f"written: {saved.folder.results / name}.json and .png", soft_wrap=True)
    return score
