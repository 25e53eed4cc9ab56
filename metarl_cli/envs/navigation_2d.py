"""2D navigation to a hidden goal (Finn, Abbeel and Levine 2017, arXiv:1703.03400, section 5.3), with discrete moves.

A point robot starts at the origin; the goal is somewhere in the unit square around it and is not observed: only the
rewards tell the task.

Action space: 0 stays; 1, 2, 3, 4 move 0.1 along +x, -x, +y, -y. Observation, ``[..., 2]``: the position. Reward: minus the
Euclidean distance to the goal after the move. Start: the origin. Ends: at the horizon only (truncated).

Task parameters: goal_x, goal_y [m].

Differs from the paper: five moves of fixed length, so that a Q-learner can act; horizon 20 instead of 100, as a step
is 0.1 long either way; an episode does not end at the goal.
"""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from metarl_cli.envs.native import NativeConfig, NativeFamily
from metarl_cli.types import Spec, Task

STRIDE = 0.1  # [m] per move
MOVES = ((0.0, 0.0), (1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0))


class Config(NativeConfig):
    """Horizon and the ranges of the goal."""


class Navigation2D(NativeFamily):
    """Reach a goal that only the rewards reveal; see the module's docstring."""

    parameters = {"goal_x": 0.25, "goal_y": 0.25}  # noqa: RUF012

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        super().__init__(config, device)
        self.spec = Spec(obs_shape=(2,), num_actions=len(MOVES), horizon=config.horizon)

    def initial_state(self, shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
        return torch.zeros(*shape, 2, dtype=like.dtype, device=like.device)

    def dynamics(self, state: Tensor, action: Tensor, task: Task, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        moves = STRIDE * torch.tensor(MOVES, dtype=state.dtype, device=state.device)
        state = state + moves[action]
        goal = torch.stack([task["goal_x"], task["goal_y"]], -1)
        distance = (state - goal).norm(dim=-1)
        return state, -distance, torch.zeros_like(distance, dtype=torch.bool)

    def render(self, obs: Tensor, task: Task) -> Image.Image:
        """One frame of one environment, ``obs [2]``, 200 x 200 pixels: the robot blue, the goal green."""
        size, half = 200, 1.0  # [pixels], [m] shown on each side of the origin
        image = Image.new("RGB", (size, size), "white")
        draw = ImageDraw.Draw(image)
        points = ((float(task["goal_x"]), float(task["goal_y"]), "seagreen", 7), (*obs.tolist(), "royalblue", 5))
        for x, y, colour, radius in points:
            centre = (size / 2 * (1 + x / half), size / 2 * (1 - y / half))
            draw.ellipse([centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius], fill=colour)
        return image


Family = Navigation2D
