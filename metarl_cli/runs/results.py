"""Test results in a run folder."""

from __future__ import annotations

from pathlib import Path

from metarl_cli.config.models import Evaluation
from metarl_cli.errors import UserError
from metarl_cli.evaluation.curves import Report
from metarl_cli.evaluation.evaluator import Evaluator
from metarl_cli.evaluation.report import as_json, figure
from metarl_cli.interfaces import Task
from metarl_cli.runs.build import Components
from metarl_cli.runs.checkpoint import load, write_whole
from metarl_cli.runs.folder import RunFolder
from metarl_cli.runs.tracking import png


def measure(
    folder: RunFolder, components: Components, split: str, tasks: Task, budget: Evaluation, seed: int, name: str
) -> tuple[Report, bytes]:
    """Test on ``tasks`` and keep the result as ``results/<name>.json`` and ``.png``; returns the latter too."""
    evaluator = Evaluator(components.family, tasks, budget.episodes, seed, split)
    report = evaluator.report(components.algorithm, budget.steps or 0)
    folder.results.mkdir(exist_ok=True)
    folder.write_json(
        f"results/{name}.json",
        as_json(
            report,
            tasks,
            {"split": split, "env_steps": components.algorithm.env_steps},
        ),
    )
    shown = png(figure(report, f"{folder.path.name}: {len(next(iter(tasks.values())))} {split} tasks"))
    write_whole(folder.results / f"{name}.png", shown)
    return report, shown


def load_weights(folder: RunFolder, components: Components, checkpoint: str) -> Path:
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
        components.algorithm.load_weights(saved)
        components.algorithm.env_steps = int(state["env_steps"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"refused {path}: it does not fit the run's configuration ({error})") from error
    return path
