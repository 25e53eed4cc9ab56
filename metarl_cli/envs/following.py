"""Following a car on a motorway at the time gap that a driver wants and does not tell. A stylised, linear model.

A car follows a leader whose speed wanders about 20 m/s. Its driver wants a time headway that only the comfort shows: the
wanted gap is 2 m plus the headway times the own speed. The motor follows a commanded acceleration with a lag.

Action space: a vector of one number, the commanded acceleration within ±4 m/s².

Observation, ``[..., 4]``, from the middle of what is wanted:

| index | meaning | unit | bounds |
|---|---|---|---|
| 0 | the gap to the leader, less 35 m | m | - |
| 1 | the own speed, less 20 m/s | m/s | ±20 |
| 2 | the leader's speed, less 20 m/s | m/s | - |
| 3 | the own acceleration | m/s² | ±4 |

Reward, of the state after the step: minus ``min((gap error / 10 m)², 4) + 0.02 (speed difference)² + 0.2 (command)²``, in SI
units. Start: a gap of 35 ± 0.5 m, both speeds 20 ± 0.5 m/s (standard deviations), no acceleration. Steps of 0.2 s. Ends: at the
horizon (truncated); cars do not collide, a gap that is too small only costs.

Task parameters: headway [s], above 0. Best possible: the finite-horizon Riccati equation, exact for the linear model with a
quadratic cost; its commands and errors pass the bounds in the first steps of extreme headways alone. Played with the bounds,
and with the first step's gains throughout, it is worth -15.18 on 100 validation tasks where the equation says -15.12.

Source: stylised; linear-quadratic control of car following as in adaptive cruise control (Rajamani 2012, Vehicle Dynamics and
Control, chapter 6, doi:10.1007/978-1-4614-1433-9, constant time gap and a first-order lag). The standstill gap of 2 m and the
usual headway of 1.5 s are those of the Intelligent Driver Model (Treiber, Hennecke and Helbing 2000,
arXiv:cond-mat/0002177). Lanes, slopes, sensors' noise and other cars are not here.
"""

from __future__ import annotations

import math

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from typing_extensions import override

from metarl_cli.envs.native import NativeConfig, NativeFamily, columns
from metarl_cli.envs.rules import Rule, regress
from metarl_cli.interfaces import Task, Transitions
from metarl_cli.spaces import Continuous, Spec, constant

TAU = 0.2  # [s] between states
STANDSTILL = 2.0  # [m] of gap
CRUISE, GAP = 20.0, 35.0  # [m/s], [m] where episodes begin; a headway of 1.65 s
FASTEST = 40.0  # [m/s]
STRONGEST = 4.0  # [m/s²] of acceleration and braking
LAG = 0.4  # [s] of the motor
CALM, GUST = 10.0, 0.2  # [s] in which the leader returns to its usual speed, [m/s] that it changes by in a step
KEPT, KEPT_SPEED = math.exp(-TAU / LAG), math.exp(-TAU / CALM)  # of acceleration and of the leader's speed in a step
SPREAD = (0.5, 0.5, 0.5, 0.0)  # standard deviations of the first state
PER_ERROR, PER_DIFFERENCE, PER_COMMAND = 0.01, 0.02, 0.2  # [1/m²], [s²/m²], [s⁴/m²] of the cost
MOST_ERROR = 4.0  # of the cost, from 20 m on
USUAL = 1.5  # [s] of headway
SHORTEST, LONGEST = 0.1, 10.0  # [s] of headway, as the rule reads it


class Config(NativeConfig):
    """Horizon and the range of the headway."""


class Following(NativeFamily):
    """Keep the gap that is wanted; see the module's docstring."""

    differentiates = False
    parameters = {"headway": USUAL}
    positive = frozenset({"headway"})
    stochastic = True

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        super().__init__(config, device)
        self.spec = Spec(
            obs_shape=(4,),
            actions=Continuous((-STRONGEST,), (STRONGEST,)),
            horizon=config.horizon,
            obs_scale=(10.0, 5.0, 2.0, 2.0),
        )

    @override
    def initial_state(self, shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
        spread = torch.randn((*shape, 4), generator=rng, dtype=like.dtype, device=like.device)
        return spread * constant(SPREAD, like.dtype, like.device)

    @override
    def dynamics(self, state: Tensor, action: Tensor, task: Task, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        gap, speed, leader, acceleration = state.unbind(-1)
        command = action[..., 0].clamp(-STRONGEST, STRONGEST)
        gust = torch.randn(gap.shape, generator=rng, dtype=gap.dtype, device=gap.device)
        gap = gap + TAU * (leader - speed)
        speed = (speed + TAU * acceleration).clamp(-CRUISE, FASTEST - CRUISE)
        leader = KEPT_SPEED * leader + GUST * gust
        acceleration = KEPT * acceleration + (1 - KEPT) * command
        reward = -discomfort(gap, speed, leader, task["headway"]) - PER_COMMAND * command.square()
        return columns(gap, speed, leader, acceleration), reward, torch.zeros_like(reward, dtype=torch.bool)

    @override
    def optimum(self, task: Task) -> Tensor:
        headway = task["headway"].double()
        _, value, noise = riccati(headway, self.spec.horizon)
        mean = torch.zeros(len(headway), 4, dtype=torch.float64, device=headway.device)
        mean[:, 0] = _off(headway)
        spread = torch.diag(mean.new_tensor(SPREAD).square())
        cost = (mean[:, None] @ value @ mean[..., None]).flatten() + _trace(value @ spread) + noise
        return -cost.to(task["headway"].dtype)

    @override
    def rule(self, support: Transitions) -> Rule:
        """Read the headway from the comfort by least squares, and command as far from the end of the Riccati equation.

        ``(gap - 2 m - T v)²`` is linear in T and in T²; where it is capped, it tells nothing. Without a support, the driver
        wants the usual headway.
        """
        gap, speed, leader, _ = support.next_obs.double().unbind(-1)
        command = support.action[..., 0].double()
        known = PER_DIFFERENCE * (leader - speed).square() + PER_COMMAND * command.square()
        error = (-support.reward.double() - known).clamp(min=0) / PER_ERROR  # its square [m²]
        gap, speed = gap + GAP - STANDSTILL, speed + CRUISE
        seen = support.weight * (error < 0.99 * MOST_ERROR / PER_ERROR)
        features = torch.stack([-2 * gap * speed, speed.square()], -1)
        headway = regress(features, error - gap.square(), seen)[:, 0]
        headway = torch.where(seen.sum((1, 2)) > 0, headway.clamp(SHORTEST, LONGEST), USUAL)
        return follow(headway, self.spec.horizon)

    def render(self, obs: Tensor, task: Task) -> Image.Image:
        """Draw the road from above, 300 x 60 pixels: the car blue, the leader grey, and the wanted place of its rear green."""
        width, scale = 300, 3  # [pixels], [pixels/m]
        gap, speed = float(obs[0]) + GAP, float(obs[1]) + CRUISE
        image = Image.new("RGB", (width, 60), "white")
        draw = ImageDraw.Draw(image)
        front = 40  # [pixels] of the own car
        wanted = front + scale * (STANDSTILL + float(task["headway"]) * speed)
        draw.line([(wanted, 10), (wanted, 50)], fill="seagreen", width=3)
        for rear, colour in ((front - 5 * scale, "royalblue"), (front + scale * gap, "gray")):
            draw.rectangle([rear, 23, rear + 5 * scale, 37], fill=colour)
        return image


def discomfort(gap: Tensor, speed: Tensor, leader: Tensor, headway: Tensor) -> Tensor:
    """Return the cost ``[...]`` of a state of the columns of an observation, of a driver who wants ``headway`` [s]."""
    error = gap + GAP - STANDSTILL - headway * (speed + CRUISE)
    return (PER_ERROR * error.square()).clamp(max=MOST_ERROR) + PER_DIFFERENCE * (leader - speed).square()


def riccati(headway: Tensor, horizon: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the optimal linear control of H steps, backwards from the last (Kalman 1960), in the precision of ``headway``.

    With x the observation about the wanted gap, ``x' = A x + B u + w`` and the cost ``x' Q x' + 0.2 u²``:
    ``S = Q + P``, ``K = (0.2 + Bᵀ S B)⁻¹ Bᵀ S A``, ``P = Aᵀ S A - Kᵀ Bᵀ S A``, from ``P = 0``; noise adds ``tr(S W)``.

    Args:
        headway: ``[M]``.
        horizon: H.

    Returns:
        The gains ``[M, 4]`` of the first step, ``u = -K x``; P ``[M, 4, 4]`` of the first state, and the cost ``[M]`` of noise.
    """
    move = headway.new_tensor([[1, -TAU, TAU, 0], [0, 1, 0, TAU], [0, 0, KEPT_SPEED, 0], [0, 0, 0, KEPT]])
    push = headway.new_tensor([[0], [0], [0], [1 - KEPT]])
    wind = torch.diag(headway.new_tensor([0, 0, GUST**2, 0]))
    zero, one = torch.zeros_like(headway), torch.ones_like(headway)
    error, difference = torch.stack([one, -headway, zero, zero], -1), headway.new_tensor([0, -1, 1, 0])
    weight = PER_ERROR * error[:, :, None] * error[:, None] + PER_DIFFERENCE * torch.outer(difference, difference)
    value, noise = torch.zeros_like(weight), zero
    for _ in range(horizon):
        ahead = weight + value
        noise = noise + _trace(ahead @ wind)
        pushed = push.mT @ ahead  # [M, 1, 4]
        gain = pushed @ move / (PER_COMMAND + pushed @ push)
        value = move.mT @ ahead @ move - gain.mT @ (pushed @ move)
    return gain[:, 0], value, noise


def follow(headway: Tensor, horizon: int) -> Rule:
    """Return the rule of the linear control that is optimal with H steps left, for ``headway [M]``."""
    gain, _, _ = riccati(headway.double(), horizon)
    off = _off(headway.double())[:, None]  # the gap's place in x is its distance from what is wanted

    def choose(obs: Tensor) -> Tensor:
        command = -(obs.double() * gain[:, None]).sum(-1, keepdim=True) - (off * gain[:, :1])[..., None]
        return command.clamp(-STRONGEST, STRONGEST).to(obs.dtype)

    return Rule(choose)


def _off(headway: Tensor) -> Tensor:
    """Return by how much the gap of 35 m at 20 m/s is too large [m]."""
    return GAP - STANDSTILL - headway * CRUISE


def _trace(matrix: Tensor) -> Tensor:
    """Return the traces ``[M]`` of ``[M, 4, 4]``."""
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


Family = Following
