"""Grids of sprites: the same kinds of cells are wanted on every grid (after SpriteWorld: Xu 2019, arXiv:1805.12573).

An 8x8 grid, each cell of one of 12 kinds. In a task, two of the first six kinds are goals and two of the other six are traps:
225 reward functions, on grids without number. A kind is not seen: a cell has 32 features, those of its kind plus normal noise.
The features of all cells, and where moves lead, are known to whoever plans (``process``); an agent that does not plan observes
its cell alone, as in the dark room.

Action space: 0 stays, 1 up, 2 right, 3 down, 4 left; a move against an edge has no effect. Observation, ``[..., 64]``: the
cell, one-hot. Reward: 1 for a step that ends on a goal, -1 on a trap, else 0. Start: any cell. Ends: at the horizon only
(truncated).

Task parameters: first_goal, second_goal, first_trap, second_trap [kinds], grid [the number that a grid is drawn from]. The
225 reward functions are assigned to the splits in a permutation with a fixed seed, so that splits share none, and every task
has a grid of its own. Best possible: 14.3 on average; random actions: 0.

Demonstrations (``Family.demonstrate``) are by a soft-optimal agent of rationality 5, on another grid than that of the task.

Differs from the paper: its sprites are small images, of which a cell has several, and its rewards are for landmarks and
terrain. Here features are vectors, so that a small network reads them.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot
from typing_extensions import override

from metarl_cli.config.footprint import check_memory
from metarl_cli.envs.tabular import MOVES, BoardConfig, GridFamily, draw_cells
from metarl_cli.envs.tasks import Columns
from metarl_cli.interfaces import Footprint, Holding, Task, device_of, dtype_of, num_tasks
from metarl_cli.spaces import Discrete, Spec

GRIDS = 2**24  # numbers that a grid can be drawn from: float32 holds each
OF_REWARD = 150  # [bytes] of a reward function in the list of all


class Config(BoardConfig):
    """The grid, its features and the splits."""

    kinds: int = Field(ge=8, description="kinds of cells, an even number: goals are of the first half, traps of the second")
    features: int = Field(gt=0, description="numbers that a cell is seen as")
    noise: float = Field(ge=0, description="standard deviation of the noise of each; those of a kind have deviation 1")
    rationality: float = Field(gt=0, description="of the demonstrator: the larger, the nearer to optimal")
    held_out: float = Field(
        gt=0, lt=0.5, description="share of all reward functions in the validation split, and in the test split"
    )


class SpriteGrid(GridFamily):
    """Reach the goals and avoid the traps; see the module's docstring."""

    parameters = {"first_goal": 0, "second_goal": 1, "first_trap": 6, "second_trap": 7, "grid": 0}
    of_places = True

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        super().__init__(config, device=device)
        if config.kinds % 2:
            raise ValueError(f"kinds must be an even number, got {config.kinds}")
        self.config, self.rationality, self.half = config, config.rationality, config.kinds // 2
        self.parameters = {**self.parameters, "first_trap": self.half, "second_trap": self.half + 1}
        self.spec = Spec(obs_shape=(self.num_states,), actions=Discrete(len(MOVES)), horizon=config.horizon)
        kinds = np.random.default_rng(0).normal(size=(config.kinds, config.features))  # the same in every run
        self.of_kind = torch.as_tensor(kinds, dtype=torch.get_default_dtype(), device=device)
        rewards = math.comb(self.half, 2) ** 2
        check_memory(Footprint([Holding("env.kinds", rewards * OF_REWARD)]), self.device, "the list of reward functions")
        pairs = list(itertools.combinations(range(self.half), 2))
        self.goals_and_traps = np.array([(*goals, *(self.half + trap for trap in traps)) for goals in pairs for traps in pairs])
        order = np.random.default_rng(0).permutation(len(self.goals_and_traps))  # the same splits for every seed of a run
        test, validation = (round(len(order) * share) for share in (config.held_out, 2 * config.held_out))
        if not 0 < test < validation < len(order):
            raise ValueError(f"held_out={config.held_out:g} leaves a split without any of {len(order)} reward functions")
        self.of_split = {"train": order[validation:], "validation": order[test:validation], "test": order[:test]}

    @override
    def draw(self, num: int, split: str, rng: np.random.Generator) -> Columns:
        own, unit = self.of_split[split], rng.random((num, 2))
        chosen = self.goals_and_traps[own[(len(own) * unit[:, 0]).astype(int)]]
        return dict(zip(self.parameters, [*chosen.T, np.floor(GRIDS * unit[:, 1])], strict=True))

    @override
    def check(self, name: str, value: float) -> None:
        low, high = (0, GRIDS) if name == "grid" else (0, self.half) if "goal" in name else (self.half, 2 * self.half)
        if value not in range(low, high):
            raise ValueError(f"{name} must be a whole number from {low} to {high - 1}, got {value:g}")

    @override
    def knowledge(self, task: Task) -> Tensor:
        """Return the reward of each cell, ``[M, S]``: an observation has the number of the cell alone."""
        return self.rewards(task)

    @override
    def initial_state(self, shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
        return torch.randint(self.num_states, (*shape, 1), generator=rng, device=like.device)

    @override
    def start(self, task: Task) -> Tensor:
        num = num_tasks(task), self.num_states
        return torch.full(num, 1 / self.num_states, dtype=dtype_of(task), device=device_of(task))

    def drawn(self, task: Task, features: bool = True) -> tuple[Tensor, Tensor]:
        """Draw the grids: the kind of each cell ``[M, S]``, and its features ``[M, S, F]``; without ``features`` no noise."""
        kinds, noise, shape = [], [], (self.num_states, self.config.features)
        for number in task["grid"].flatten().long().tolist():
            rng = np.random.default_rng(number)
            kinds.append(rng.integers(self.config.kinds, size=self.num_states))
            noise.append(rng.standard_normal(shape, dtype=np.float32) if features else np.zeros((1, 1), np.float32))
        kind = torch.as_tensor(np.stack(kinds), device=self.device)
        seen = torch.as_tensor(np.stack(noise), dtype=self.of_kind.dtype, device=self.device)
        return kind, self.of_kind[kind] + self.config.noise * seen

    def worth(self, task: Task) -> Tensor:
        """Return the reward of each kind, ``[M, kinds]``."""
        of = {name: one_hot(task[name].flatten().long(), self.config.kinds) for name in task if name != "grid"}
        worth = of["first_goal"] + of["second_goal"] - of["first_trap"] - of["second_trap"]
        return worth.to(dtype_of(task))

    @override
    def rewards(self, task: Task) -> Tensor:
        return self.worth(task).gather(1, self.drawn(task, features=False)[0])

    @override
    def features(self, task: Task) -> Tensor:
        return self.drawn(task)[1]

    @override
    def candidates(self, task: Task) -> Tensor:
        """Return the rewards ``[M, C, S]`` of all reward functions; the kinds of the cells are taken as known."""
        every = dict(zip(self.parameters, torch.as_tensor(self.goals_and_traps.T, device=self.device), strict=False))
        worth = self.worth(every).to(dtype_of(task))  # [C, kinds]
        return worth[:, self.drawn(task, features=False)[0]].movedim(0, 1)

    @override
    def elsewhere(self, task: Task, rng: torch.Generator) -> Task:
        """Return tasks with the same goals and traps on new grids."""
        grid = torch.randint(GRIDS, task["grid"].shape, generator=rng, device=device_of(task))
        return task | {"grid": grid.to(dtype_of(task))}

    @override
    def constants(self, task: Task) -> Task:
        return task | {"worth": self.rewards(task).reshape(-1, self.num_states)}

    @override
    def dynamics(self, state: Tensor, action: Tensor, task: Task, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        cell = self.walk(state[..., 0], action)
        return cell[..., None], task["worth"].gather(1, cell), torch.zeros_like(cell, dtype=torch.bool)

    def render(self, obs: Tensor, task: Task) -> Image.Image:
        """Draw the grid from above: goals green, traps red, the agent blue."""
        worth = self.rewards(task)[0].tolist()
        ground = {cell: "lightgreen" if value > 0 else "lightcoral" for cell, value in enumerate(worth) if value}
        return draw_cells(self.size, self.size, {"royalblue": int(obs.argmax())}, ground)


Family = SpriteGrid
