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
Quantities that derive from them are computed when environments are made, never stored.
"""

from __future__ import annotations

import math

import torch
from PIL import Image, ImageDraw
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from metarl_cli.envs.native import NativeConfig, NativeFamily, columns
from metarl_cli.envs.rules import Rule, sign
from metarl_cli.interfaces import Task, Transitions
from metarl_cli.spaces import Discrete, Spec, constant

TAU = 0.02  # [s] between states; every constant here is CartPole-v1's
X_LIMIT = 2.4  # [m]
THETA_LIMIT = 12 * 2 * math.pi / 360  # [rad]
GAINS = (0.1, 0.25, 3.0, 1.0)  # of the rule: the signs and the order of size are those of any controller that balances the pole
SOLVED = 475 / 500  # share of the steps that Gymnasium's ``reward_threshold`` asks for


class Config(NativeConfig):
    """Ranges of the five physical parameters."""

    reversible: bool = Field(description="whether half of the tasks have a reversed actuator (force_mag below zero)")


class CartPole(NativeFamily):
    """Balance a pole on a cart; see the module's docstring."""

    differentiates = False
    parameters = {"gravity": 9.8, "masscart": 1.0, "masspole": 0.1, "length": 0.5, "force_mag": 10.0}

    positive = frozenset({"masscart", "masspole", "length"})

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        super().__init__(config, device, signed=["force_mag"] if config.reversible else [])
        self.spec = Spec(obs_shape=(4,), actions=Discrete(2), horizon=config.horizon)

    @override
    def solved(self, task: Task) -> Tensor:
        return torch.full_like(task["gravity"], SOLVED * self.spec.horizon)

    @override
    def initial_state(self, shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
        return like.new_empty(*shape, 4).uniform_(-0.05, 0.05, generator=rng)

    @override
    def constants(self, task: Task) -> Task:
        mass = task["masspole"] + task["masscart"]
        lever = task["masspole"] * task["length"] / mass  # [m]
        push = task["force_mag"] / mass / lever  # [1/s²]
        steps = constant((TAU, 1.0, TAU, TAU), mass.dtype, mass.device).repeat(len(mass), 1, 1)  # [M, 1, 4]
        steps[..., 1] = TAU * lever
        return task | {
            "pushes": torch.cat((-push, push), 1),  # [M, 2] by action
            "pull": task["gravity"] / lever,  # [1/s²]
            "reach": task["length"] * 4 / 3 / lever,
            "steps": steps,
            "x_limit²": torch.full_like(mass, X_LIMIT**2),  # torch compares squares, and with tensors, in half the time
            "theta_limit²": torch.full_like(mass, THETA_LIMIT**2),
        }

    @override
    def dynamics(self, state: Tensor, action: Tensor, task: Task, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Simulate one step; accelerations of the cart are in units of the lever, which saves products."""
        _, x_dot, theta, theta_dot = state.unbind(-1)
        cos, sin = torch.cos(theta), torch.sin(theta)
        temp = torch.addcmul(task["pushes"].gather(1, action), sin, theta_dot * theta_dot)
        numerator = torch.addcmul(task["pull"] * sin, cos, temp, value=-1)
        theta_acc = numerator / torch.addcmul(task["reach"], cos, cos, value=-1)
        x_acc = torch.addcmul(temp, cos, theta_acc, value=-1)
        state = torch.addcmul(state, columns(x_dot, x_acc, theta_dot, theta_acc), task["steps"])
        x_square, _, theta_square, _ = (state * state).unbind(-1)
        terminated = torch.bitwise_or(x_square > task["x_limit²"], theta_square > task["theta_limit²"])
        return state, torch.ones_like(x_acc), terminated

    @override
    def rule(self, support: Transitions) -> Rule:
        """Read the sign of the actuator from how pushes change the velocity, and push the cart under the pole."""
        change = support.next_obs[..., 1] - support.obs[..., 1]
        actuator = sign((change * (2 * support.action - 1) * support.weight).sum((1, 2)))[:, None]
        gains = constant(GAINS, change.dtype, change.device)
        return Rule(lambda obs: ((obs * gains).sum(-1) * actuator > 0).long())

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
