"""Environments with less information about their task: without rewards, or with the actions of other rollouts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from typing_extensions import override

from metarl_cli.interfaces import Env, Family, Policy, State, Step, Task, Transitions

Change = Callable[[Env], Env]


class ChangedEnv(Env):
    """Environments whose steps a subclass changes; ``changed`` says whether any was other than it would have been."""

    def __init__(self, env: Env):
        self.changed = False
        self.env, self.obs, self.can_select_rows = env, env.obs, env.can_select_rows

    @property
    @override
    def name(self) -> str:
        return self.env.name

    @override
    def details(self, row: int) -> str:
        return self.env.details(row)

    @override
    def step(self, action: Tensor) -> Step:
        step = self.env.step(action)
        self.obs = step.obs
        return step

    @override
    def one_episode(self) -> None:
        self.env.one_episode()
        self.draws = self.env.draws

    @override
    def select_rows(self, rows: Tensor) -> None:
        self.env.select_rows(rows)
        self.obs = self.env.obs

    @override
    def render(self) -> Image:
        return self.env.render()

    @override
    def state_dict(self) -> State:
        return self.env.state_dict()

    @override
    def load_state_dict(self, state: State) -> None:
        self.env.load_state_dict(state)
        self.obs = self.env.obs


class WithoutRewards(ChangedEnv):
    """Environments in which every reward is 0."""

    @override
    def step(self, action: Tensor) -> Step:
        step = super().step(action)
        self.changed |= bool(step.reward.any())
        return step._replace(reward=torch.zeros_like(step.reward))


class Shuffled(ChangedEnv):
    """Environments of a task, each of which executes the action that was chosen in the next one."""

    @override
    def step(self, action: Tensor) -> Step:
        executed = action.roll(-1, 1)
        self.changed |= not torch.equal(executed, action)
        return super().step(executed)


class ChangedFamily(Family):
    """A family whose environments are changed.

    Args:
        family: the family.
        change: of the environments.
    """

    def __init__(self, family: Family, change: Change):
        self.family, self.change = family, change
        self.spec, self.splits, self.finite, self.first_action = family.spec, family.splits, family.finite, family.first_action
        self.simulator_bytes, self.max_envs, self.held_out = family.simulator_bytes, family.max_envs, family.held_out
        self.in_time = family.in_time

    @override
    def sample_tasks(self, num: int, split: str, rng: np.random.Generator) -> Task:
        return self.family.sample_tasks(num, split, rng)

    @override
    def number(self, name: str, value: float | str) -> float:
        return self.family.number(name, value)

    @override
    def named_task(self, values: dict[str, float]) -> Task:
        return self.family.named_task(values)

    @override
    def make(self, task: Task, num_envs: int, rng: torch.Generator, render: bool = False) -> Env:
        return self.change(self.family.make(task, num_envs, rng, render))

    @override
    def horizons(self, task: Task) -> Tensor:
        return self.family.horizons(task)

    @override
    def knowledge(self, task: Task) -> Tensor | None:
        return self.family.knowledge(task)

    @override
    def rule(self, support: Transitions) -> Policy | None:
        return self.family.rule(support)

    @override
    def groups(self, task: Task) -> dict[str, Tensor]:
        return self.family.groups(task)
