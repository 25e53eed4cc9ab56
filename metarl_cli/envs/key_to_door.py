"""Dark key-to-door (Laskin et al. 2022, arXiv:2210.14215): find a hidden key, then the hidden door that it opens.

Action space: 0 stays, 1 up, 2 right, 3 down, 4 left. Observation, one-hot: the state, ``[..., 162]``, which is the cell,
plus 81 once the key is held; or the cell alone, ``[..., 81]``. Reward: 1 for the step that reaches the key, 1 for the one that
reaches the door with the key; key and door may share a cell, whose step then brings 2. Start: the centre, without the key.
Ends: at the door with the key (terminated) or at the horizon (truncated).

Task parameters: key_x, key_y, door_x, door_y [cells]. The 9^4 pairs of key and door are assigned to the splits in a
permutation with a fixed seed, so that splits share no pair. Best possible: 2, where the horizon is long enough for max(1,
moves to the key) plus the moves from there to the door.

Differs from the paper: the key held is observed by default, so that observations are states; ``observe: cell`` hides it. The
start is always the centre; public versions of the room begin there, in a corner or anywhere.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from metarl_cli.envs.tabular import MOVES, GridConfig, GridFamily, draw_cells
from metarl_cli.envs.tasks import Columns
from metarl_cli.interfaces import Task
from metarl_cli.spaces import Discrete, Spec


class Config(GridConfig):
    """The room."""

    observe: Literal["state", "cell"] = Field(
        description="whether observations include that the agent holds the key (state) or not (cell)"
    )
    held_out: float = Field(
        gt=0, lt=0.5, description="share of all pairs in the validation split, and the same in the test split"
    )


class KeyToDoor(GridFamily):
    """Fetch the key, open the door; see the module's docstring."""

    parameters = {"key_x": 0, "key_y": 0, "door_x": 1, "door_y": 1}

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        self.cells = config.size**2
        super().__init__(config, 2 * self.cells, device)
        self.observed = self.num_states if config.observe == "state" else self.cells
        self.spec = Spec(obs_shape=(self.observed,), actions=Discrete(len(MOVES)), horizon=config.horizon)
        pairs = np.random.default_rng(0).permutation(self.cells**2)  # the same splits for every seed of a run
        test, validation = (round(len(pairs) * share) for share in (config.held_out, 2 * config.held_out))
        if not 0 < test < validation < len(pairs):
            raise ValueError(f"held_out={config.held_out:g} leaves a split without any of {len(pairs)} pairs")
        self.pairs = {"train": pairs[validation:], "validation": pairs[test:validation], "test": pairs[:test]}

    @override
    def draw(self, num: int, split: str, rng: np.random.Generator) -> Columns:
        own = self.pairs[split]
        key, door = np.divmod(own[(len(own) * rng.random(num)).astype(int)], self.cells)
        return self.coordinates("key", key) | self.coordinates("door", door)

    @override
    def constants(self, task: Task) -> Task:
        return task | {"key": self.cell(task, "key"), "door": self.cell(task, "door")}

    @override
    def dynamics(self, state: Tensor, action: Tensor, task: Task, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        before, held = state[..., 0] % self.cells, state[..., 0] >= self.cells
        done = held & (before == task["door"])  # the absorbing state of the model; no episode acts there
        cell = torch.where(done, before, self.walk(before, action))
        fetched = ~held & (cell == task["key"])
        opened = (held | fetched) & (cell == task["door"])
        reward = fetched.to(task["key_x"].dtype) + (opened & ~done)
        return (cell + self.cells * (held | fetched))[..., None], reward, opened

    @override
    def observe(self, state: Tensor) -> Tensor:
        return self.one_hot[state[..., 0] % self.observed, : self.observed]

    def optimum(self, task: Task) -> Tensor:
        """Compute the optimum from distances; value iteration gives the same with a hundred times the memory."""
        key, door = self.cell(task, "key"), self.cell(task, "door")
        steps = self.distance(key, torch.full_like(key, self.first_state)).clamp(min=1)
        reached = steps <= self.spec.horizon
        return reached.to(task["key_x"].dtype) + (steps + self.distance(key, door) <= self.spec.horizon)

    @override
    def solved(self, task: Task) -> Tensor:
        """Count a task as solved where every episode opens the door."""
        return self.optimum(task)

    def render(self, obs: Tensor, task: Task) -> Image.Image:
        """Draw the room from above: key golden, door brown, agent blue, and red with the key where that is observed."""
        state = int(obs.argmax())
        held = state >= self.cells
        objects = {"peru": int(self.cell(task, "door"))} | ({} if held else {"gold": int(self.cell(task, "key"))})
        return draw_cells(self.size, self.size, objects | {"firebrick" if held else "royalblue": state % self.cells})


Family = KeyToDoor
