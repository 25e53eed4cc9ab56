"""Shared parts of the native families: M x N environments as one tensor, automatic reset, time limit and saving.

A family gives its physics as pure functions: ``initial_state``, ``dynamics``, ``observe`` and ``render``.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from PIL.Image import Image
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from metarl_cli.data import untracked
from metarl_cli.envs.tasks import ParametricFamily, TasksConfig, in_words
from metarl_cli.errors import UserError
from metarl_cli.interfaces import Code, Compiler, Env, Physics, State, Step, Task, device_of, dtype_of, num_tasks
from metarl_cli.seeding import CommonRandomNumbers, without_draws

FEW = 512  # environments, for which it is as fast to draw a start for each as for those alone whose episode ended


class NativeConfig(TasksConfig):
    """Values every native family has."""

    horizon: int = Field(gt=0, description="time limit of an episode [steps]")


class NativeFamily(ParametricFamily):
    """A distribution of tasks over native physics."""

    stochastic = False  # whether ``dynamics`` draws random numbers
    differentiates = True  # whether the functions below may take derivatives by autograd; small batches are faster where not
    code: Code | None = None  # of ``dynamics``

    # -- the physics, given by the family

    @abstractmethod
    def initial_state(self, shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
        """Draw states ``[*shape, S]`` of the start of an episode, of ``like``'s dtype and device."""

    def constants(self, task: Task) -> Task:
        """Add to the parameters what derives from them alone, so that an environment computes it once and not in each step.

        Args:
            task: the parameters, ``[M, 1, ...]`` each.

        Returns:
            The task that ``dynamics`` gets.
        """
        return task

    @abstractmethod
    def dynamics(self, state: Tensor, action: Tensor, task: Task, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Simulate one step.

        Args:
            state: the states ``[M, N, S]``.
            action: the actions ``[M, N]`` or ``[M, N, D]``.
            task: what :meth:`constants` made of the parameters, ``[M, 1, ...]`` each.
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

    @override
    def compile(self, compiler: Compiler) -> None:
        if not self.stochastic:
            self.code = compiler(self.pure, f"the dynamics of {type(self).__name__}")

    def pure(self, state: Tensor, action: Tensor, task: Task) -> tuple[Tensor, Tensor, Tensor]:
        """Simulate one step as :meth:`dynamics` does, where it draws nothing."""
        return self.dynamics(state, action, task, torch.Generator())

    @override
    def make(self, task: Task, num_envs: int, rng: torch.Generator, render: bool = False) -> NativeEnv:
        return NativeEnv(self, task, num_envs, rng)


class NativeEnv(Env):
    """M x N environments of a native family, stepped as one tensor; all of them can be drawn.

    Each entry of the state is a column ``[M, N]`` of its own in memory, so that physics are computed on contiguous tensors.
    """

    can_select_rows = True

    @property
    @override
    def name(self) -> str:
        return f"env.module={type(self.family).__module__.rpartition('.')[2]}"

    @override
    def details(self, row: int) -> str:
        return in_words({name: float(value[row, 0]) for name, value in self.task.items() if value.dim() == 2})

    def __init__(self, family: NativeFamily, task: Task, num_envs: int, rng: torch.Generator):
        self.family, self.rng = family, rng
        self.code = family.code
        self.run: Callable[..., Any] | None = (
            None  # the code for environments of this number and actions of this type and strides
        )
        self.acted: tuple[torch.dtype, tuple[int, ...]] | None = None
        self.starts: Tensor | None = None  # [M, N, S] where all episodes begin; none: where they are drawn
        self.like = torch.empty(0, dtype=dtype_of(task), device=device_of(task))
        self.on_gpu = self.like.is_cuda
        self.task = {name: value[:, None] for name, value in task.items()}  # [M, 1, ...]
        shape = num_tasks(task), num_envs
        self._continue(
            family.initial_state(shape, self.like, rng), torch.zeros(shape, dtype=torch.long, device=self.like.device)
        )

    def _continue(self, state: Tensor, clock: Tensor) -> None:
        """Go on from the states ``[M, N, S]`` after ``clock [M, N]`` steps of each episode, with the tasks ``self.task``."""
        self.shape, self.together = clock.shape, self.on_gpu or clock.numel() <= FEW
        self.constants = self.family.constants(self.task)
        self.state = _by_column(state)
        self.strides = self.state.stride()
        self.obs = self.family.observe(self.state)
        self.time = 0  # [steps] since then
        self.deadline = self.family.spec.horizon - clock  # the time at which each episode is cut off
        self.earliest = int(self.deadline.min())  # no deadline is before
        self.never = torch.zeros_like(clock, dtype=torch.bool)

    @override
    def step(self, action: Tensor) -> Step:
        with contextlib.nullcontext() if self.family.differentiates else untracked():
            if not CommonRandomNumbers.within:
                return self._step(action, self.starts)
            fresh = self._drawn() if self.starts is None else self.starts  # without asking what ended
            if self.family.stochastic:
                return self._step(action, fresh)
            drew = f"the dynamics of {type(self.family).__name__} draw random numbers: set stochastic = True in the class"
            with without_draws(self.rng, drew):
                return self._step(action, fresh)

    def _drawn(self) -> Tensor:
        """Draw a start of each environment, ``[M, N, S]``."""
        return self.family.initial_state(self.shape, self.like, self.rng)

    def _step(self, action: Tensor, fresh: Tensor | None) -> Step:
        """Act; episodes begin in the states ``fresh [M, N, S]``, or in states drawn where one ended."""
        state, reward, terminated = self._simulate(action)
        if state.stride() != self.strides:
            state = _by_column(state)
        self.time += 1
        ended, truncated = terminated, self.never
        due = self.time == self.earliest
        if due:
            truncated = self.deadline == self.time
            ended = torch.bitwise_or(terminated, truncated)
        next_obs = obs = self.family.observe(state)
        if self.on_gpu or (num := int(ended.count_nonzero())):  # a GPU is not waited for
            state = self._restarted(state, ended, fresh) if self.together else self._restarted_alone(state, ended, num, fresh)
            obs = self.family.observe(state)
        self.state, self.obs = state, obs
        if due:
            self.earliest = int(self.deadline.min())
        return Step(next_obs, reward, terminated, truncated, obs)

    def _simulate(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the family's dynamics, compiled or not, make of the states and actions."""
        if self.code is None:
            return self.family.dynamics(self.state, action, self.constants, self.rng)
        if self.run is None or self.acted != (action.dtype, action.stride()):
            self.run, self.acted = self.code.prepared(self.state, action, self.constants), (action.dtype, action.stride())
        after: tuple[Tensor, Tensor, Tensor] = self.run(self.state, action, self.constants)
        return after

    def _restarted(self, state: Tensor, ended: Tensor, fresh: Tensor | None) -> Tensor:
        """Return the states ``[M, N, S]`` to act in, and set the deadlines of the episodes that begin."""
        self.deadline.masked_fill_(ended, self.time + self.family.spec.horizon)
        fresh = self._drawn() if fresh is None else fresh
        return torch.where(ended.unsqueeze(-1), fresh, state, out=torch.empty_like(state))

    def _restarted_alone(self, state: Tensor, ended: Tensor, num: int, fresh: Tensor | None) -> Tensor:
        """Do what :meth:`_restarted` does to the ``num`` environments that ended, and to them alone."""
        index = ended.flatten().nonzero()[:, 0]
        self.deadline.view(-1).index_fill_(0, index, self.time + self.family.spec.horizon)
        if fresh is None:
            begun = self.family.initial_state((num,), self.like, self.rng).movedim(-1, 0)
        else:
            begun = fresh.movedim(-1, 0).flatten(1).index_select(1, index)
        entries = state.permute(2, 0, 1)
        return entries.flatten(1).index_copy(1, index, begun).view_as(entries).movedim(0, -1)

    @override
    def one_episode(self) -> None:
        self.starts, self.draws = self.state, self.family.stochastic

    @override
    def select_rows(self, rows: Tensor) -> None:
        self.code = None  # it would be compiled anew for each number of rows
        self.task = {name: value[rows] for name, value in self.task.items()}
        self.starts = None if self.starts is None else _by_column(self.starts[rows])
        self._continue(self.state[rows], self.clock[rows])

    @override
    def physics(self) -> Physics | None:
        if self.family.code is None or self.starts is None:
            return None
        return Physics(self.state, self.constants, self.starts, self.family.pure, self.family.observe, self._advance)

    def _advance(self, state: Tensor, steps: int) -> None:
        """Go on from the states ``[M, N, S]`` after so many steps, none beyond the time limit; only first episodes count."""
        self.state, self.obs, self.time = state, self.family.observe(state), self.time + steps

    @property
    def clock(self) -> Tensor:
        """The steps ``[M, N]`` since each episode began."""
        return self.family.spec.horizon - self.deadline + self.time

    @override
    def render(self) -> Image:
        return self.family.render(self.obs[0, 0], {name: value[0] for name, value in self.task.items()})

    @override
    def state_dict(self) -> State:
        return {"state": self.state.contiguous(), "clock": self.clock, "rng": self.rng.get_state()}

    @override
    def load_state_dict(self, state: State) -> None:
        if state["state"].shape != self.state.shape or state["clock"].shape != self.shape:
            raise ValueError("the saved environments have another shape")
        self._continue(state["state"].to(self.like.device), state["clock"].to(self.like.device))
        self.rng.set_state(state["rng"].cpu())


def columns(*entries: Tensor) -> Tensor:
    """Return the states ``[..., S]`` of S entries ``[...]``, laid out in memory as the environment does."""
    together = torch.stack(entries)
    return together.permute(*range(1, together.dim()), 0)  # several times as fast as movedim


def _by_column(state: Tensor) -> Tensor:
    """Return ``state [M, N, S]`` with each of its S columns contiguous in memory; itself, where they are."""
    rows, envs, _ = state.shape
    return state if state.stride() == (envs, 1, rows * envs) else state.permute(2, 0, 1).contiguous().permute(1, 2, 0)
