"""metarl: the one command for meta-reinforcement-learning experiments, and the same from Python.

    import metarl_cli as metarl

    run = metarl.train("algo=maml_dqn", "env=cartpole_family", "seed=1")
    policy = run.adapt(gravity=15, force_mag=-8)
    action = policy(obs)

Importing the package has no effects, and imports nothing slow before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from os.path import isfile  # False, and no error, for a name that is too long
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metarl_cli.runs.loop import Progress
    from metarl_cli.runs.policy import AdaptedPolicy
    from metarl_cli.runs.run import Run

__all__ = ["__version__", "load", "report", "train"]

try:
    __version__ = version("metarl-cli")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"


def train(*overrides: str, progress: Callable[[Progress], None] | None = None) -> Run:
    """Meta-train, select on validation tasks, test on held-out tasks; returns the run.

    A run that was stopped goes on, and a finished one is returned as it is, as ``metarl train`` does.

    Args:
        overrides: the command line's, such as ``"algo=rl2"`` or ``"train.iterations=20"``.
        progress: called after every iteration.

    Raises:
        UserError: if the configuration cannot run, with every problem in its text.
    """
    from metarl_cli.cli.compose import compose_train
    from metarl_cli.comparison.board import Current
    from metarl_cli.runs.loop import train as train_run
    from metarl_cli.runs.run import Run

    class Callback(Current):
        def progress(self, progress_: Progress) -> None:
            super().progress(progress_)
            if progress is not None:
                progress(progress_)

    config, job = compose_train(list(overrides))
    folder, _ = train_run(config, job, Callback(config.aggregate))
    return Run(folder.path)


def load(path: str | Path, device: str = "auto") -> Run | AdaptedPolicy:
    """Load a run from its folder, or an adapted policy from the file or folder that ``metarl adapt`` wrote.

    A run that comes with metarl is ``zoo:NAME``; it is copied to ``outputs/zoo/NAME``, where what is made of it goes.

    Args:
        path: of the folder, or of the file; or ``zoo:NAME``.
        device: to compute on, ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; auto takes a GPU where there is one.

    Raises:
        UserError: if there is neither, or it cannot be read.
    """
    import yaml

    from metarl_cli.cli.compose import conf_dir
    from metarl_cli.config.models import Hardware
    from metarl_cli.config.registry import validate
    from metarl_cli.runs.run import Run, load_policy

    values = yaml.safe_load(Path(conf_dir(), "hardware", "auto.yaml").read_text())
    path, hardware = Path(path), validate(Hardware, {**values, "device": device})
    if isfile(path / "policy.pt") and not isfile(path / "run.json"):
        path = path / "policy.pt"
    return load_policy(path, hardware) if isfile(path) else Run(path, hardware)


def report(
    *paths: str | Path,
    by: str | Sequence[str] = (),
    split: str = "test",
    step: int | None = None,
    baseline: str | None = None,
    columns: str | Sequence[str] = (),
    intervals: str = "seeds",
) -> dict[str, Any]:
    """Compare runs, as ``metarl report`` does; returns plain numbers.

    Args:
        paths: run folders, folders that hold them, or files that keep runs (``format=runs``); none: ``outputs``.
        by: keys whose values make a group, such as ``algo``; none: all but the seed.
        split: the held-out tasks: ``test`` or ``ood``.
        step: of adaptation, after which returns are compared; None: the last that a run was tested after.
        baseline: the group that others are compared with; None: the robust policy, else the first group.
        columns: of the tables; none: all that have a value.
        intervals: ``seeds`` (Student's, over runs) or ``stratified`` (a bootstrap within tasks, as rliable's).

    Returns:
        ``tables``, each with its ``title``, its ``rows`` (a dict by column, an interval as ``value``, ``low`` and ``high``) and
        its ``notes``; and ``notes`` on runs that have no place in one.

    Raises:
        UserError: if there is no run with a result, or a value is none of those there are.
    """
    from metarl_cli.comparison.report import report as compare

    by, columns = ([each] if isinstance(each, str) else each for each in (by, columns))
    return compare(
        paths or ["outputs"], by, split=split, step=step, baseline=baseline, columns=columns, intervals=intervals
    ).values()
