"""MountainCar with hills, engines and goals that vary (Moore 1990, Sutton 1996), equal to Gymnasium's MountainCar-v0.

A car stands in a valley; its engine is too weak to drive straight up to the flag, so it must swing up to it.

Action space: 0 pushes with ``-force``, 1 does not push, 2 pushes with ``+force``; a negative ``force`` is a reversed actuator.

Observation, ``[..., 2]``; lengths and times of this world have no SI unit, a time is one step:

| index | meaning | unit | bounds |
|---|---|---|---|
| 0 | position along the track; the bottom of the valley is at -π/6 | length | -1.2 (a wall that stops the car) to 0.6 |
| 1 | velocity | length/step | ±0.07 |

Reward: -1 for every step, the last one included. Start: at rest, position uniform from -0.6 to -0.4. Ends: at or beyond
``goal_position`` (terminated) or at the horizon (truncated).

Task parameters: force and gravity [length/step²], goal_position [length], which is not observed.

Source: A. W. Moore, Efficient memory-based learning for robot control, PhD thesis, Cambridge 1990; R. S. Sutton,
Generalization in reinforcement learning, NeurIPS 1996 (neither is on arXiv).

Differs from the paper: the constants and the start are Gymnasium's; Gymnasium's ``goal_velocity`` is 0, its default.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageDraw
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from metarl_cli.envs.native import NativeConfig, NativeFamily, columns
from metarl_cli.envs.rules import Rule, regress, sign
from metarl_cli.interfaces import Task, Transitions
from metarl_cli.spaces import Discrete, Spec

# every constant here is MountainCar-v0's
MIN_POSITION, MAX_POSITION = -1.2, 0.6  # [length]
MAX_SPEED = 0.07  # [length/step]
SOLVED = -110.0  # Gymnasium's ``reward_threshold``


class Config(NativeConfig):
    """Ranges of the three parameters."""

    reversible: bool = Field(description="whether half of the tasks have a reversed actuator (force below zero)")


class MountainCar(NativeFamily):
    """Swing a weak car up to the flag; see the module's docstring."""

    differentiates = False
    parameters = {"force": 0.001, "gravity": 0.0025, "goal_position": 0.5}

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        super().__init__(config, device, signed=["force"] if config.reversible else [])
        # the car swings about a valley at -0.52, up to the speed limit
        self.spec = Spec(obs_shape=(2,), actions=Discrete(3), horizon=config.horizon, obs_scale=(0.6, MAX_SPEED))

    @override
    def check(self, name: str, value: float) -> None:
        super().check(name, value)
        if name == "goal_position" and value > MAX_POSITION:
            raise ValueError(f"goal_position must not be beyond the end of the track, {MAX_POSITION}, got {value:g}")

    @override
    def solved(self, task: Task) -> Tensor | None:
        if self.spec.horizon <= -SOLVED:  # every episode has a higher return
            return None
        return torch.full_like(task["force"], SOLVED)

    @override
    def initial_state(self, shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
        position = like.new_empty(shape).uniform_(-0.6, -0.4, generator=rng)
        return columns(position, torch.zeros_like(position))

    @override
    def dynamics(self, state: Tensor, action: Tensor, task: Task, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        position, velocity = state.unbind(-1)
        velocity = velocity + ((action - 1) * task["force"] - torch.cos(3 * position) * task["gravity"])
        velocity = velocity.clamp(-MAX_SPEED, MAX_SPEED)
        position = (position + velocity).clamp(MIN_POSITION, MAX_POSITION)
        velocity = torch.where((position == MIN_POSITION) & (velocity < 0), 0, velocity)
        terminated = (position >= task["goal_position"]) & (velocity >= 0)
        return columns(position, velocity), torch.full_like(position, -1), terminated

    @override
    def rule(self, support: Transitions) -> Rule:
        """Read the sign of the engine by least squares over the equation of motion, and push the way the car moves."""
        position, change = support.obs[..., 0], support.next_obs[..., 1] - support.obs[..., 1]
        free = support.weight * (support.next_obs[..., 0] > MIN_POSITION)  # the wall stops the car
        features = torch.stack([(support.action - 1).to(change.dtype), torch.cos(3 * position)], -1)
        engine = sign(regress(features, change, free)[:, :1])
        return Rule(lambda obs: (1 + sign(obs[..., 1]) * engine).long())

    def render(self, obs: Tensor, task: Task) -> Image.Image:
        """Draw one environment, ``obs [2]``, 300 x 200 pixels; a car with a reversed actuator is drawn red."""
        width, height = 300, 200

        def pixel(position: float) -> tuple[float, float]:
            altitude = 0.45 * math.sin(3 * position) + 0.55  # the hill whose slope the dynamics know
            return (position - MIN_POSITION) / (MAX_POSITION - MIN_POSITION) * width, height - 20 - 110 * altitude

        image = Image.new("RGB", (width, height), "white")
        draw = ImageDraw.Draw(image)
        track = np.linspace(MIN_POSITION, MAX_POSITION, 100).tolist()
        draw.line([pixel(p) for p in track], fill="black", width=2)
        x, y = pixel(float(task["goal_position"]))
        draw.line([(x, y), (x, y - 30)], fill="black")
        draw.polygon([(x, y - 30), (x - 14, y - 25), (x, y - 20)], fill="seagreen")
        x, y = pixel(float(obs[0]))
        colour = "firebrick" if float(task["force"]) < 0 else "royalblue"
        draw.ellipse([x - 8, y - 16, x + 8, y], fill=colour)
        return image


Family = MountainCar
