"""Shared parts of families with few states and few actions: the model of each task, its exact value, and grids.

A state is a whole number below S, an action one below A. A task is a Markov decision process of S states and A actions.
Episodes terminate into an absorbing state without reward, so that the transition probabilities and the expected rewards
define the task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image, ImageDraw
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import one_hot
from typing_extensions import override

from metarl_cli.config.base import StrictModel
from metarl_cli.config.footprint import check_memory
from metarl_cli.envs.native import NativeFamily
from metarl_cli.envs.planning import Process, TablePolicy, policy_values, soft_value_iteration, value_iteration
from metarl_cli.envs.tasks import Columns, TasksConfig
from metarl_cli.interfaces import Demonstrations, Footprint, Holding, Policy, Task, Transitions, device_of, dtype_of, num_tasks

MOVES = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))  # [cells] in x and y: stay, up, right, down, left
NONE: Mapping[int, str] = MappingProxyType({})


class TabularConfig(StrictModel):
    """Values every tabular family has."""

    horizon: int = Field(gt=0, description="time limit of an episode [steps]")


class BoardConfig(TabularConfig):
    """Values every grid has."""

    size: int = Field(gt=1, description="cells along each side")

    @property
    def first_state(self) -> int:
        """The cell in which every episode begins, unless the family draws another."""
        return 0


class GridConfig(BoardConfig):
    """Values every grid has whose episodes begin in one cell."""

    start: list[int] = Field(min_length=2, max_length=2, description="[x, y] of the cell in which every episode begins")

    @model_validator(mode="after")
    def _start_is_on_the_grid(self) -> GridConfig:
        if not all(0 <= value < self.size for value in self.start):
            raise ValueError(f"start {self.start} is not on a grid of size {self.size}")
        return self

    @property
    @override
    def first_state(self) -> int:
        return self.start[0] + self.size * self.start[1]


class TabularFamily(NativeFamily):
    """A distribution of Markov decision processes; observes the state as one-hot ``[..., S]``.

    Args:
        num_states: S.
        first_state: the state in which every episode begins.
        device: where the tasks live.
    """

    differentiates = False
    size_key = "env.states"  # of the configuration, which decides over S
    of_places = False  # whether a reward is for the state that a step leads to; else for the state and the action
    rationality = 5.0  # β of whoever demonstrates: see :mod:`metarl_cli.envs.planning`

    def __init__(self, num_states: int, first_state: int, device: torch.device | str = "cpu"):
        super().__init__(TasksConfig(ranges={}, ood_ranges={}), device)  # ``draw`` of each family has its own distribution
        self.finite = False
        self.num_states, self.first_state = num_states, first_state
        check_memory(
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

    @override
    def expected_return(self, task: Task, policy: Policy) -> Tensor | None:
        """Compute the expected returns ``[M]`` of policies that are tables; None for others."""
        if not isinstance(policy, TablePolicy):
            return None
        greedy = one_hot(policy.table.argmax(-1), self.spec.actions.size).to(policy.table.dtype)
        return (self.start(task) * policy_values(*self.model(task), greedy)).sum(-1)

    # -- rewards and demonstrations

    def features(self, task: Task) -> Tensor:
        """Return the numbers ``[M, X, F]`` that tell what each place of the environments is like; here which it is."""
        places = self.num_states * (1 if self.of_places else self.spec.actions.size)
        one = torch.eye(places, dtype=dtype_of(task), device=device_of(task))
        return one.expand(num_tasks(task), -1, -1)

    def process(self, task: Task) -> Process:
        """Return what is known of the environments of tasks: everything but the rewards."""
        return Process(self.model(task)[0], self.features(task), self.spec.horizon, self.rationality)

    def rewards(self, task: Task) -> Tensor:
        """Return the true rewards of places ``[M, X]``."""
        return self.model(task)[1].flatten(1)

    def candidates(self, task: Task) -> Tensor | None:
        """Return the rewards of places ``[M, C, X]`` in these environments that are equally likely; None where not few."""
        return None

    def arrange(self, places: Tensor) -> Tensor:
        """Return numbers of places ``[X]`` as rows and columns to look at, the lowest row first: here actions and states."""
        return places.view(self.num_states, -1).T

    def states(self, obs: Tensor) -> Tensor:
        """Return the states ``[...]`` of observations ``[..., S]``.

        Raises:
            ValueError: if observations are not states.
        """
        if self.spec.obs_shape != (self.num_states,):
            raise ValueError("a plan needs to know the state, and here the agent does not observe it")
        return obs.argmax(-1)

    def recorded(self, task: Task, episodes: Sequence[tuple[list[int], list[int]]]) -> Demonstrations:
        """Return episodes of one task (M=1) that somebody recorded: the states, and the actions taken in them.

        Raises:
            ValueError: for an episode that cannot have taken place.
        """
        possible = self.model(task)[0][0] > 0
        for n, (states, actions) in enumerate(episodes):
            self._check_episode(f"episode {n + 1}", states, actions, possible)
        longest, device = max(len(states) for states, _ in episodes), device_of(task)
        state, action, weight = (torch.zeros(1, longest, len(episodes), device=device) for _ in range(3))
        for n, (states, actions) in enumerate(episodes):
            state[0, : len(states), n] = torch.tensor(states, dtype=state.dtype)
            action[0, : len(states), n] = torch.tensor(actions, dtype=state.dtype)
            weight[0, : len(states), n] = 1
        obs = one_hot(state.long(), self.num_states).to(dtype_of(task))
        next_obs = torch.cat([obs[:, 1:], obs[:, -1:]], 1)  # where the last action led is not recorded
        never = torch.zeros_like(weight, dtype=torch.bool)
        return Demonstrations(task, Transitions(obs, action.long(), 0 * weight, next_obs, never, never, weight))

    def _check_episode(self, name: str, states: list[int], actions: list[int], possible: Tensor) -> None:
        if not 0 < len(states) == len(actions) <= self.spec.horizon:
            numbers = f"{len(states)} states and {len(actions)} actions"
            raise ValueError(f"{name} has {numbers}: it needs as many of both, 1 to {self.spec.horizon}")
        for kind, values, size in (("state", states, self.num_states), ("action", actions, self.spec.actions.size)):
            if wrong := [value for value in values if value not in range(size)]:
                raise ValueError(f"{name}: {kind} {wrong[0]} is none of 0 to {size - 1}")
        places = [int(state) for state in states]  # a file may have them as floating-point numbers or booleans
        for before, action, after in zip(places, map(int, actions), places[1:], strict=False):
            if not possible[before, action, after]:
                raise ValueError(f"{name}: action {action} never leads from state {before} to state {after}")

    @override
    def expert(self, task: Task) -> TablePolicy:
        """Return the soft-optimal policy of each task."""
        _, choices = soft_value_iteration(*self.model(task), self.spec.horizon, self.rationality)
        return TablePolicy(choices.movedim(0, 1).exp())


class GridFamily(TabularFamily):
    """A square grid; cell ``x + size * y`` lies x cells right of and y cells above the bottom left cell.

    A task holds the cells of hidden objects, ``{object_x: [M], object_y: [M], ...}``. A move against an edge has no effect.

    Args:
        config: the grid.
        num_states: S; by default the number of cells.
        device: where the tasks live.
    """

    size_key = "env.size"

    def __init__(self, config: BoardConfig, num_states: int | None = None, device: torch.device | str = "cpu"):
        super().__init__(num_states or config.size**2, config.first_state, device)
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

    @override
    def model(self, task: Task) -> tuple[Tensor, Tensor]:
        if not self.of_places:
            return super().model(task)
        moves = one_hot(self.neighbour, self.num_states).to(dtype_of(task))
        return moves.expand(num_tasks(task), -1, -1, -1), self.rewards(task)[:, self.neighbour]

    @override
    def rewards(self, task: Task) -> Tensor:
        return super().model(task)[1][..., 0] if self.of_places else super().rewards(task)  # of staying in each cell

    @override
    def arrange(self, places: Tensor) -> Tensor:
        """Return numbers of places ``[X]`` as the grid, where they are numbers of cells."""
        return places.view(self.size, self.size) if self.of_places else super().arrange(places)

    def describe(self, obs: Tensor) -> str:
        """Describe one observation by its cell, as ``(x,y)``."""
        cell = int(obs.argmax()) % self.size**2
        return f"({cell % self.size},{cell // self.size})"

    @override
    def check(self, name: str, value: float) -> None:
        super().check(name, value)
        if value not in range(self.size):
            raise ValueError(f"{name} must be a whole number from 0 to {self.size - 1}, got {value:g}")


def draw_cells(columns: int, rows: int, cells: dict[str, int], ground: Mapping[int, str] = NONE) -> Image.Image:
    """Draw a board of squares of 20 pixels, with markers in ``cells``, ``{colour: square}``; later markers are smaller, on top.

    Square 0 is at the bottom left, square 1 to its right; ``ground`` are the colours of whole squares.
    """
    side = 20
    image = Image.new("RGB", (columns * side + 1, rows * side + 1), "white")
    draw = ImageDraw.Draw(image)
    for x in range(columns):
        for y in range(rows):
            box = [x * side, y * side, (x + 1) * side, (y + 1) * side]
            draw.rectangle(box, fill=ground.get(x + columns * (rows - 1 - y)), outline="lightgrey")
    for inset, (colour, cell) in enumerate(cells.items()):
        x, y, margin = cell % columns, rows - 1 - cell // columns, 2 + 2 * inset
        box = [x * side + margin, y * side + margin, (x + 1) * side - margin, (y + 1) * side - margin]
        draw.rectangle(box, fill=colour)
    return image
