"""What is rewarded of where a body is and how fast it moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from metarl_cli.envs.mujoco.angles import turned
from metarl_cli.interfaces import Task


@dataclass(frozen=True)
class Goal:
    """One goal.

    Attributes:
        parameters: its task parameters, with their nominal values.
        reward: of the mean velocity ``[M, N, 2]`` [m/s] in a step, or of the place ``[M, N, 2]`` [m] after it, and of the task;
            a velocity in the plane of x and z is ``[M, N, 1]``.
        place: whether it is a place, which only a body that moves in more than the plane of x and z reaches.
    """

    parameters: Mapping[str, float]
    reward: Callable[[Tensor, Task], Tensor]
    place: bool = False


def _along(velocity: Tensor, task: Task) -> Tensor:
    direction = turned(task["angle"])[: velocity.shape[-1]]
    return (torch.stack(direction, -1) * velocity).sum(-1)


def _away(place: Tensor, task: Task) -> Tensor:
    return place - torch.stack([task["goal_x"], task["goal_y"]], -1)


PLACE = {"goal_x": 1.0, "goal_y": 0.0}  # [m]
NEAR = {"goal_x": 0.1, "goal_y": -0.1}  # [m], where Reacher's model has its target
GOALS = {
    "forward": Goal({}, lambda velocity, task: velocity[..., 0]),
    "direction": Goal({"angle": 0.0}, _along),
    "velocity": Goal({"velocity": 1.0}, lambda velocity, task: -(velocity[..., 0] - task["velocity"]).abs()),
    "position": Goal(PLACE, lambda place, task: -_away(place, task).abs().sum(-1), place=True),
    "reach": Goal(NEAR, lambda place, task: -torch.linalg.vector_norm(_away(place, task), dim=-1), place=True),
}
