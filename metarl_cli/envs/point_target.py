"""A point and a hidden target in any number of dimensions: the next state is the state plus the action.

The smallest family with continuous actions: deterministic, without physics, with an optimum known in closed form. It tests
that a learner adapts at all.

Action space: a vector ``[d]``, the move along each axis, clipped to ±1. Observation, ``[..., d]``: the position. Reward: minus
the L1 distance to the target after the move. Start: the origin. Ends: where any coordinate is beyond ±5 (terminated) or at the
horizon (truncated).

Task parameters: target_0 to target_{d-1}, without unit, within ±5; wider for out-of-distribution tasks. Best possible: along
every axis straight to the target, ``-Σ_i Σ_t max(0, |target_i| - t)`` for t = 1 to H. No episode gains by ending early: leaving
takes six steps, the farthest target five.
"""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import override

from metarl_cli.config.base import StrictModel
from metarl_cli.envs.plane import PlaneFamily
from metarl_cli.envs.rules import Rule, Walk, regress, sign
from metarl_cli.envs.tasks import Range, TasksConfig
from metarl_cli.interfaces import Task, Transitions
from metarl_cli.spaces import Continuous, Spec

STRIDE = 1.0  # along each axis
LIMIT = 5.0  # on each side of the origin
ESTIMATES = 20  # steps of the rule's least squares


class Config(StrictModel):
    """The number of dimensions, and one range for every coordinate of the target."""

    horizon: int = Field(gt=0, description="time limit of an episode [steps]")
    dimensions: int = Field(gt=0, le=10_000, description="d, of positions and moves")
    target: Range = Field(description="[low, high] of each coordinate of the target, drawn uniformly")
    ood_target: Range = Field(description="the wider [low, high] of out-of-distribution tasks")

    @model_validator(mode="after")
    def _targets_can_be_reached(self) -> Config:
        if max(map(abs, self.target + self.ood_target)) > LIMIT:
            raise ValueError(f"target and ood_target must be within ±{LIMIT:g}, where episodes end")
        self.tasks()
        return self

    def tasks(self) -> TasksConfig:
        """Return the ranges of target_0 to target_{d-1}."""
        names = [f"target_{i}" for i in range(self.dimensions)]
        return TasksConfig(ranges=dict.fromkeys(names, self.target), ood_ranges=dict.fromkeys(names, self.ood_target))


class PointTarget(PlaneFamily):
    """Reach a hidden target; see the module's docstring."""

    half = LIMIT

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        self.parameters = {f"target_{i}": 1.0 for i in range(config.dimensions)}
        super().__init__(config.tasks(), device)
        actions = Continuous((-STRIDE,) * config.dimensions, (STRIDE,) * config.dimensions)
        self.spec = Spec(obs_shape=(config.dimensions,), actions=actions, horizon=config.horizon)

    @override
    def check(self, name: str, value: float) -> None:
        super().check(name, value)
        if abs(value) > LIMIT:
            raise ValueError(f"{name} must be within ±{LIMIT:g}, where episodes end, got {value:g}")

    def target(self, task: Task) -> Tensor:
        """Return the target ``[..., d]``."""
        return torch.stack([task[name] for name in self.parameters], -1)

    @override
    def initial_state(self, shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
        return torch.zeros(*shape, len(self.parameters), dtype=like.dtype, device=like.device)

    @override
    def constants(self, task: Task) -> Task:
        return task | {"target": self.target(task)}

    @override
    def dynamics(self, state: Tensor, action: Tensor, task: Task, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        state = state + action.clamp(-STRIDE, STRIDE)
        reward = -(state - task["target"]).abs().sum(-1)
        return state, reward, (state.abs() > LIMIT).any(-1)

    @override
    def optimum(self, task: Task) -> Tensor:
        walked = STRIDE * torch.arange(1, self.spec.horizon + 1, device=self.device)
        left = (self.target(task).abs() - walked[:, None, None]).clamp(min=0)  # [T, M, d]
        return -left.sum((0, 2))

    @override
    def rule(self, support: Transitions) -> Rule:
        """Find the target by least squares, each step on the slopes at the last estimate, and move there; else stay."""
        place, target = support.next_obs, support.next_obs.new_zeros(len(support.reward), len(self.parameters))
        for _ in range(ESTIMATES):
            beyond = target[:, None, None] - place
            missing = -support.reward - beyond.abs().sum(-1)
            target = target + regress(sign(beyond), missing, support.weight)
        return Rule(lambda obs: (target[:, None] - obs).clamp(-STRIDE, STRIDE))

    @override
    def worth(self, place: Tensor, task: Task) -> Tensor:
        return -(place - self.target(task)[:, None]).abs().sum(-1)

    @override
    def expert(self, task: Task) -> Walk:
        """Return the straight walk to each target."""
        return Walk(self.target(task), STRIDE)

    def render(self, obs: Tensor, task: Task) -> Image.Image:
        """Draw the first two coordinates, 200 x 200 pixels: the point blue, the target green; episodes end beyond the edge."""
        size = 200
        image = Image.new("RGB", (size, size), "white")
        draw = ImageDraw.Draw(image)
        for point, colour, radius in ((self.target(task), "seagreen", 7), (obs, "royalblue", 5)):
            x, y = [*point.flatten().tolist(), 0.0][:2]
            centre = (size / 2 * (1 + x / LIMIT), size / 2 * (1 - y / LIMIT))
            draw.ellipse([centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius], fill=colour)
        return image


Family = PointTarget
