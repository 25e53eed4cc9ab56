"""Pendulum with masses, lengths, gravity and motors that vary, equal to Gymnasium's Pendulum-v1 step for step.

A rod turns about one end, and a motor too weak to lift it at once swings it up and keeps it upright.

Action space: a vector of one number in ±2; the motor's torque [N m] is ``gain`` times it, so that a negative ``gain`` is a
reversed actuator.

Observation, ``[..., 3]``:

| index | meaning | unit | bounds |
|---|---|---|---|
| 0, 1 | cosine and sine of the angle from upright | - | ±1 |
| 2 | angular velocity | rad/s | ±8 |

Reward: ``-(θ² + 0.1 ω² + 0.001 torque²)``, of the state before the step, θ within ±π. Start: angle uniform in ±π, angular
velocity in ±1. Ends: at the horizon only (truncated).

Task parameters: g [m/s²], m [kg], l [m], gain.

Source: Gymnasium's Pendulum-v1, which has no paper; ``gain`` is added here: its 1 is Gymnasium's motor, and the reward counts
the torque that acts.
"""

from __future__ import annotations

import math

import torch
from PIL import Image, ImageDraw
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from metarl_cli.envs.native import NativeConfig, NativeFamily, columns
from metarl_cli.envs.rules import Rule, regress, sign
from metarl_cli.interfaces import Task, Transitions
from metarl_cli.spaces import Continuous, Spec, constant

# every constant here is Pendulum-v1's
TAU = 0.05  # [s] between states
MAX_SPEED = 8.0  # [rad/s]
MAX_TORQUE = 2.0  # [N m]
# of the rule, chosen on validation tasks
NEAR_TOP = 0.9  # cosine of the angle, above which the rule balances the rod
STIFFNESS, DAMPING = 20.0, 5.0  # [1/s²], [1/s]
LEAST_PUSH = 0.1  # [1/s²] per action: a rule that knows less of the motor divides by this


class Config(NativeConfig):
    """Ranges of the four physical parameters."""

    reversible: bool = Field(description="whether half of the tasks have a reversed actuator (gain below zero)")


class Pendulum(NativeFamily):
    """Swing a rod up and keep it there; see the module's docstring."""

    differentiates = False
    parameters = {"g": 10.0, "m": 1.0, "l": 1.0, "gain": 1.0}

    positive = frozenset({"m", "l"})

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        super().__init__(config, device, signed=["gain"] if config.reversible else [])
        self.spec = Spec(
            obs_shape=(3,),
            actions=Continuous((-MAX_TORQUE,), (MAX_TORQUE,)),
            horizon=config.horizon,
            obs_scale=(1.0, 1.0, MAX_SPEED),
        )

    @override
    def initial_state(self, shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
        centred = like.new_empty(*shape, 2).uniform_(-1, 1, generator=rng)
        return centred * constant((math.pi, 1.0), like.dtype, like.device)

    @override
    def constants(self, task: Task) -> Task:
        lift, power = 3 * task["g"] / (2 * task["l"]), 3 / (task["m"] * task["l"].square())  # [1/s²], [1/(kg m²)]
        return task | {"lift": lift, "power": power}

    @override
    def dynamics(self, state: Tensor, action: Tensor, task: Task, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        theta, omega = state.unbind(-1)
        torque = task["gain"] * action[..., 0].clamp(-MAX_TORQUE, MAX_TORQUE)
        from_upright = torch.remainder(theta + math.pi, 2 * math.pi) - math.pi
        cost = from_upright.square() + 0.1 * omega.square() + 0.001 * torque.square()
        omega = omega + (task["lift"] * torch.sin(theta) + task["power"] * torque) * TAU
        omega = omega.clamp(-MAX_SPEED, MAX_SPEED)
        return columns(theta + omega * TAU, omega), -cost, torch.zeros_like(omega, dtype=torch.bool)

    @override
    def observe(self, state: Tensor) -> Tensor:
        theta, omega = state.unbind(-1)
        return columns(torch.cos(theta), torch.sin(theta), omega)

    @override
    def rule(self, support: Transitions) -> Rule:
        """Read the equation of motion by least squares; pump energy into the rod, and balance it near the top.

        ``ω' = lift sin θ + push action`` is linear in both unknowns. The energy ``ω²/2 + lift cos θ`` is ``lift`` at rest at
        the top, and grows by ``ω push action`` (Åström and Furuta 2000, doi:10.1016/S0005-1098(99)00140-5).
        """
        features = torch.stack([support.obs[..., 1], support.action[..., 0]], -1)
        change = (support.next_obs[..., 2] - support.obs[..., 2]) / TAU
        free = support.weight * (support.next_obs[..., 2].abs() < MAX_SPEED)  # where the speed limit did not act
        lift, push = regress(features, change, free)[..., None].unbind(1)
        push = sign(push) * push.abs().clamp(min=LEAST_PUSH)

        def choose(obs: Tensor) -> Tensor:
            cos, sin, omega = obs.unbind(-1)
            missing = lift - omega.square() / 2 - lift * cos
            pump = MAX_TORQUE * sign(omega * push * missing)
            balance = -(lift * sin + STIFFNESS * torch.atan2(sin, cos) + DAMPING * omega) / push
            return torch.where(cos > NEAR_TOP, balance, pump).clamp(-MAX_TORQUE, MAX_TORQUE)[..., None]

        return Rule(choose)

    def render(self, obs: Tensor, task: Task) -> Image.Image:
        """Draw one environment, ``obs [3]``, 200 x 200 pixels; a reversed actuator's joint is drawn red."""
        cos, sin, _ = obs.tolist()
        size, scale = 200, 55  # [pixels], [pixels/m]
        image = Image.new("RGB", (size, size), "white")
        draw = ImageDraw.Draw(image)
        reach, centre = scale * float(task["l"]), size / 2
        draw.line([(centre, centre), (centre - reach * sin, centre - reach * cos)], fill="indianred", width=10)
        colour = "firebrick" if float(task["gain"]) < 0 else "black"
        draw.ellipse([centre - 5, centre - 5, centre + 5, centre + 5], fill=colour)
        return image


Family = Pendulum
