"""What every native family shares: M x N environments as one tensor, automatic reset, time limit, saving.

A family gives its physics as pure functions: ``initial_state``, ``dynamics``, ``observe`` and ``render``.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from PIL.Image import Image
from pydantic import Field
from torch import Tensor

from metarl_cli.envs.tasks import Tasks, TasksConfig
from metarl_cli.interfaces import Env, State, Step, Task
from metarl_cli.seeding import without_draws
from metarl_cli.spaces import Spec


class NativeConfig(TasksConfig):
    """Values every native family has."""

    horizon: int = Field(gt=0, description="time limit of an episode [steps]")


class NativeFamily(Tasks):
    """A distribution of tasks over native physics."""

    spec: Spec
    stochastic = False  # whether ``dynamics`` draws random numbers

    # -- the physics, given by the family

    def initial_state(self, shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
        """States ``[*shape, S]`` at the start of an episode, of ``like``'s dtype and device."""
        raise NotImplementedError

    def dynamics(self, state: Tensor, action: Tensor, task: Task, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """One step: ``state [M, N, S]``, ``action [M, N]`` or ``[M, N, D]``, parameters ``[M, 1, ...]``; ``rng`` for chance.

        A family that draws from it says ``stochastic = True``. Returns the next state ``[M, N, S]``, the reward ``[M, N]`` and
        whether the episode terminated ``[M, N]``.
        """
        raise NotImplementedError

    def observe(self, state: Tensor) -> Tensor:
        """What the agent sees of ``state [..., S]``."""
        return state

    def render(self, obs: Tensor, task: Task) -> Image:
        """Draw what one environment of one task (M=1) shows."""
        raise NotImplementedError

    def optimum(self, task: Task) -> Tensor | None:
        """The expected return ``[M]`` of an episode under the best policy that knows the task; None where unknown."""
        return None

    def make(self, task: Task, num_envs: int, rng: torch.Generator, render: bool = False) -> NativeEnv:
        """Start ``num_envs`` environments of each task; any can be drawn."""
        return NativeEnv(self, task, num_envs, rng)


class NativeEnv(Env):
    """M x N environments of a native family, stepped as one tensor."""

    def __init__(self, family: NativeFamily, task: Task, num_envs: int, rng: torch.Generator):
        first = next(iter(task.values()))
        self.family, self.rng = family, rng
        self.task = {name: value[:, None] for name, value in task.items()}  # [M, 1, ...]
        self.shape = (len(first), num_envs)
        self.like = first
        self.state = family.initial_state(self.shape, first, rng)  # [M, N, S]
        self.clock = torch.zeros(self.shape, dtype=torch.long, device=first.device)  # [steps] since the episode began
        self.obs = family.observe(self.state)

    def step(self, action: Tensor) -> Step:
        """Act in every environment; ``action [M, N]``, or ``[M, N, D]``. Episodes that end start anew within the same step."""
        drew = f"the dynamics of {type(self.family).__name__} draw random numbers: the class must say stochastic = True"
        with nullcontext() if self.family.stochastic else without_draws(self.rng, drew):
            state, reward, terminated = self.family.dynamics(self.state, action, self.task, self.rng)
        self.clock = self.clock + 1
        truncated = self.clock >= self.family.spec.horizon
        ended = terminated | truncated
        fresh = self.family.initial_state(self.shape, self.like, self.rng)
        self.state = torch.where(ended[..., None], fresh, state)
        self.clock = torch.where(ended, 0, self.clock)
        self.obs = self.family.observe(self.state)
        return Step(self.family.observe(state), reward, terminated, truncated, self.obs)

    can_select_rows = True

    def select_rows(self, rows: Tensor) -> None:
        """Go on with these tasks alone: a mask ``[M]``."""
        self.task = {name: value[rows] for name, value in self.task.items()}
        self.state, self.clock, self.obs = self.state[rows], self.clock[rows], self.obs[rows]
        self.like = self.like[rows]
        self.shape = (len(self.state), self.shape[1])

    def render(self) -> Image:
        """Draw the first environment of the first task."""
        return self.family.render(self.obs[0, 0], {name: value[0] for name, value in self.task.items()})

    def state_dict(self) -> State:
        return {"state": self.state, "clock": self.clock, "rng": self.rng.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["state"].shape != self.state.shape or state["clock"].shape != self.shape:
            raise ValueError("the saved environments have another shape")
        self.state = state["state"].to(self.like.device)
        self.clock = state["clock"].to(self.like.device)
        self.rng.set_state(state["rng"].cpu())
        self.obs = self.family.observe(self.state)
