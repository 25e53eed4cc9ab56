"""``metarl tune``: search for settings on validation tasks, then compare the best with the defaults on fresh seeds."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from metarl_cli.cli.process import tune_process
from metarl_cli.cli.ranges import check_ends, setting_of
from metarl_cli.cli.terminal import waiting
from metarl_cli.config.models import Job, TuneConfig
from metarl_cli.errors import UserError

Config = TuneConfig
open_groups = ("ranges",)
searched = "ranges"
OLDEST = 5  # version of Optuna


def run(config: TuneConfig, job: Job) -> float:
    """Search, or go on with a study, and compare the best trial with the defaults; returns its score on validation tasks.

    Raises:
        UserError: if there is nothing to search, a range is wrong, the folder holds something else, or no trial finished.
    """
    if (installed := _optuna()) < OLDEST:
        here = f"; here is {installed}" if installed else ""
        raise UserError(f"metarl tune needs Optuna {OLDEST} or newer{here}: pip install 'optuna>={OLDEST}'")
    tune_process(config.hardware)
    with waiting("checking the ranges ..."):
        setting = setting_of(config, job)
        check_ends(setting)
        from metarl_cli.cli.trials import conduct, open_study

        study = open_study(config, setting)
    return conduct(config, setting, study)


def _optuna() -> int:
    """Return the first number of the version of Optuna; 0 where there is none."""
    try:
        return int(version("optuna").split(".")[0])
    except PackageNotFoundError:
        return 0
