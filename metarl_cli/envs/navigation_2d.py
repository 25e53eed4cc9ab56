"""2D navigation to a hidden goal (Finn, Abbeel and Levine 2017, arXiv:1703.03400, section 5.3).

A point robot starts at the origin; the goal is in the unit square around it and is not observed, so that only the
rewards reveal the task.

Action space, discrete: 0 stays; 1, 2, 3, 4 move 0.1 along +x, -x, +y, -y. Continuous: a vector ``[2]``, the move along x
and y [m], clipped to ±0.1 each. Observation, ``[..., 2]``: the position [m]. Reward: minus the Euclidean distance to the goal
after the move. Start: the origin. Ends: at the horizon (truncated); with continuous moves also within 0.01 of the goal in x and
in y (terminated).

Task parameters: goal_x, goal_y [m]. Best possible with continuous moves: both coordinates straight to the goal at full speed.

Differs from the paper: the distance is not squared, as in its published code. The discrete moves, for learners that
choose among actions, are of fixed length; their horizon is 20 instead of 100, as a step is 0.1 long either way, and an episode
does not end at the goal.
"""

from __future__ import annotations

from typing import Literal

import torch
from PIL import Image, ImageDraw
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from metarl_cli.envs.native import NativeConfig, NativeFamily
from metarl_cli.interfaces import Task
from metarl_cli.spaces import Continuous, Discrete, Spec

STRIDE = 0.1  # [m] per move; along each axis where moves are continuous
NEAR = 0.01  # [m] from the goal along each axis, where continuous episodes end
MOVES = ((0.0, 0.0), (1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0))


class Config(NativeConfig):
    """Horizon, moves and the ranges of the goal."""

    moves: Literal["discrete", "continuous"] = Field(description="five moves to choose from, or a vector")


class Navigation2D(NativeFamily):
    """Reach a hidden goal; see the module's docstring."""

    parameters = {"goal_x": 0.25, "goal_y": 0.25}

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        super().__init__(config, device)
        self.continuous = config.moves == "continuous"
        actions = Continuous((-STRIDE, -STRIDE), (STRIDE, STRIDE)) if self.continuous else Discrete(len(MOVES))
        self.spec = Spec(obs_shape=(2,), actions=actions, horizon=config.horizon)

    @override
    def initial_state(self, shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
        return torch.zeros(*shape, 2, dtype=like.dtype, device=like.device)

    @override
    def constants(self, task: Task) -> Task:
        goal = torch.stack([task["goal_x"], task["goal_y"]], -1)
        return task | {"goal": goal, "moves": STRIDE * goal.new_tensor(MOVES)}

    @override
    def dynamics(self, state: Tensor, action: Tensor, task: Task, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        if self.continuous:
            state = state + action.clamp(-STRIDE, STRIDE)
            terminated = ((state - task["goal"]).abs() < NEAR).all(-1)
        else:
            state = state + task["moves"][action]
            terminated = torch.zeros(state.shape[:-1], dtype=torch.bool, device=state.device)
        return state, -(state - task["goal"]).norm(dim=-1), terminated

    def optimum(self, task: Task) -> Tensor | None:
        """Compute the return of moving straight in x and in y with continuous moves; None with discrete moves."""
        if not self.continuous:
            return None
        goal = torch.stack([task["goal_x"], task["goal_y"]], -1).abs()  # [M, 2]
        walked = STRIDE * torch.arange(1, self.spec.horizon + 1, device=goal.device)
        left = (goal - walked[:, None, None]).clamp(min=0)  # [T, M, 2]
        over = (left < NEAR).all(-1).cumsum(0) > 1  # the episode ended before this step
        distance: Tensor = left.norm(dim=-1)
        return -distance.where(~over, 0).sum(0)

    def render(self, obs: Tensor, task: Task) -> Image.Image:
        """Draw one environment, ``obs [2]``, 200 x 200 pixels: the robot blue, the goal green."""
        size, half = 200, 1.0  # [pixels], [m] shown on each side of the origin
        image = Image.new("RGB", (size, size), "white")
        draw = ImageDraw.Draw(image)
        points = ((float(task["goal_x"]), float(task["goal_y"]), "seagreen", 7), (*obs.tolist(), "royalblue", 5))
        for x, y, colour, radius in points:
            centre = (size / 2 * (1 + x / half), size / 2 * (1 - y / half))
            draw.ellipse([centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius], fill=colour)
        return image


Family = Navigation2D
