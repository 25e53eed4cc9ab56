"""Distributions of task parameters, shared by every family whose tasks are physical quantities, native or simulated.

Train, validation and test tasks come from the same distributions and disjoint streams, but for parameters whose test tasks have
values of their own; out-of-distribution (ood) tasks come from wider distributions.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import override

from metarl_cli.config.base import StrictModel
from metarl_cli.interfaces import Family, Task

Range = Annotated[list[float], Field(min_length=2, max_length=2)]
MOST_LISTED = 100_000  # tasks of which each is drawn once before any is drawn again
Columns = dict[str, np.ndarray]  # one array [num, ...] per task parameter


def shares(family: Family, split: str) -> bool:
    """Return whether the tasks of a split are among those of training, because they are so few."""
    return family.finite and split not in family.held_out


def in_words(parameters: Mapping[str, float | str]) -> str:
    """Return the parameters of one task for the end of a message."""
    return ", task " + " ".join(map(named, parameters, parameters.values())) if parameters else ""


def named(name: str, value: float | str) -> str:
    """Return a parameter of a task with its value."""
    return f"{name}={value}" if isinstance(value, str) else f"{name}={value:g}"


class Distribution(ABC):
    """The distribution of one task parameter."""

    @property
    @abstractmethod
    def extremes(self) -> tuple[float, ...]:
        """The values that stand for all others when a distribution is validated."""

    @property
    @abstractmethod
    def finite(self) -> bool:
        """Whether the parameter takes only a few values."""

    @abstractmethod
    def sample(self, unit: np.ndarray) -> np.ndarray:
        """Return parameters ``[num]`` from numbers ``unit [num]`` that are uniform in [0, 1)."""

    @abstractmethod
    def contains(self, values: np.ndarray) -> np.ndarray:
        """Return whether each of ``values [num]`` can be drawn."""

    def standard(self, values: Tensor) -> Tensor:
        """Return ``values [M]`` as numbers ``[M, F]`` for a network: -1 and 1 at the extremes, beyond them outside."""
        low, high = min(self.extremes), max(self.extremes)
        return ((2 * values - low - high) / (high - low or 1.0))[:, None]


@dataclass(frozen=True)
class Between(Distribution):
    """A distribution between two bounds.

    Attributes:
        low: the lower bound.
        high: the upper bound.
    """

    low: float
    high: float

    @property
    @override
    def extremes(self) -> tuple[float, ...]:
        return (self.low, self.high)

    @property
    @override
    def finite(self) -> bool:
        return self.low == self.high


@dataclass(frozen=True)
class Uniform(Between):
    """Uniform in [low, high].

    Attributes:
        signed: whether the value is negated in half of the tasks; the bounds are those of its size.
    """

    signed: bool = False

    def __str__(self) -> str:
        return f"{'+-' if self.signed else ''}[{self.low:g}, {self.high:g}]"

    @override
    def sample(self, unit: np.ndarray) -> np.ndarray:
        if not self.signed:
            return self.low + (self.high - self.low) * unit
        centred = 2 * unit - 1  # its sign is the parameter's, its size the place between the bounds
        size: np.ndarray = self.low + (self.high - self.low) * np.abs(centred)
        return np.where(centred < 0, -size, size)

    @override
    def standard(self, values: Tensor) -> Tensor:
        """Return the place between the bounds; of a value of either sign that of its size, and its sign."""
        if not self.signed:
            return super().standard(values)
        return torch.cat([super().standard(values.abs()), values.sign()[:, None]], -1)

    @override
    def contains(self, values: np.ndarray) -> np.ndarray:
        size = np.abs(values) if self.signed else values
        return np.asarray((self.low <= size) & (size <= self.high))


@dataclass(frozen=True)
class LogUniform(Between):
    """Uniform in the logarithm between those of low and high, both above 0."""

    def __str__(self) -> str:
        return f"log [{self.low:g}, {self.high:g}]"

    @override
    def sample(self, unit: np.ndarray) -> np.ndarray:
        return np.asarray(np.clip(self.low * (self.high / self.low) ** unit, self.low, self.high))

    @override
    def contains(self, values: np.ndarray) -> np.ndarray:
        return np.asarray((self.low <= values) & (values <= self.high))

    @override
    def standard(self, values: Tensor) -> Tensor:
        """Return the place of the logarithm between those of the bounds."""
        return Uniform(math.log(self.low), math.log(self.high)).standard(values.log())


@dataclass(frozen=True)
class Whole(Between):
    """A whole number from low to high, both included, all equally likely."""

    @property
    def values(self) -> range:
        """Every number."""
        return range(round(self.low), round(self.high) + 1)

    def __str__(self) -> str:
        return f"{{{self.low:.0f}, ..., {self.high:.0f}}}"

    @property
    @override
    def finite(self) -> bool:
        return True

    @override
    def sample(self, unit: np.ndarray) -> np.ndarray:
        return np.floor(self.low + (self.high - self.low + 1) * unit)

    @override
    def contains(self, values: np.ndarray) -> np.ndarray:
        return np.asarray((self.low <= values) & (values <= self.high) & (values == np.round(values)))


@dataclass(frozen=True)
class Choice(Distribution):
    """One of a few values, all equally likely."""

    values: tuple[float, ...]

    @property
    @override
    def extremes(self) -> tuple[float, ...]:
        return self.values

    @property
    @override
    def finite(self) -> bool:
        return True

    def __str__(self) -> str:
        return f"{{{', '.join(f'{value:g}' for value in self.values)}}}"

    @override
    def sample(self, unit: np.ndarray) -> np.ndarray:
        return np.take(np.asarray(self.values, float), (unit * len(self.values)).astype(int))

    @override
    def contains(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(np.isclose(np.asarray(values)[..., None], self.values).any(-1))

    @override
    def standard(self, values: Tensor) -> Tensor:
        """Return the place between the extremes; of more than two values also which it is, as they may have no order."""
        place = super().standard(values)
        which = torch.isclose(values[:, None], values.new_tensor(self.values)).to(place.dtype)
        return torch.cat([place, which], -1) if len(self.values) > 2 else place


Distributions = dict[str, Distribution]  # of each parameter that varies


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
            if inner is None:
                raise ValueError(f"ood_ranges.{name}: {name} must have a range in ranges, too, within this one")
            if not (low <= inner[0] and inner[1] <= high):
                raise ValueError(f"ood_ranges.{name} [{low}, {high}] must contain ranges.{name} {inner}")
        if self.ood_ranges and all(self.ranges[name] == wide for name, wide in self.ood_ranges.items()):
            raise ValueError("ood_ranges must be wider than ranges for at least one parameter")
        return self

    def distributions(self, signed: Collection[str] = ()) -> tuple[Distributions, Distributions]:
        """Return the distributions of training tasks and of ood tasks; the latter are empty without an ood split.

        Args:
            signed: the parameters that are negative in half of the tasks.
        """
        inside: Distributions = {name: Uniform(low, high, name in signed) for name, (low, high) in self.ranges.items()}
        wider = {name: Uniform(low, high, name in signed) for name, (low, high) in self.ood_ranges.items()}
        return inside, {**inside, **wider} if wider else {}

    def tested(self) -> Distributions:
        """Return the distributions of the parameters whose values in test tasks no training task has."""
        return {}


class ParametricFamily(Family):
    """A family whose task parameters are drawn independently of each other.

    A subclass sets ``parameters``, and overrides ``check`` where it allows only some values.

    Args:
        config: the ranges of the parameters.
        device: where the tasks live.
        signed: the parameters that are negative in half of the tasks; their ranges are of their size.

    Raises:
        ValueError: for an unknown parameter, or a range with values that the family does not allow.
    """

    parameters: Mapping[str, float] = MappingProxyType({})  # name -> nominal value, SI units
    positive: Collection[str] = frozenset()  # parameters that must be above 0

    def __init__(self, config: TasksConfig, device: torch.device | str = "cpu", signed: Collection[str] = ()):
        unknown = [name for name in config.ranges if name not in self.parameters]
        if unknown:
            raise ValueError(f"no such task parameter: {', '.join(unknown)}; known: {', '.join(self.parameters)}")
        self.device = torch.device(device)
        inside, self.ood_distributions = config.distributions(signed)
        fixed_size = {name: Uniform(self.parameters[name], self.parameters[name], signed=True) for name in signed}
        self.distributions = fixed_size | inside
        self.test_distributions = self.distributions | config.tested()
        for distributions in (self.distributions, self.test_distributions, self.ood_distributions):
            for name, distribution in distributions.items():
                for value in distribution.extremes:
                    self.check(name, value)
        if config.tested():
            self.held_out = ("test", *self.held_out)
        self.finite = self.finite or all(distribution.finite for distribution in self.distributions.values())
        if self.ood_distributions:
            self.splits = (*self.splits, "ood")

    def nominal_value(self, name: str) -> float:
        """Return the value of a parameter in a task that does not name it.

        Raises:
            ValueError: if no task has this parameter.
        """
        if name not in self.parameters:
            raise ValueError(f"no such task parameter: {name}; known: {', '.join(self.parameters)}")
        return self.parameters[name]

    def check(self, name: str, value: float) -> None:
        """Check one value of a parameter.

        Raises:
            ValueError: if the family does not allow it.
        """
        if name in self.positive and value <= 0:
            raise ValueError(f"{name} must be above 0, got {value:g}")
        drawn = [each[name] for each in (self.distributions, self.test_distributions, self.ood_distributions) if name in each]
        if any(isinstance(each, Whole) for each in drawn) and value != round(value):
            raise ValueError(f"{name} must be a whole number, got {value:g}")
        known = {number: None for each in drawn if isinstance(each, Choice) for number in each.values}  # in this order
        if known and not any(each.contains(np.asarray(value)) for each in drawn):
            raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, got {value:g}")

    def sample_tasks(self, num: int, split: str, rng: np.random.Generator) -> Task:
        """Draw ``num`` tasks ``{name: [num, ...]}`` of a split.

        The splits are disjoint because the caller derives one stream per split; ood tasks come from the wider distributions
        and lie outside the training distribution in at least one parameter.

        Raises:
            ValueError: for a split that the family does not have.
        """
        if split not in self.splits:
            raise ValueError(f"no split {split!r}; this family has {', '.join(self.splits)}")
        columns, dtype = self.draw(num, split, rng), torch.get_default_dtype()
        return {name: torch.as_tensor(column, dtype=dtype, device=self.device) for name, column in columns.items()}

    def draw(self, num: int, split: str, rng: np.random.Generator) -> Columns:
        """Draw the parameters of ``num`` tasks of a split, row by row, so that the first n do not depend on ``num``.

        Where all that varies are choices or whole numbers, of at most ``MOST_LISTED`` combinations, each task is drawn once
        before any is drawn again.
        """
        if split == "ood":
            rows = [self._independent(0, self.ood_distributions, rng)]
            while len(rows) <= num:
                row = self._independent(1, self.ood_distributions, rng)
                if self.outside(row)[0]:
                    rows.append(row)
            return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        distributions = self.test_distributions if split == "test" else self.distributions
        choices = {name: d.values for name, d in distributions.items() if isinstance(d, Choice | Whole)}
        if not choices or len(choices) < len(distributions) or math.prod(map(len, choices.values())) > MOST_LISTED:
            return self._independent(num, distributions, rng)
        every = list(itertools.product(*choices.values()))
        order = np.concatenate([rng.permutation(len(every)) for _ in range(-(-num // len(every)))])[:num]
        drawn = dict(zip(choices, np.asarray(every, float)[order].T, strict=True))
        return {name: drawn.get(name, np.full(num, nominal)) for name, nominal in self.parameters.items()}

    def _independent(self, num: int, distributions: Distributions, rng: np.random.Generator) -> Columns:
        """Draw each parameter of ``num`` tasks on its own; those that do not vary have their nominal values."""
        unit = dict(zip(self.parameters, rng.random((num, len(self.parameters))).T, strict=True))
        constant = {name: np.full(num, float(nominal)) for name, nominal in self.parameters.items()}
        return constant | {name: distribution.sample(unit[name]) for name, distribution in distributions.items()}

    def outside(self, columns: Columns) -> np.ndarray:
        """Return whether each task ``[num]`` lies outside the training distribution in at least one parameter."""
        within = [distribution.contains(columns[name]) for name, distribution in self.distributions.items()]
        return np.asarray(~np.all(within, axis=0))

    @override
    def named_task(self, values: dict[str, float]) -> Task:
        for name, value in values.items():
            self.nominal_value(name)
            self.check(name, value)
        merged = {**self.parameters, **values}
        return {name: torch.full((1,), float(value), device=self.device) for name, value in merged.items()}

    @override
    def knowledge(self, task: Task) -> Tensor | None:
        """Return every parameter that varies, at -1 and 1 where its training distribution ends; None where none does."""
        varying = {name: d for name, d in self.distributions.items() if len(set(d.sample(np.array([0.0, 0.999])))) > 1}
        parts = [distribution.standard(task[name]) for name, distribution in varying.items()]
        return torch.cat(parts, -1) if parts else None

    @override
    def untrained(self, values: dict[str, float]) -> list[str]:
        if not self.distributions:  # what tasks have in common are no parameters that are drawn alone
            return []
        beyond = []
        for name, value in values.items():
            nominal = Choice((self.nominal_value(name),))
            inside, wider = self.distributions.get(name, nominal), self.ood_distributions.get(name)
            if not inside.contains(np.asarray(value)):
                where = "" if wider is None else "within" if wider.contains(np.asarray(value)) else "and outside"
                tested = f", {where} {wider} of the out-of-distribution tasks" if where else ""
                beyond.append(f"{name}={value:g} is outside {inside} of the training tasks{tested}")
        return beyond
