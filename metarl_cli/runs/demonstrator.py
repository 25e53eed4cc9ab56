"""The demonstrator of a run: a policy that was trained, and is given what tells the task, in the place of the family's expert.

``demonstrator=FOLDER`` names its run. What demonstrations need of it is copied into the folder of the run that learns from
them, as ``demonstrator/``: that folder is enough to go on and to test.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from metarl_cli.config.models import Hardware
from metarl_cli.errors import UserError
from metarl_cli.interfaces import Budget, Family, Policy, Task
from metarl_cli.runs.build import build
from metarl_cli.runs.files import read, write_whole
from metarl_cli.runs.folder import DEMONSTRATOR, RunFolder
from metarl_cli.runs.results import load_weights
from metarl_cli.runs.shipped import KEPT

LARGEST = 2**30  # [bytes] of a checkpoint that is copied


def trained_expert(path: str | Path, family: Family, hardware: Hardware) -> Callable[[Task], Policy]:
    """Return what makes the policies of tasks, by a run that was trained in a family like this one.

    Args:
        path: the folder of the run.
        family: where it demonstrates.
        hardware: to compute on.

    Raises:
        UserError: if there is no such run, it adapts, it is not given the task, or its actions, observations or task parameters
            are others.
    """
    folder = RunFolder(path)
    config = folder.config(hardware)
    if config.algo.module.Algo.adapts_by != "nothing":
        raise UserError(f"demonstrator={path}: its algorithm adapts; who demonstrates knows the task, as algo=oracle_pg does")
    if getattr(config.algo.config, "knowledge", True) is False:
        text = "its policy is not given the task, and its demonstrations do not show it; that of algo=oracle_pg is"
        raise UserError(f"demonstrator={path}: {text}")
    other, algorithm, device = build(config)
    if other.spec != family.spec:
        raise UserError(f"demonstrator={path}: its observations, actions or horizon are not those of this env")
    one, own = (each.sample_tasks(1, "train", np.random.default_rng(0)) for each in (other, family))
    if one.keys() != own.keys():
        names = [", ".join(sorted(task)) for task in (one, own)]
        raise UserError(f"demonstrator={path}: its tasks have {names[0]}, and those of this env {names[1]}")
    load_weights(folder, algorithm, "best")

    def expert(task: Task) -> Policy:
        return next(iter(algorithm.adapt(task, Budget(), torch.Generator(device)))).policy

    return expert


def keep_demonstrator(path: str | Path, run: Path) -> None:
    """Copy what demonstrations need of a demonstrator's run into the folder of a run.

    Raises:
        UserError: if it cannot be read or written.
    """
    source, place = RunFolder(path).path, run / DEMONSTRATOR
    try:
        place.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write in {run}: {error.strerror}") from error
    for name in KEPT:
        if "/" not in name:
            write_whole(place / name, read(source / name, LARGEST))
