"""Shared parts of the native families: M x N environments as one tensor, automatic reset, time limit and saving.

A family gives its physics as pure functions: ``initial_state``, ``dynamics``, ``observe`` and ``render``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import nullcontext

import torch
from PIL.Image import Image
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from metarl_cli.compiling import compiled
from metarl_cli.envs.tasks import ParametricFamily, TasksConfig
from metarl_cli.errors import UserError
from metarl_cli.interfaces import Env, State, Step, Task, device_of, dtype_of, num_tasks
from metarl_cli.seeding import without_draws


class NativeConfig(TasksConfig):
    """Values every native family has."""

    horizon: int = Field(gt=0, description="time limit of an episode [steps]")


class NativeFamily(ParametricFamily):
    """A distribution of tasks over native physics."""

    stochastic = False  # whether ``dynamics`` draws random numbers
    _code: Callable[[Tensor, Tensor, Task], tuple[Tensor, Tensor, Tensor]] | None = None  # of ``dynamics``

    # -- the physics, given by the family

    @abstractmethod
    def initial_state(self, shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
        """Draw states ``[*shape, S]`` of the start of an episode, of ``like``'s dtype and device."""

    @abstractmethod
    def dynamics(self, state: Tensor, action: Tensor, task: Task, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Simulate one step.

        Args:
            state: the states ``[M, N, S]``.
            action: the actions ``[M, N]`` or ``[M, N, D]``.
            task: the parameters, ``[M, 1, ...]`` each.
            rng: for randomness within a step; a family that draws from it sets ``stochastic = True``.

        Returns:
            The next states ``[M, N, S]``, the rewards ``[M, N]`` and whether each episode terminated ``[M, N]``.
        """

    def observe(self, state: Tensor) -> Tensor:
        """Return the observations of ``state [..., S]``."""
        return state

    def render(self, obs: Tensor, task: Task) -> Image:
        """Draw one observation of one task (M=1).

        Raises:
            UserError: if the family cannot be drawn.
        """
        raise UserError(f"{type(self).__name__} cannot be drawn: it has no method render")

    # -- what the environments use

    def simulate(self, state: Tensor, action: Tensor, task: Task, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Simulate one step: ``dynamics``, or its compiled code."""
        return self.dynamics(state, action, task, rng) if self._code is None else self._code(state, action, task)

    @override
    def compile(self) -> None:
        unused = torch.Generator()
        if not self.stochastic:
            what = f"the dynamics of {type(self).__name__}"
            self._code = compiled(lambda state, action, task: self.dynamics(state, action, task, unused), what, True, True)

    @override
    def make(self, task: Task, num_envs: int, rng: torch.Generator, render: bool = False) -> NativeEnv:
        return NativeEnv(self, task, num_envs, rng)


class NativeEnv(Env):
    """M x N environments of a native family, stepped as one tensor; all of them can be drawn."""

    can_select_rows = True

    def __init__(self, family: NativeFamily, task: Task, num_envs: int, rng: torch.Generator):
        self.family, self.rng = family, rng
        self.task = {name: value[:, None] for name, value in task.items()}  # [M, 1, ...]
        self.shape = (num_tasks(task), num_envs)
        self.like = torch.empty(0, dtype=dtype_of(task), device=device_of(task))
        self.state = family.initial_state(self.shape, self.like, rng)  # [M, N, S]
        self.clock = torch.zeros(self.shape, dtype=torch.long, device=self.like.device)  # [steps] since the episode began
        self.obs = family.observe(self.state)

    @override
    def step(self, action: Tensor) -> Step:
        drew = f"the dynamics of {type(self.family).__name__} draw random numbers: set stochastic = True in the class"
        with nullcontext() if self.family.stochastic else without_draws(self.rng, drew):
            state, reward, terminated = self.family.simulate(self.state, action, self.task, self.rng)
        self.clock = self.clock + 1
        truncated = self.clock >= self.family.spec.horizon
        ended = terminated | truncated
        fresh = self.family.initial_state(self.shape, self.like, self.rng)
        self.state = torch.where(ended[..., None], fresh, state)
        self.clock = torch.where(ended, 0, self.clock)
        self.obs = self.family.observe(self.state)
        return Step(self.family.observe(state), reward, terminated, truncated, self.obs)

    @override
    def select_rows(self, rows: Tensor) -> None:
        self.task = {name: value[rows] for name, value in self.task.items()}
        self.state, self.clock, self.obs = self.state[rows], self.clock[rows], self.obs[rows]
        self.shape = (len(self.state), self.shape[1])

    @override
    def render(self) -> Image:
        return self.family.render(self.obs[0, 0], {name: value[0] for name, value in self.task.items()})

    @override
    def state_dict(self) -> State:
        return {"state": self.state, "clock": self.clock, "rng": self.rng.get_state()}

    @override
    def load_state_dict(self, state: State) -> None:
        if state["state"].shape != self.state.shape or state["clock"].shape != self.shape:
            raise ValueError("the saved environments have another shape")
        self.state = state["state"].to(self.like.device)
        self.clock = state["clock"].to(self.like.device)
        self.rng.set_state(state["rng"].cpu())
        self.obs = self.family.observe(self.state)
