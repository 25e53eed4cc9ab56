"""Test results in a run folder, and the checkpoints they were measured with."""

from __future__ import annotations

from typing import NamedTuple

from metarl_cli.errors import UserError
from metarl_cli.evaluation.curves import Report
from metarl_cli.evaluation.evaluator import Evaluator
from metarl_cli.evaluation.pictures import png
from metarl_cli.evaluation.report import SHARED, as_json, figure
from metarl_cli.interfaces import Algorithm, Budget, num_tasks
from metarl_cli.runs.checkpoint import load, write_whole
from metarl_cli.runs.folder import RunFolder


class Measured(NamedTuple):
    """A report, and its figure as a PNG."""

    report: Report
    figure: bytes


def measure(
    folder: RunFolder, evaluator: Evaluator, algorithm: Algorithm, budget: Budget, env_steps: int, name: str
) -> Measured:
    """Test on the evaluator's tasks and write the result to ``results/<name>.json`` and ``.png``.

    Args:
        folder: the run folder.
        evaluator: evaluates on its tasks.
        algorithm: the algorithm, with the weights to test loaded.
        budget: the budget of adaptation.
        env_steps: environment steps of meta-training up to these weights.
        name: file name without its ending.
    """
    report = evaluator.report(algorithm, budget)
    task, split = evaluator.task, evaluator.split
    try:
        folder.results.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror}") from error
    folder.write_json(f"results/{name}.json", as_json(report, task, {"split": split, "env_steps": env_steps}))
    picture = png(figure(report, f"{folder.path.name}: {num_tasks(task)} {split} tasks{SHARED if report.shared else ''}"))
    write_whole(folder.results / f"{name}.png", picture)
    return Measured(report, picture)


def load_weights(folder: RunFolder, algorithm: Algorithm, checkpoint: str) -> int:
    """Load the weights of the ``best`` or ``last`` checkpoint; return their environment steps of meta-training.

    Raises:
        UserError: if the checkpoint does not exist, is damaged or does not fit the run's configuration.
    """
    path = folder.checkpoint(checkpoint)
    if not path.exists():
        raise UserError(f"{folder} has no {checkpoint} checkpoint yet ({path.name}); is it still training?")
    state = load(path)
    try:
        algorithm.load_weights(state["algorithm"]["weights"])
        return int(state["env_steps"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"refused {path}: it does not fit the run's configuration ({error})") from error
