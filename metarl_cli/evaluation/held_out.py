"""Held-out tasks: equal for all algorithms and seeds, and disjoint between splits."""

from __future__ import annotations

import hashlib

import torch

from metarl_cli.errors import UserError
from metarl_cli.interfaces import Family, Task, num_tasks
from metarl_cli.seeding import numpy_rng


def held_out_tasks(family: Family, split: str, num: int, seed: int) -> Task:
    """Draw the first ``num`` tasks of a held-out split; they do not depend on the algorithm, the run's seed or ``num``."""
    return family.sample_tasks(num, split, numpy_rng(seed, "tasks", split))


def task_hash(task: Task) -> str:
    """Return a hash of the tasks' parameters."""
    digest = hashlib.sha256()
    for name in sorted(task):
        digest.update(name.encode() + task[name].detach().cpu().double().numpy().tobytes())
    return digest.hexdigest()[:16]


def task_hashes(task: Task) -> list[str]:
    """Return a hash of the parameters of each single task, by which it is looked up in any set of tasks."""
    return [task_hash({name: value[i : i + 1] for name, value in task.items()}) for i in range(num_tasks(task))]


def check_disjoint(splits: dict[str, Task]) -> None:
    """Check that no two splits share a task.

    Raises:
        UserError: if two splits share a task.
    """
    seen: dict[tuple[float, ...], str] = {}
    for split, task in splits.items():
        columns = [value.reshape(len(value), -1) for value in task.values()]
        for number, row in enumerate(torch.cat(columns, 1).tolist()):
            other = seen.setdefault(tuple(row), split)
            if other != split:
                values = {name: value[number].tolist() for name, value in task.items()}
                raise UserError(f"the {other} and the {split} split share a task: {values}")
