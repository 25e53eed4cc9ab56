"""CartPole with physics that vary (Barto, Sutton and Anderson 1983), equal to Gymnasium's CartPole-v1 step for step.

A pole stands on a cart that is pushed left or right with a fixed force; keep it upright and the cart on the track.

Action space: 0 pushes with ``-force_mag``, 1 with ``+force_mag``; a negative ``force_mag`` is a reversed actuator.

Observation, ``[..., 4]``:

| index | meaning | unit | ends beyond |
|---|---|---|---|
| 0 | cart position x | m | ±2.4 |
| 1 | cart velocity | m/s | - |
| 2 | pole angle from upright | rad | ±12° |
| 3 | pole angular velocity | rad/s | - |

Reward: 1 for every step, the last one included. Start: every entry uniform in ±0.05. Ends: beyond the bounds above
(terminated) or at the horizon (truncated).

Task parameters: gravity [m/s²], masscart [kg], masspole [kg], length (half the pole's) [m], force_mag [N].
Quantities that derive from them are computed in the step, never stored.
"""

from __future__ import annotations

import math

import torch
from PIL import Image, ImageDraw
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from metarl_cli.envs.native import NativeConfig, NativeFamily
from metarl_cli.interfaces import Task
from metarl_cli.spaces import Discrete, Spec

TAU = 0.02  # [s] between states; every constant here is CartPole-v1's
X_LIMIT = 2.4  # [m]
THETA_LIMIT = 12 * 2 * math.pi / 360  # [rad]


class Config(NativeConfig):
    """Ranges of the five physical parameters."""

    reversible: bool = Field(description="whether half of the tasks have a reversed actuator (force_mag below zero)")


class CartPole(NativeFamily):
    """Balance a pole on a cart; see the module's docstring."""

    parameters = {"gravity": 9.8, "masscart": 1.0, "masspole": 0.1, "length": 0.5, "force_mag": 10.0}

    positive = frozenset({"masscart", "masspole", "length"})

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        super().__init__(config, device, signed=["force_mag"] if config.reversible else [])
        self.spec = Spec(obs_shape=(4,), actions=Discrete(2), horizon=config.horizon)

    @override
    def initial_state(self, shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
        return torch.rand(*shape, 4, generator=rng, dtype=like.dtype, device=like.device) * 0.1 - 0.05

    @override
    def dynamics(self, state: Tensor, action: Tensor, task: Task, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        x, x_dot, theta, theta_dot = state.unbind(-1)
        force = torch.where(action == 1, task["force_mag"], -task["force_mag"])
        total_mass = task["masspole"] + task["masscart"]
        polemass_length = task["masspole"] * task["length"]
        cos, sin = torch.cos(theta), torch.sin(theta)
        temp = (force + polemass_length * theta_dot.square() * sin) / total_mass
        theta_acc = (task["gravity"] * sin - cos * temp) / (
            task["length"] * (4.0 / 3.0 - task["masspole"] * cos.square() / total_mass)
        )
        x_acc = temp - polemass_length * theta_acc * cos / total_mass
        state = torch.stack([x + TAU * x_dot, x_dot + TAU * x_acc, theta + TAU * theta_dot, theta_dot + TAU * theta_acc], -1)
        terminated = (state[..., 0].abs() > X_LIMIT) | (state[..., 2].abs() > THETA_LIMIT)
        return state, torch.ones_like(x), terminated

    def render(self, obs: Tensor, task: Task) -> Image.Image:
        """Draw one environment, ``obs [4]``, 300 x 200 pixels; a reversed actuator is drawn red."""
        x, _, theta, _ = obs.tolist()
        width, height, ground = 300, 200, 150
        scale = width / (2 * X_LIMIT)
        image = Image.new("RGB", (width, height), "white")
        draw = ImageDraw.Draw(image)
        draw.line([(0, ground), (width, ground)], fill="black")
        centre = width / 2 + x * scale
        colour = "firebrick" if float(task["force_mag"]) < 0 else "black"
        draw.rectangle([centre - 20, ground - 12, centre + 20, ground + 12], fill=colour)
        reach = 2 * float(task["length"]) * scale
        tip = (centre + reach * math.sin(theta), ground - 12 - reach * math.cos(theta))
        draw.line([(centre, ground - 12), tip], fill="peru", width=6)
        return image


Family = CartPole
