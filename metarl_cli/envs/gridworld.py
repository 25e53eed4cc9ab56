"""A 5x5 grid with a hidden goal (VariBAD: Zintgraf et al. 2020, arXiv:1910.08348, section 5.1).

The agent searches the grid, remembers the goal, and walks straight to it in the next episode; a trial is four episodes. The
best behaviour under uncertainty is known, so that exploration can be compared with it.

Action space: 0 stays, 1 up, 2 right, 3 down, 4 left. Observation, ``[..., 25]``: the cell, one-hot. Reward: 1 for a step that
ends on the goal, -0.1 for any other. Start: the bottom left cell. Ends: at the horizon only (truncated).

Task parameters: goal_x, goal_y [cells], uniform over the 21 cells that are neither the start nor next to it, diagonals
included; all splits share them. Best possible: ``-0.1 (d - 1) + (H - d + 1)`` for a goal d moves away, 11.07 on average.

Differs from the paper: cells are one-hot instead of coordinates. Rewards, moves, goals and horizon are the published code's;
a goal beside the start, which it never draws, may be named.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from metarl_cli.envs.tabular import MOVES, GridConfig, GridFamily, draw_cells
from metarl_cli.envs.tasks import Columns
from metarl_cli.interfaces import Task, device_of, dtype_of, num_tasks
from metarl_cli.spaces import Discrete, Spec


class Config(GridConfig):
    """The grid and its rewards."""

    at_goal: float = Field(description="reward of a step that ends on the goal")
    elsewhere: float = Field(description="reward of any other step")
    clear: int = Field(ge=0, description="no goal is drawn within this many cells of the start, diagonals included")


class Gridworld(GridFamily):
    """Find the goal; see the module's docstring."""

    parameters = {"goal_x": 3, "goal_y": 3}
    of_places = True

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        super().__init__(config, device=device)
        self.finite = True
        self.config = config
        self.spec = Spec(obs_shape=(self.num_states,), actions=Discrete(len(MOVES)), horizon=config.horizon)
        cells, (x, y) = np.arange(self.num_states), config.start
        far = np.maximum(abs(cells % self.size - x), abs(cells // self.size - y)) > config.clear
        self.goals = cells[far]
        if not len(self.goals):
            raise ValueError(f"no cell is left for a goal: clear={config.clear} on a grid of size {self.size}")

    @override
    def draw(self, num: int, split: str, rng: np.random.Generator) -> Columns:
        return self.coordinates("goal", self.goals[(len(self.goals) * rng.random(num)).astype(int)])

    @override
    def constants(self, task: Task) -> Task:
        rewards = task["goal_x"].new_tensor([self.config.elsewhere, self.config.at_goal])
        return task | {"goal": self.cell(task, "goal"), "rewards": rewards}

    @override
    def dynamics(self, state: Tensor, action: Tensor, task: Task, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        cell = self.walk(state[..., 0], action)
        there = cell == task["goal"]
        return cell[..., None], task["rewards"][there.long()], torch.zeros_like(there)

    @override
    def candidates(self, task: Task) -> Tensor:
        """Return the rewards ``[M, C, S]`` of every goal that is drawn."""
        goal = torch.eye(self.num_states, dtype=dtype_of(task), device=device_of(task))[self.goals]
        return (self.config.elsewhere + (self.config.at_goal - self.config.elsewhere) * goal).expand(num_tasks(task), -1, -1)

    def render(self, obs: Tensor, task: Task) -> Image.Image:
        """Draw the grid from above: the goal green, the agent blue."""
        goal, agent = int(self.cell(task, "goal")), int(obs.argmax())
        return draw_cells(self.size, self.size, {"seagreen": goal, "royalblue": agent})


Family = Gridworld
