"""Rollouts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metarl_cli.interfaces import Env, Family, Task, Transitions

Act = Callable[[Tensor], Tensor]  # obs [M, N, ...] -> action [M, N]


def collect(env: Env, act: Act, steps: int, one_episode: bool = False) -> Transitions:
    """Act ``steps`` times in every environment -> ``[M, T, N, ...]``.

    ``one_episode`` gives no weight to what follows the first end of each environment's episode.
    """
    rows = []
    weight = torch.ones(env.obs.shape[:2], device=env.obs.device)
    for _ in range(steps):
        obs = env.obs
        action = act(obs)
        step = env.step(action)
        ended = step.terminated | step.truncated
        rows.append(Transitions(obs, action, step.reward, step.next_obs, step.terminated, ended, weight))
        if one_episode:
            weight = weight * ~ended
    return Transitions(*(torch.stack(field, 1) for field in zip(*rows, strict=True)))


@torch.no_grad()
def run_episodes(
    family: Family, task: Task, act: Act, episodes: int, rng: torch.Generator, steps: int | None = None
) -> tuple[Tensor, Tensor]:
    """One full episode in each of ``episodes`` fresh environments per task, cut at ``steps`` if given.

    Returns the undiscounted returns and the lengths [steps], ``[M, episodes]`` both.
    """
    env = family.make(task, episodes, rng)
    total, length = torch.zeros(2, *env.obs.shape[:2], device=env.obs.device)
    running = torch.ones_like(total, dtype=torch.bool)
    for _ in range(steps or family.spec.horizon):
        step = env.step(act(env.obs))
        total += step.reward * running
        length += running
        running &= ~(step.terminated | step.truncated)
        if not running.any():
            break
    return total, length
