"""Families of MuJoCo's bodies, and the environments that run their tasks."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import numpy as np
import torch
from PIL.Image import Image
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import override

from metarl_cli.envs.mujoco.bodies import BODIES
from metarl_cli.envs.mujoco.drawing import draw
from metarl_cli.envs.mujoco.goals import GOALS, PLACE
from metarl_cli.envs.mujoco.models import EVERY, Models, stepper, warn
from metarl_cli.envs.mujoco.physics import PHYSICS
from metarl_cli.envs.native import NativeConfig, NativeEnv, NativeFamily
from metarl_cli.envs.tasks import Choice, Distributions, LogUniform, Range
from metarl_cli.interfaces import Compiler, Task
from metarl_cli.spaces import Continuous, Spec

VARIED = ("ranges", "ood_ranges", "log_ranges", "choices")  # of the configuration, by task parameter
# Factors of which a number is drawn even where they do not vary, so that a seed's tasks stay the same; others where they vary.
DRAWN = ("gravity", "mass", "friction", "damping", "strength")


class Config(NativeConfig):
    """A body, its goal and what its tasks vary."""

    body: Literal["half_cheetah", "ant", "hopper", "walker2d", "humanoid", "reacher"] = Field(description="which body")
    goal: Literal["forward", "direction", "velocity", "position", "reach"] = Field(description="what is rewarded")
    goal_reward: float = Field(gt=0, description="times what the goal rewards")
    choices: dict[str, list[float]] = Field(description="the values of parameters that take only a few")
    log_ranges: dict[str, Range] = Field(description="[low, high] of factors whose logarithms are drawn uniformly")
    control_cost: float = Field(ge=0, description="times the sum of the squared torques, of a step")
    healthy_reward: float = Field(ge=0, description="of a step in which a body that can fall has not fallen")
    terminate: bool = Field(description="end an episode where it has fallen")

    @model_validator(mode="after")
    def _goals_can_be_reached(self) -> Config:
        if GOALS[self.goal].place and BODIES[self.body].plane:
            raise ValueError(
                f"goal={self.goal} is a place in the plane, in which a {self.body} cannot turn; others: direction, velocity"
            )
        for name, values in self.choices.items():
            if not values or name in self.ranges:
                raise ValueError(f"choices of {name} must not be empty, nor stand beside a range")
        for name, (low, high) in self.log_ranges.items():
            if not 0 < low <= high or name in {**self.ranges, **self.choices}:
                raise ValueError(
                    f"log range of {name} must be [low, high] with 0 < low <= high, and not stand beside a range or choices"
                )
        return self

    @override
    def distributions(self, signed: Collection[str] = ()) -> tuple[Distributions, Distributions]:
        inside, outside = super().distributions(signed)
        more: Distributions = {name: Choice(tuple(values)) for name, values in self.choices.items()}
        more |= {name: LogUniform(low, high) for name, (low, high) in self.log_ranges.items()}
        return inside | more, outside | more if outside else {}


class MujocoEnv(NativeEnv):
    """M x N copies of a body."""

    family: MujocoFamily

    @property
    @override
    def name(self) -> str:
        return f"env.body={self.family.config.body}"

    @override
    def _continue(self, state: Tensor, clock: Tensor) -> None:
        super()._continue(state, clock)
        self.models = self.family.models_of({name: value[:, 0] for name, value in self.task.items()})

    @override
    def _simulate(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.family.simulated(self.models, self.state, action, self.task)

    @override
    def render(self) -> Image:
        goal = [float(self.task[name][0, 0]) for name in PLACE] if self.family.goal.place else ()
        return draw(self.models[0], self.family.position(self.state[0, 0]), self.family.body.view, goal)


class MujocoFamily(NativeFamily):
    """A distribution of tasks over a body; see the package's docstring.

    Raises:
        ValueError: if MuJoCo is not installed, or the body has no such parameter.
    """

    differentiates = False

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        self.body, self.models = BODIES[config.body], Models(BODIES[config.body].file)
        self.config = config = config.model_copy(update={name: self._spelled_out(getattr(config, name)) for name in VARIED})
        self.goal = GOALS[config.goal]
        varied = [name for name in {**config.ranges, **config.choices, **config.log_ranges} if name not in self.goal.parameters]
        for name in varied:
            self.models.check(name)
        self.parameters = {**self.goal.parameters, **dict.fromkeys([*DRAWN, *varied], 1.0)}
        self.positive = frozenset(name for factor in PHYSICS for name in (factor, *self.models.each(f"{factor}_{EVERY}")))
        super().__init__(config, device)
        model, mujoco = self.models.nominal, self.models.mujoco
        self.nq, self.nv = model.nq, model.nv
        self.period = model.opt.timestep * self.body.frame_skip  # [s] of a control step
        data, kind = mujoco.MjData(model), mujoco.mjtState.mjSTATE_FULLPHYSICS
        nominal = torch.empty(mujoco.mj_stateSize(model, kind), dtype=torch.float64)
        mujoco.mj_getState(model, data, nominal.numpy(), kind)
        self.nominal, self.data = nominal.to(self.device), list[Any]()
        low, high = model.actuator_ctrlrange.T.tolist()
        scale = self.body.sizes(self.nq, self.nv)
        self.spec = Spec((len(scale),), Continuous(tuple(low), tuple(high)), config.horizon, scale)

    @override
    def nominal_value(self, name: str) -> float:
        """Return the nominal value of a parameter: of the goal's, or of a factor of physics, which any task may name."""
        if name not in self.parameters:
            self.models.check(name)
        return self.parameters.get(name, 1.0)

    def _spelled_out(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return ``values`` with ``mass_*`` as the entries that it stands for."""
        return {each: value for name, value in values.items() for each in self.models.each(name)}

    def position(self, state: Tensor) -> Tensor:
        """Return the positions ``[..., nq]`` of states, the first entry of which is the time."""
        return state[..., 1 : 1 + self.nq]

    def velocity(self, state: Tensor) -> Tensor:
        """Return the velocities ``[..., nv]`` of states."""
        return state[..., 1 + self.nq : 1 + self.nq + self.nv]

    @override
    def initial_state(self, shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
        """Draw states ``[*shape, S]`` in double precision."""
        state = self.nominal.expand(*shape, -1).clone()
        state[..., 1 : 1 + self.nq + self.nv] = self.body.start(self.position(self.nominal), self.nv, shape, rng)
        return state

    @override
    def observe(self, state: Tensor) -> Tensor:
        return self.body.observe(self.position(state), self.velocity(state)).to(torch.get_default_dtype())

    def models_of(self, task: Task) -> list[Any]:
        """Return the models of M tasks."""
        names = [name for name in task if name in self.positive]
        rows = zip(*(task[name].tolist() for name in names), strict=True)
        return [self.models.of(dict(zip(names, row, strict=True))) for row in rows]

    def advance(self, models: list[Any], state: Tensor, action: Tensor) -> Tensor:
        """Simulate a control step of all copies.

        Args:
            models: those of M tasks.
            state: the states ``[M, N, S]``.
            action: the torques ``[M, N, D]``, within their bounds and in double precision.

        Returns:
            The next states ``[M, N, S]``.
        """
        envs, steps, threads = state.shape[1], self.body.frame_skip, torch.get_num_threads()
        before = state.reshape(-1, len(self.nominal)).cpu().numpy()
        held = action.reshape(len(before), 1, -1).cpu().numpy().repeat(steps, axis=1)
        path = np.empty((len(before), steps, len(self.nominal)))
        copies = models if envs == 1 else [model for model in models for _ in range(envs)]
        stepper(threads).rollout(copies, self._data(threads), before, held, nstep=steps, state=path, skip_checks=True)
        warn()
        return torch.from_numpy(path[:, -1]).to(state.device).view(state.shape)

    def _data(self, threads: int) -> list[Any]:
        """Return what each thread computes in."""
        while len(self.data) < threads:
            self.data.append(self.models.mujoco.MjData(self.models.nominal))
        return self.data[:threads]

    def place(self, models: list[Any], state: Tensor) -> Tensor:
        """Return where the bodies of M tasks are in the states ``[M, N, S]``: see :meth:`Body.place`."""
        return self.body.place(models, self.position(state), self._data(1)[0])

    def reward_and_end(
        self, models: list[Any], before: Tensor, after: Tensor, action: Tensor, task: Task
    ) -> tuple[Tensor, Tensor]:
        """Return the rewards of a step ``[M, N]``, and whether each episode terminated ``[M, N]``; see :meth:`advance`."""
        config, motion = self.config, self.place(models, after)
        if not self.goal.place:
            motion = (motion - self.place(models, before)) / self.period
        reward = config.goal_reward * self.goal.reward(motion, task)
        terminated = torch.zeros(action.shape[:2], dtype=torch.bool, device=action.device)
        if self.body.height is not None:
            healthy = self.body.healthy(self.position(after), self.velocity(after))
            reward = reward + config.healthy_reward * healthy
            terminated = ~healthy if config.terminate else terminated
        reward = reward - config.control_cost * action.square().sum(-1)
        return reward.to(torch.get_default_dtype()), terminated

    def simulated(self, models: list[Any], state: Tensor, action: Tensor, task: Task) -> tuple[Tensor, Tensor, Tensor]:
        """Return the states ``[M, N, S]``, the rewards ``[M, N]`` and the ends ``[M, N]`` after a control step."""
        action = self.spec.actions.clip(action).double()
        after = self.advance(models, state, action)
        return after, *self.reward_and_end(models, state, after, action, task)

    @override
    def dynamics(self, state: Tensor, action: Tensor, task: Task, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        models = self.models_of({name: value[:, 0] for name, value in task.items()})
        return self.simulated(models, state, action, task)

    @override
    def compile(self, compiler: Compiler) -> None:
        """Nothing: MuJoCo steps the bodies."""

    @override
    def make(self, task: Task, num_envs: int, rng: torch.Generator, render: bool = False) -> MujocoEnv:
        return MujocoEnv(self, task, num_envs, rng)
