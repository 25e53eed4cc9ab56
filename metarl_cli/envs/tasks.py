"""Tasks drawn from ranges: what every family whose tasks are physical quantities shares, native or simulated.

Train, validation and test tasks come from the same ranges and disjoint streams; out-of-distribution ones from wider ranges.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from metarl_cli.config.base import StrictModel
from metarl_cli.interfaces import Family, Task

Range = Annotated[list[float], Field(min_length=2, max_length=2)]
Columns = dict[str, np.ndarray]  # one array [num, ...] per task parameter


class TasksConfig(StrictModel):
    """Values every family with ranges has."""

    ranges: dict[str, Range] = Field(description="[low, high] of each task parameter, drawn uniformly")
    ood_ranges: dict[str, Range] = Field(
        description="the wider [low, high] of out-of-distribution tasks; none: the family has no such split"
    )

    @model_validator(mode="after")
    def _ranges_are_nested(self) -> TasksConfig:
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


class Tasks(Family):
    """The tasks of a family.

    Args:
        config: the ranges.
        device: where the tasks live.
    """

    max_envs: int | None = None
    parameters: dict[str, float]  # name -> nominal value, SI units
    positive: frozenset[str] = frozenset()  # parameters that make no sense at zero or below
    finite = False  # whether the tasks are so few that the splits share them
    reversed: str | None = None  # the actuator's parameter, where it is negative in half of the tasks; its range is of its size

    def __init__(self, config: TasksConfig, device: torch.device | str = "cpu"):
        unknown = [name for name in config.ranges if name not in self.parameters]
        if unknown:
            raise ValueError(f"no such task parameter: {', '.join(unknown)}; known: {', '.join(self.parameters)}")
        for name, (low, _) in [*config.ranges.items(), *config.ood_ranges.items()]:
            self._check_positive(name, low)
        self.ranges, self.ood_ranges = config.ranges, config.ood_ranges
        self.finite = self.finite or not config.ranges  # one task
        self.device = torch.device(device)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits the family has."""
        return ("train", "validation", "test", *(["ood"] if self.ood_ranges else []))

    def _check_positive(self, name: str, value: float) -> None:
        if name in self.positive and value <= 0:
            raise ValueError(f"{name} must be above 0, got {value:g}")

    def place(self, unit: Columns, ranges: dict[str, Range]) -> Columns:
        """Parameters from numbers uniform in [0, 1); a parameter without a range keeps its nominal value."""
        bounds = {name: ranges.get(name, [value, value]) for name, value in self.parameters.items()}
        signs: Columns = {}
        if self.reversed is not None:
            centred = 2 * unit[self.reversed] - 1  # its sign is the actuator's, its size the place in the range
            unit, signs = {**unit, self.reversed: np.abs(centred)}, {self.reversed: np.where(centred < 0, -1, 1)}
        return {name: signs.get(name, 1) * (low + (high - low) * unit[name]) for name, (low, high) in bounds.items()}

    def draw(self, num: int, ranges: dict[str, Range], rng: np.random.Generator) -> Columns:
        """``num`` tasks; row by row, so that the first n do not depend on ``num``."""
        unit = rng.random((num, len(self.parameters)))
        return self.place(dict(zip(self.parameters, unit.T, strict=True)), ranges)

    def sample_tasks(self, num: int, split: str, rng: np.random.Generator) -> Task:
        """Draw ``num`` tasks ``{name: [num, ...]}`` of a split.

        The splits are disjoint because the caller derives one stream per split; ``ood`` tasks come from the wider ranges
        and lie outside the training range in at least one parameter.

        Raises:
            ValueError: for a split the family does not have.
        """
        if split not in self.splits:
            raise ValueError(f"no split {split!r}; this family has {', '.join(self.splits)}")
        if split != "ood":
            return self._tensors(self.draw(num, self.ranges, rng))
        wide = {**self.ranges, **self.ood_ranges}
        rows = [self.draw(0, wide, rng)]
        while len(rows) <= num:
            row = self.draw(1, wide, rng)
            if self.outside(row)[0]:
                rows.append(row)
        return self._tensors({name: np.concatenate([row[name] for row in rows]) for name in rows[0]})

    def _tensors(self, rows: Columns) -> Task:
        return {k: torch.as_tensor(v, dtype=torch.get_default_dtype(), device=self.device) for k, v in rows.items()}

    def outside(self, rows: Columns) -> np.ndarray:
        """``[num]`` whether a task lies outside the training range in at least one parameter."""
        sizes = {name: np.abs(value) if name == self.reversed else value for name, value in rows.items()}
        hits = [(sizes[k] < low) | (sizes[k] > high) for k, (low, high) in self.ranges.items()]
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

    def groups(self, task: Task) -> dict[str, Tensor]:
        """None: the returns of all tasks compare."""
        return {}
