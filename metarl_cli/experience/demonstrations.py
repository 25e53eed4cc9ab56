"""Demonstrations: episodes by a policy that knows its task."""

from __future__ import annotations

import torch

from metarl_cli.data import Demonstrations, Task
from metarl_cli.experience.rollout import collect
from metarl_cli.interfaces import Family


@torch.no_grad()
def demonstrate(family: Family, task: Task, num: int, rng: torch.Generator) -> Demonstrations | None:
    """Return ``num`` episodes ``[M, T, num, ...]`` of each task by its expert, elsewhere where a task has other environments.

    Actions are drawn from the expert's distribution where it has one, mistakes included.

    Args:
        family: of the tasks; its ``expert`` acts.
        task: M tasks.
        num: of each task.
        rng: of the environments and of the actions.

    Returns:
        The episodes; None where the family has no expert.
    """
    new = family.elsewhere(task, rng)
    there = task if new is None else new
    expert = family.expert(there)
    if expert is None:
        return None
    env = family.make(there, num, rng)
    state = expert.start(num, rng, greedy=False)
    return Demonstrations(there, collect(env, expert, state, family.spec.horizon, one_episode=True, stop=True))
