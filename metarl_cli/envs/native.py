"""What every native family shares: M x N environments as one tensor, automatic reset, time limit, splits, saving.

A family gives its physics as pure functions (``initial_state``, ``dynamics``, ``observe``) and its parameters' ranges.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from metarl_cli.types import Spec, State, Step, StrictModel, Task

Range = Annotated[list[float], Field(min_length=2, max_length=2)]
Columns = dict[str, np.ndarray]  # one array [num] per task parameter
SPLITS = ("train", "validation", "test", "ood")


class NativeConfig(StrictModel):
    """Values every native family has."""

    horizon: int = Field(gt=0, description="time limit of an episode [steps]")
    ranges: dict[str, Range] = Field(description="[low, high] of each task parameter, drawn uniformly")
    ood_ranges: dict[str, Range] = Field(
        description="the wider [low, high] of out-of-distribution tasks; none: the family has no such split"
    )

    @model_validator(mode="after")
    def _ranges_are_nested(self) -> NativeConfig:
        for group in (self.ranges, self.ood_ranges):
            for name, (low, high) in group.items():
                if not low <= high:
                    raise ValueError(f"range of {name} must be [low, high] with low <= high, got [{low}, {high}]")
        for name, (low, high) in self.ood_ranges.items():
            inner = self.ranges.get(name)
            if inner is None or not (low <= inner[0] and inner[1] <= high):
                raise ValueError(f"ood_ranges.{name} [{low}, {high}] must contain ranges.{name} {inner}")
        if self.ood_ranges and all(self.ranges[name] == wide for name, wide in self.ood_ranges.items()):
            raise ValueError("ood_ranges must be wider than ranges for at least one parameter")
        return self


class NativeFamily:
    """A distribution of tasks over native physics.

    Args:
        config: horizon and ranges.
        device: where the environments live.
    """

    spec: Spec
    parameters: dict[str, float]  # name -> nominal value, SI units
    positive: frozenset[str] = frozenset()  # parameters that make no sense at zero or below

    def __init__(self, config: NativeConfig, device: torch.device | str = "cpu"):
        unknown = [name for name in config.ranges if name not in self.parameters]
        if unknown:
            raise ValueError(f"no such task parameter: {', '.join(unknown)}; known: {', '.join(self.parameters)}")
        for name, (low, _) in [*config.ranges.items(), *config.ood_ranges.items()]:
            self._check_positive(name, low)
        self.config = config
        self.device = torch.device(device)

    def _check_positive(self, name: str, value: float) -> None:
        if name in self.positive and value <= 0:
            raise ValueError(f"{name} must be above 0, got {value:g}")

    # -- the physics, given by the family

    def initial_state(self, shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
        """States ``[*shape, S]`` at the start of an episode, of ``like``'s dtype and device."""
        raise NotImplementedError

    def dynamics(self, state: Tensor, action: Tensor, task: Task) -> tuple[Tensor, Tensor, Tensor]:
        """``state [..., S]``, ``action [...]``, task parameters that broadcast -> next state, reward, terminated."""
        raise NotImplementedError

    def observe(self, state: Tensor) -> Tensor:
        """What the agent sees of ``state [..., S]``."""
        return state

    # -- tasks

    def place(self, unit: Columns, ranges: dict[str, Range]) -> Columns:
        """Parameters from numbers uniform in [0, 1); a parameter without a range keeps its nominal value."""
        bounds = {name: ranges.get(name, [value, value]) for name, value in self.parameters.items()}
        return {name: low + (high - low) * unit[name] for name, (low, high) in bounds.items()}

    def _draw(self, num: int, ranges: dict[str, Range], rng: np.random.Generator) -> Columns:
        unit = rng.random((num, len(self.parameters)))  # row by row: the first n tasks do not depend on num
        return self.place(dict(zip(self.parameters, unit.T, strict=True)), ranges)

    def sample_tasks(self, num: int, split: str, rng: np.random.Generator) -> Task:
        """Draw ``num`` tasks ``{name: [num]}`` of a split.

        The splits are disjoint because the caller derives one stream per split; ``ood`` tasks come from the wider ranges
        and lie outside the training range in at least one parameter.

        Raises:
            ValueError: for an unknown split, or ``ood`` where the family has none.
        """
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
        if split != "ood":
            drawn = self._draw(num, self.config.ranges, rng)
        else:
            if not self.config.ood_ranges:
                raise ValueError("this family has no out-of-distribution split")
            drawn = {name: np.empty(0) for name in self.parameters}
            while len(next(iter(drawn.values()))) < num:
                more = self._draw(1, {**self.config.ranges, **self.config.ood_ranges}, rng)
                if self.outside(more)[0]:
                    drawn = {name: np.concatenate([drawn[name], more[name]]) for name in drawn}
        return {k: torch.as_tensor(v, dtype=torch.get_default_dtype(), device=self.device) for k, v in drawn.items()}

    def outside(self, rows: Columns) -> np.ndarray:
        """``[num]`` whether a task lies outside the training range in at least one parameter."""
        hits = [(rows[k] < low) | (rows[k] > high) for k, (low, high) in self.config.ranges.items()]
        return np.asarray(np.any(hits, axis=0))

    def named_task(self, values: dict[str, float]) -> Task:
        """One task (M=1): the family's nominal parameters with ``values`` in their place.

        Raises:
            ValueError: for a name the family does not have, or a value that makes no sense.
        """
        for name in values:
            if name not in self.parameters:
                raise ValueError(f"no such task parameter: {name}; known: {', '.join(self.parameters)}")
            self._check_positive(name, values[name])
        merged = {**self.parameters, **values}
        return {k: torch.full((1,), float(v), device=self.device) for k, v in merged.items()}

    def make(self, task: Task, num_envs: int, rng: torch.Generator) -> NativeEnv:
        return NativeEnv(self, task, num_envs, rng)


class NativeEnv:
    """M x N environments of a native family, stepped as one tensor."""

    def __init__(self, family: NativeFamily, task: Task, num_envs: int, rng: torch.Generator):
        first = next(iter(task.values()))
        self.family, self.rng = family, rng
        self.task = {name: value[:, None] for name, value in task.items()}  # [M, 1]
        self.shape = (len(first), num_envs)
        self.like = first
        self.state = family.initial_state(self.shape, first, rng)  # [M, N, S]
        self.clock = torch.zeros(self.shape, dtype=torch.long, device=first.device)  # [steps] since the episode began
        self.obs = family.observe(self.state)

    def step(self, action: Tensor) -> Step:
        """Act in every environment; ``action [M, N]``. Episodes that end start anew within the same step."""
        state, reward, terminated = self.family.dynamics(self.state, action, self.task)
        self.clock = self.clock + 1
        truncated = self.clock >= self.family.spec.horizon
        ended = terminated | truncated
        fresh = self.family.initial_state(self.shape, self.like, self.rng)
        self.state = torch.where(ended[..., None], fresh, state)
        self.clock = torch.where(ended, 0, self.clock)
        self.obs = self.family.observe(self.state)
        return Step(self.family.observe(state), reward, terminated, truncated, self.obs)

    def state_dict(self) -> State:
        return {"state": self.state, "clock": self.clock, "rng": self.rng.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["state"].shape != self.state.shape or state["clock"].shape != self.shape:
            raise ValueError("the saved environments have another shape")
        self.state = state["state"].to(self.like.device)
        self.clock = state["clock"].to(self.like.device)
        self.rng.set_state(state["rng"].cpu())
        self.obs = self.family.observe(self.state)
