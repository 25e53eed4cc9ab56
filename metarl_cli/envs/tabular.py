"""Shared parts of families with few states and few actions: the model of each task, its exact value, and grids.

A state is a whole number below S, an action one below A. A task is a Markov decision process of S states and A actions.
Episodes terminate into an absorbing state without reward, so that the transition probabilities and the expected rewards
define the task.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import one_hot
from typing_extensions import override

from metarl_cli.config.base import StrictModel
from metarl_cli.config.footprint import judge
from metarl_cli.envs.native import NativeFamily
from metarl_cli.envs.tasks import Columns, TasksConfig
from metarl_cli.interfaces import Footprint, Holding, Task, device_of, dtype_of, num_tasks

MOVES = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))  # [cells] in x and y: stay, up, right, down, left


class TabularConfig(StrictModel):
    """Values every tabular family has."""

    horizon: int = Field(gt=0, description="time limit of an episode [steps]")


class GridConfig(TabularConfig):
    """Values every grid has."""

    size: int = Field(gt=1, description="cells along each side")
    start: list[int] = Field(min_length=2, max_length=2, description="[x, y] of the cell in which every episode begins")

    @model_validator(mode="after")
    def _start_is_on_the_grid(self) -> GridConfig:
        if not all(0 <= value < self.size for value in self.start):
            raise ValueError(f"start {self.start} is not on a grid of size {self.size}")
        return self


class TabularFamily(NativeFamily):
    """A distribution of Markov decision processes; observes the state as one-hot ``[..., S]``.

    Args:
        num_states: S.
        first_state: the state in which every episode begins.
        device: where the tasks live.
    """

    size_key = "env.states"  # of the configuration, which decides over S

    def __init__(self, num_states: int, first_state: int, device: torch.device | str = "cpu"):
        super().__init__(TasksConfig(ranges={}, ood_ranges={}), device)  # ``draw`` of each family has its own distribution
        self.finite = False
        self.num_states, self.first_state = num_states, first_state
        judge(
            Footprint([Holding(self.size_key, num_states**2 * torch.get_default_dtype().itemsize)]), self.device, "the family"
        )
        self.one_hot = torch.eye(num_states, device=device)

    @override
    def initial_state(self, shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
        return torch.full((*shape, 1), self.first_state, device=like.device)

    @override
    def observe(self, state: Tensor) -> Tensor:
        return self.one_hot[state[..., 0]]

    def start(self, task: Task) -> Tensor:
        """Return the distribution ``[M, S]`` of an episode's first state."""
        state = torch.full((num_tasks(task),), self.first_state, device=device_of(task))
        return one_hot(state, self.num_states).to(dtype_of(task))

    def model(self, task: Task) -> tuple[Tensor, Tensor]:
        """Return the transition probabilities ``[M, S, A, S]`` and the expected rewards ``[M, S, A]`` of tasks.

        This default is for deterministic families; it evaluates ``dynamics`` in every state and action.
        """
        num, actions, device = num_tasks(task), self.spec.actions.size, device_of(task)
        pairs = torch.arange(self.num_states * actions, device=device).expand(num, -1)
        constants = self.constants({name: value[:, None] for name, value in task.items()})
        rng = torch.Generator(device)
        after, reward, _ = self.dynamics((pairs // actions)[..., None], pairs % actions, constants, rng)
        table = (num, self.num_states, actions)
        return one_hot(after.reshape(table), self.num_states).to(reward.dtype), reward.reshape(table)

    def optimum(self, task: Task) -> Tensor:
        """Compute the expected return ``[M]`` of an episode under the best policy that knows the task, by value iteration."""
        values, _ = value_iteration(*self.model(task), self.spec.horizon)
        return (self.start(task) * values[0]).sum(-1)


class GridFamily(TabularFamily):
    """A square grid; cell ``x + size * y`` lies x cells right of and y cells above the bottom left cell.

    A task holds the cells of hidden objects, ``{object_x: [M], object_y: [M], ...}``. A move against an edge has no effect.

    Args:
        config: the grid.
        num_states: S; by default the number of cells.
        device: where the tasks live.
    """

    size_key = "env.size"

    def __init__(self, config: GridConfig, num_states: int | None = None, device: torch.device | str = "cpu"):
        first = config.start[0] + config.size * config.start[1]
        super().__init__(num_states or config.size**2, first, device)
        self.size = config.size
        cell, (x, y) = torch.arange(config.size**2, device=device)[:, None], torch.tensor(MOVES, device=device).T
        x = (cell % self.size + x).clamp(0, self.size - 1)
        y = (cell // self.size + y).clamp(0, self.size - 1)
        self.neighbour = x + self.size * y  # [cells, moves]

    def walk(self, cell: Tensor, action: Tensor) -> Tensor:
        """Return the cells ``[...]`` after one move each."""
        after: Tensor = self.neighbour[cell, action]
        return after

    def cell(self, task: Task, name: str) -> Tensor:
        """Return the cell of a hidden object, in the shape of the task's parameters."""
        return (task[f"{name}_x"] + self.size * task[f"{name}_y"]).long()

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the fewest moves between cells, the Manhattan distance."""
        return (a % self.size - b % self.size).abs() + (a // self.size - b // self.size).abs()

    @override
    def knowledge(self, task: Task) -> Tensor:
        """Return the coordinates of the hidden objects, -1 and 1 at the edges, ``[M, F]``."""
        return torch.stack([2 * task[name] / (self.size - 1) - 1 for name in self.parameters], -1)

    def coordinates(self, name: str, cells: np.ndarray) -> Columns:
        """Return the task parameters that put an object into ``cells [num]``."""
        return {f"{name}_x": cells % self.size, f"{name}_y": cells // self.size}

    def describe(self, obs: Tensor) -> str:
        """Describe one observation by its cell, as ``(x,y)``."""
        cell = int(obs.argmax()) % self.size**2
        return f"({cell % self.size},{cell // self.size})"

    @override
    def check(self, name: str, value: float) -> None:
        super().check(name, value)
        if value not in range(self.size):
            raise ValueError(f"{name} must be a whole number from 0 to {self.size - 1}, got {value:g}")


def value_iteration(transition: Tensor, reward: Tensor, horizon: int) -> tuple[Tensor, Tensor]:
    """Compute the optimal undiscounted values and actions of an episode, backwards from its last step (Bellman 1957).

    ``V[H](s) = 0`` and ``V[t](s) = max_a R(s, a) + Σ_s' P(s' | s, a) V[t+1](s')``; the index is the step, not the steps to go.

    Args:
        transition: ``P [M, S, A, S]``.
        reward: ``R [M, S, A]``, expected.
        horizon: H, the steps of an episode.

    Returns:
        The values ``V [H+1, M, S]`` and the optimal actions ``[H, M, S]``, the first of equally good ones.
    """
    values, actions = [reward.new_zeros(reward.shape[:2])], []
    for _ in range(horizon):
        best = (reward + torch.einsum("msan,mn->msa", transition, values[-1])).max(-1)
        values.append(best.values)
        actions.append(best.indices)
    return torch.stack(values[::-1]), torch.stack(actions[::-1])


def draw_cells(columns: int, rows: int, cells: dict[str, int]) -> Image.Image:
    """Draw a board of squares of 20 pixels, with markers in ``cells``, ``{colour: square}``; later markers are smaller, on top.

    Square 0 is at the bottom left, square 1 to its right.
    """
    side = 20
    image = Image.new("RGB", (columns * side + 1, rows * side + 1), "white")
    draw = ImageDraw.Draw(image)
    for x in range(columns):
        for y in range(rows):
            draw.rectangle([x * side, y * side, (x + 1) * side, (y + 1) * side], outline="lightgrey")
    for inset, (colour, cell) in enumerate(cells.items()):
        x, y, margin = cell % columns, rows - 1 - cell // columns, 2 + 2 * inset
        box = [x * side + margin, y * side + margin, (x + 1) * side - margin, (y + 1) * side - margin]
        draw.rectangle(box, fill=colour)
    return image
