"""The support: the experience of a new task that adaptation by gradient and by inference learns from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field

from metarl_cli.config.base import StrictModel
from metarl_cli.experience.exploration import EpsilonGreedy
from metarl_cli.experience.rollout import collect
from metarl_cli.interfaces import Family, Policy, Task, Transitions
from metarl_cli.spaces import ActionSpace

# what makes the policies that collect a support, of the supports so far and M
Exploring = Callable[[list[Transitions], int], Policy]


class RolloutsConfig(StrictModel):
    """The rollouts of a support."""

    rollouts: int = Field(gt=0, description="episodes per task")
    steps: int = Field(gt=0, description="longest part of an episode that is used, from its start [steps]")
    epsilon: float = Field(ge=0, le=1, description="share of random actions")
    repeat: int = Field(gt=0, description="duration of a random action [steps]; above 1: temporally extended exploration")

    def sizes(self, key: str) -> dict[str, int]:
        """Return the numbers that the size of a support grows with, by their keys; ``key`` is that of this configuration."""
        return {f"{key}.rollouts": self.rollouts, f"{key}.steps": self.steps}


def collect_rollouts(
    policy: Policy, actions: ActionSpace, family: Family, task: Task, config: RolloutsConfig, rng: torch.Generator
) -> Transitions:
    """Collect ``rollouts`` episodes per task, each in a fresh environment, truncated at ``steps`` -> ``[M, T, N, ...]``."""
    exploring = EpsilonGreedy(policy, actions, config.epsilon, config.repeat)
    most = min(config.rollouts, family.max_envs or config.rollouts)
    parts = []
    for _ in range(0, config.rollouts, most):
        env = family.make(task, most, rng)
        state, live = exploring.start(most, rng), family.max_envs is not None
        parts.append(collect(env, exploring, state, config.steps, one_episode=True, stop=live))
    return merged(parts)


def merged(parts: list[Transitions]) -> Transitions:
    """Return rollouts ``[M, T, N, ...]`` of the same tasks side by side, along N."""
    return parts[0] if len(parts) == 1 else Transitions(*(torch.cat(field, 2) for field in zip(*parts, strict=True)))


def played(rollouts: Transitions) -> Transitions:
    """Replace padding by experience, for a replay, which takes whole blocks.

    Args:
        rollouts: ``[M, T, N, ...]``, of which each task has a transition of weight 1 at least.

    Returns:
        As many transitions ``[M, T, N, ...]``: those of weight 1 of each task, repeated in turn where there were others.
    """
    live = rollouts.weight.flatten(1) > 0
    order, num = (~live).long().argsort(dim=1, stable=True), live.sum(1, keepdim=True)
    place = order.gather(1, torch.arange(live.shape[1], device=live.device) % num)
    rows = torch.arange(len(live), device=live.device)[:, None]
    return Transitions(*(x.flatten(1, 2)[rows, place].view_as(x) for x in rollouts))
