"""The dark room (Laskin et al. 2022, arXiv:2210.14215): a 9x9 grid with a goal that is not observed.

Action space: 0 stays, 1 up, 2 right, 3 down, 4 left. Observation, ``[..., 81]``: the cell, one-hot. Reward: 1 for every step
that ends on the goal, else 0. Start: the centre. Ends: at the horizon only (truncated).

Task parameters: goal_x, goal_y [cells], uniform over all 81 cells, the start included; all splits share them. Best possible:
``H + 1 - max(d, 1)`` for a goal d moves away; 16.54 on average.

Differs from the paper: cells are one-hot, with the same information as coordinates; tasks are drawn with replacement, so that
training and test share goals where the paper holds some out.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from typing_extensions import override

from metarl_cli.envs.tabular import MOVES, GridConfig, GridFamily, draw_cells
from metarl_cli.envs.tasks import Columns
from metarl_cli.interfaces import Task
from metarl_cli.spaces import Discrete, Spec


class Config(GridConfig):
    """The room."""


class DarkRoom(GridFamily):
    """Find the goal in the dark; see the module's docstring."""

    parameters = {"goal_x": 0, "goal_y": 0}
    of_places = True

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        super().__init__(config, device=device)
        self.finite = True
        self.spec = Spec(obs_shape=(self.num_states,), actions=Discrete(len(MOVES)), horizon=config.horizon)

    @override
    def draw(self, num: int, split: str, rng: np.random.Generator) -> Columns:
        return self.coordinates("goal", (self.num_states * rng.random(num)).astype(int))

    @override
    def constants(self, task: Task) -> Task:
        return task | {"goal": self.cell(task, "goal")}

    @override
    def dynamics(self, state: Tensor, action: Tensor, task: Task, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        cell = self.walk(state[..., 0], action)
        there = cell == task["goal"]
        return cell[..., None], there.to(task["goal_x"].dtype), torch.zeros_like(there)

    @override
    def candidates(self, task: Task) -> Tensor:
        """Return the rewards ``[M, C, S]`` of every goal."""
        return self.features(task)

    def render(self, obs: Tensor, task: Task) -> Image.Image:
        """Draw the room from above: the goal green, the agent blue."""
        goal, agent = int(self.cell(task, "goal")), int(obs.argmax())
        return draw_cells(self.size, self.size, {"seagreen": goal, "royalblue": agent})


Family = DarkRoom
