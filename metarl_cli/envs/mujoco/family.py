"""Families of MuJoCo's bodies, and the environments that run their tasks."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import torch
from PIL.Image import Image
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import override

from metarl_cli.envs.mujoco.bodies import BODIES
from metarl_cli.envs.mujoco.drawing import draw
from metarl_cli.envs.mujoco.models import PHYSICS, Models, stepper, warn
from metarl_cli.envs.native import NativeConfig, NativeEnv, NativeFamily
from metarl_cli.envs.tasks import Choice, Distributions
from metarl_cli.interfaces import Compiler, Task
from metarl_cli.spaces import Continuous, Spec

FAST = 5.0  # the usual size of a velocity [m/s, rad/s], by which networks divide
GOALS = {  # name -> its task parameters, with their nominal values
    "forward": {},
    "direction": {"angle": 0.0},
    "velocity": {"velocity": 1.0},
    "position": {"goal_x": 1.0, "goal_y": 0.0},
}


class Config(NativeConfig):
    """A body, its goal and what its tasks vary."""

    body: Literal["half_cheetah", "ant", "hopper", "walker2d"] = Field(description="which body")
    goal: Literal["forward", "direction", "velocity", "position"] = Field(description="what is rewarded")
    choices: dict[str, list[float]] = Field(description="the values of parameters that take only a few")
    control_cost: float = Field(ge=0, description="times the sum of the squared torques, of a step")
    healthy_reward: float = Field(ge=0, description="of a step in which a body that can fall has not fallen")
    terminate: bool = Field(description="end an episode where it has fallen")

    @model_validator(mode="after")
    def _goals_can_be_reached(self) -> Config:
        if self.goal == "position" and BODIES[self.body].plane:
            raise ValueError(
                f"goal=position is a place in the plane, in which a {self.body} cannot turn; others: direction, velocity"
            )
        for name, values in self.choices.items():
            if not values or name in self.ranges:
                raise ValueError(f"choices of {name} must not be empty, nor stand beside a range")
        return self

    @override
    def distributions(self, signed: Collection[str] = ()) -> tuple[Distributions, Distributions]:
        inside, outside = super().distributions(signed)
        choices = {name: Choice(tuple(values)) for name, values in self.choices.items()}
        return inside | choices, outside | choices if outside else {}


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
        self.models = self.family.models_of({name: value[:, 0] for name, value in self.task.items()}, self.shape[1])

    @override
    def _simulate(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        after = self.family.advance(self.models, self.state, action)
        return after, *self.family.judge(self.state, after, action, self.task)

    @override
    def render(self) -> Image:
        return draw(self.models[0] if isinstance(self.models, list) else self.models, self.family.position(self.state[0, 0]))


class MujocoFamily(NativeFamily):
    """A distribution of tasks over a body; see the package's docstring.

    Raises:
        ValueError: if MuJoCo is not installed, or the body has no such parameter.
    """

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        self.config, self.body, self.models = config, BODIES[config.body], Models(BODIES[config.body].file)
        varied = [name for name in {**config.ranges, **config.choices} if name not in GOALS[config.goal]]
        for name in varied:
            self.models.check(name)
        self.physics = dict.fromkeys([*PHYSICS, *varied], 1.0)
        self.parameters = {**GOALS[config.goal], **self.physics}
        self.positive = frozenset(self.physics)
        super().__init__(config, device)
        model, mujoco = self.models.nominal, self.models.mujoco
        self.nq, self.nv = model.nq, model.nv
        self.period = model.opt.timestep * self.body.frame_skip  # [s] of a control step
        data, kind = mujoco.MjData(model), mujoco.mjtState.mjSTATE_FULLPHYSICS
        nominal = torch.empty(mujoco.mj_stateSize(model, kind), dtype=torch.float64)
        mujoco.mj_getState(model, data, nominal.numpy(), kind)
        self.nominal, self.data = nominal.to(self.device), list[Any]()
        low, high = model.actuator_ctrlrange.T.tolist()
        scale = (1.0,) * (self.nq - self.body.hidden) + (FAST,) * self.nv
        self.spec = Spec((len(scale),), Continuous(tuple(low), tuple(high)), config.horizon, scale)

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

    def models_of(self, task: Task, envs: int) -> Any:
        """Return the model of each of M x N copies, or the one that all share.

        Args:
            task: M tasks.
            envs: N.
        """
        rows = zip(*(task[name].tolist() for name in self.physics), strict=True)
        models = [self.models.of(dict(zip(self.physics, row, strict=True))) for row in rows]
        if all(model is models[0] for model in models):
            return models[0]
        return [model for model in models for _ in range(envs)]

    def advance(self, models: Any, state: Tensor, action: Tensor) -> Tensor:
        """Simulate a control step of all copies.

        Args:
            models: what :meth:`models_of` returned.
            state: the states ``[M, N, S]``.
            action: the torques ``[M, N, D]``.

        Returns:
            The next states ``[M, N, S]``.
        """
        before = state.reshape(-1, len(self.nominal)).cpu().numpy()
        torques = self.spec.actions.clip(action).double().reshape(len(before), 1, -1).cpu().numpy()
        path, _ = stepper(torch.get_num_threads()).rollout(
            models, self._data(torch.get_num_threads()), before, torques, nstep=self.body.frame_skip
        )
        warn()
        return torch.from_numpy(path[:, -1]).to(state.device).view(state.shape)

    def _data(self, threads: int) -> list[Any]:
        """Return what each thread computes in."""
        while len(self.data) < threads:
            self.data.append(self.models.mujoco.MjData(self.models.nominal))
        return self.data[:threads]

    def place(self, state: Tensor) -> Tensor:
        """Return where the body is, ``[..., 2]`` [m]."""
        x, y = state[..., 1], state[..., 2]
        return torch.stack([x, torch.zeros_like(x) if self.body.plane else y], -1)

    def judge(self, before: Tensor, after: Tensor, action: Tensor, task: Task) -> tuple[Tensor, Tensor]:
        """Return the rewards of a step ``[M, N]``, and whether each episode terminated ``[M, N]``."""
        config, velocity = self.config, (self.place(after) - self.place(before)) / self.period
        if config.goal == "position":
            goal = torch.stack([task["goal_x"], task["goal_y"]], -1)
            reward = -(self.place(after) - goal).abs().sum(-1)
        elif config.goal == "velocity":
            reward = -(velocity[..., 0] - task["velocity"]).abs()
        elif config.goal == "direction":
            reward = task["angle"].cos() * velocity[..., 0] + task["angle"].sin() * velocity[..., 1]
        else:
            reward = velocity[..., 0]
        healthy = self.body.healthy(self.position(after), self.velocity(after))
        if self.body.height is not None:
            reward = reward + config.healthy_reward * healthy
        reward = reward - config.control_cost * self.spec.actions.clip(action).double().square().sum(-1)
        return reward.to(torch.get_default_dtype()), ~healthy & config.terminate

    @override
    def dynamics(self, state: Tensor, action: Tensor, task: Task, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        models = self.models_of({name: value[:, 0] for name, value in task.items()}, state.shape[1])
        after = self.advance(models, state, action)
        return after, *self.judge(state, after, action, task)

    @override
    def compile(self, compiler: Compiler) -> None:
        """Nothing: MuJoCo steps the bodies."""

    @override
    def make(self, task: Task, num_envs: int, rng: torch.Generator, render: bool = False) -> MujocoEnv:
        return MujocoEnv(self, task, num_envs, rng)
