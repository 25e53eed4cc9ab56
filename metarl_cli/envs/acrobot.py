"""Acrobot with links and motors that vary (Sutton 1996), equal to Gymnasium's Acrobot-v1 step for step.

Two links hang from a fixed joint, and a motor turns the joint between them; swing the free end up above a line.

Action space: 0 turns with ``-torque``, 1 does not turn, 2 turns with ``+torque``; a negative ``torque`` is a reversed actuator.

Observation, ``[..., 6]``:

| index | meaning | unit | bounds |
|---|---|---|---|
| 0, 1 | cosine and sine of the first angle, 0 hanging down | - | ±1 |
| 2, 3 | cosine and sine of the second angle, relative to the first link | - | ±1 |
| 4 | first angular velocity | rad/s | ±4π |
| 5 | second angular velocity | rad/s | ±9π |

Reward: -1 for every step, 0 for one that reaches the line. Start: angles and velocities uniform in ±0.1. Ends: with
``-cos θ₁ - cos(θ₁ + θ₂) > 1`` (terminated), which is a height for links of 1 m and is kept for all, or at the horizon
(truncated).

Task parameters: link_length_1 [m], link_mass_1, link_mass_2 [kg], link_com_pos_1, link_com_pos_2 (from each link's upper
joint to its centre of mass) [m], link_moi (of either link) [kg m²], torque [N m]. Gravity is 9.8 m/s².

Source: R. S. Sutton, Generalization in reinforcement learning, NeurIPS 1996 (not on arXiv); the equations of motion are those
of Sutton and Barto, Reinforcement Learning: An Introduction, example 11.4 of the first edition.

Differs from the paper: one step of Runge-Kutta over 0.2 s, as in Gymnasium, instead of four Euler steps of 0.05 s.
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
from metarl_cli.spaces import Discrete, Spec

# every constant here is Acrobot-v1's
TAU = 0.2  # [s] between states
GRAVITY = 9.8  # [m/s²]
MAX_VELOCITY = (4 * math.pi, 9 * math.pi)  # [rad/s] of each joint
SOLVED = -100.0  # Gymnasium's ``reward_threshold``


class Config(NativeConfig):
    """Ranges of the seven physical parameters."""

    reversible: bool = Field(description="whether half of the tasks have a reversed actuator (torque below zero)")


class Acrobot(NativeFamily):
    """Swing two links up with a motor between them; see the module's docstring."""

    differentiates = False
    parameters = {
        "link_length_1": 1.0,
        "link_mass_1": 1.0,
        "link_mass_2": 1.0,
        "link_com_pos_1": 0.5,
        "link_com_pos_2": 0.5,
        "link_moi": 1.0,
        "torque": 1.0,
    }

    positive = frozenset(parameters) - {"torque"}

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        super().__init__(config, device, signed=["torque"] if config.reversible else [])
        # the velocities that a swing up passes through
        self.spec = Spec(obs_shape=(6,), actions=Discrete(3), horizon=config.horizon, obs_scale=(1.0, 1.0, 1.0, 1.0, 2.5, 5.0))

    @override
    def solved(self, task: Task) -> Tensor | None:
        if self.spec.horizon <= -SOLVED:  # every episode has a higher return
            return None
        return torch.full_like(task["torque"], SOLVED)

    @override
    def initial_state(self, shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
        return like.new_empty(*shape, 4).uniform_(-0.1, 0.1, generator=rng)

    @override
    def constants(self, task: Task) -> Task:
        m1, m2, moi = task["link_mass_1"], task["link_mass_2"], task["link_moi"]
        l1, lc1, lc2 = task["link_length_1"], task["link_com_pos_1"], task["link_com_pos_2"]
        inertia_2 = m2 * lc2**2 + moi
        return task | {
            "inertia": m1 * lc1**2 + m2 * l1**2 + moi + inertia_2,
            "inertia_2": inertia_2,
            "coupling": m2 * l1 * lc2,
            "weight_1": (m1 * lc1 + m2 * l1) * GRAVITY,
            "weight_2": m2 * lc2 * GRAVITY,
        }

    @override
    def dynamics(self, state: Tensor, action: Tensor, task: Task, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        torque = (action - 1) * task["torque"]
        inertia, inertia_2, coupling = task["inertia"], task["inertia_2"], task["coupling"]
        weight_1, weight_2 = task["weight_1"], task["weight_2"]

        def acceleration(angle: Tensor, velocity: Tensor) -> Tensor:
            (theta1, theta2), (omega1, omega2) = angle, velocity
            coupled_cos, coupled_sin = coupling * torch.cos(theta2), coupling * torch.sin(theta2)
            d1 = inertia + 2 * coupled_cos
            d2 = inertia_2 + coupled_cos
            phi2 = weight_2 * torch.sin(theta1 + theta2)
            phi1 = weight_1 * torch.sin(theta1) + phi2 - coupled_sin * omega2 * (omega2 + 2 * omega1)
            ratio = d2 / d1
            alpha2 = (torque + ratio * phi1 - coupled_sin * omega1.square() - phi2) / (inertia_2 - ratio * d2)
            return torch.stack([-(d2 * alpha2 + phi1) / d1, alpha2])

        # Runge-Kutta of the fourth order; angles and velocities, [2, M, N]
        angle, velocity = torch.split(state.movedim(-1, 0), 2)
        a1 = acceleration(angle, velocity)
        v2 = velocity + TAU / 2 * a1
        a2 = acceleration(angle + TAU / 2 * velocity, v2)
        v3 = velocity + TAU / 2 * a2
        a3 = acceleration(angle + TAU / 2 * v2, v3)
        v4 = velocity + TAU * a3
        a4 = acceleration(angle + TAU * v3, v4)
        angle = angle + TAU / 6 * (velocity + 2 * (v2 + v3) + v4)
        velocity = velocity + TAU / 6 * (a1 + 2 * (a2 + a3) + a4)

        theta1, theta2 = angle - 2 * math.pi * torch.round(angle / (2 * math.pi))
        omega1, omega2 = (v.clamp(-limit, limit) for v, limit in zip(velocity, MAX_VELOCITY, strict=True))
        terminated = -torch.cos(theta1) - torch.cos(theta1 + theta2) > 1
        return columns(theta1, theta2, omega1, omega2), terminated.to(state.dtype) - 1, terminated

    @override
    def observe(self, state: Tensor) -> Tensor:
        theta1, theta2, omega1, omega2 = state.unbind(-1)
        return columns(theta1.cos(), theta1.sin(), theta2.cos(), theta2.sin(), omega1, omega2)

    @override
    def rule(self, support: Transitions) -> Rule:
        """Read the sign of the motor from a linear model of the second joint, and turn it against the first one's velocity."""
        cos1, sin1, cos2, sin2, omega1, omega2 = support.obs.unbind(-1)
        torque = (support.action - 1).to(omega1.dtype)
        weights = [sin1, sin2, sin1 * cos2 + cos1 * sin2]  # what gravity acts on
        features = torch.stack([torque, *weights, omega1, omega2, torch.ones_like(torque)], -1)
        motor = sign(regress(features, support.next_obs[..., 5] - omega2, support.weight)[:, :1])
        return Rule(lambda obs: (1 - sign(obs[..., 4]) * motor).long())

    def render(self, obs: Tensor, task: Task) -> Image.Image:
        """Draw one environment, ``obs [6]``, 200 x 200 pixels; a reversed actuator's joint is drawn red."""
        cos1, sin1, cos2, sin2, _, _ = obs.tolist()
        size, scale = 200, 40  # [pixels], [pixels/m]
        image = Image.new("RGB", (size, size), "white")
        draw = ImageDraw.Draw(image)
        draw.line([(0, size / 2 - scale), (size, size / 2 - scale)], fill="black")
        length_1, length_2 = scale * float(task["link_length_1"]), scale  # Gymnasium's second link is 1 m
        base = (size / 2, size / 2)
        joint = (base[0] + length_1 * sin1, base[1] + length_1 * cos1)
        tip = (joint[0] + length_2 * (sin1 * cos2 + cos1 * sin2), joint[1] + length_2 * (cos1 * cos2 - sin1 * sin2))
        draw.line([base, joint, tip], fill="steelblue", width=6)
        for (x, y), colour in ((base, "black"), (joint, "firebrick" if float(task["torque"]) < 0 else "black")):
            draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=colour)
        return image


Family = Acrobot
