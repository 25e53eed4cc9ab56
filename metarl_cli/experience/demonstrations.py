"""Demonstrations: episodes by a policy that knows its task."""

from __future__ import annotations

import numpy as np
import torch

from metarl_cli.data import Demonstrations, Task
from metarl_cli.errors import UserError
from metarl_cli.experience.rollout import collect
from metarl_cli.interfaces import Family

NO_EXPERT = (
    "has no expert who demonstrates it; name the run of one that was trained, of algo=oracle_pg say: demonstrator=FOLDER"
)


def is_demonstrated(family: Family) -> bool:
    """Return whether a family has an expert."""
    return family.expert(family.sample_tasks(1, "train", np.random.default_rng(0))) is not None


@torch.no_grad()
def demonstrate(family: Family, task: Task, num: int, rng: torch.Generator) -> Demonstrations:
    """Return ``num`` episodes ``[M, T, num, ...]`` of each task by its expert, elsewhere where a task has other environments.

    Actions are drawn from the expert's distribution where it has one, mistakes included.

    Args:
        family: of the tasks; its ``expert`` acts.
        task: M tasks.
        num: of each task.
        rng: of the environments and of the actions.

    Returns:
        The episodes.

    Raises:
        UserError: if the family has no expert.
    """
    new = family.elsewhere(task, rng)
    there = task if new is None else new
    expert = family.expert(there)
    if expert is None:
        raise UserError(f"{type(family).__name__} {NO_EXPERT}")
    env = family.make(there, num, rng)
    state = expert.start(num, rng, greedy=False)
    return Demonstrations(there, collect(env, expert, state, family.spec.horizon, one_episode=True, stop=True))
