"""The configuration of a Gymnasium environment as a family of tasks."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator
from typing_extensions import TypeAliasType, override

from metarl_cli.config.base import Operational, StrictModel
from metarl_cli.config.messages import known_options
from metarl_cli.envs import packages
from metarl_cli.envs.gymnasium.addresses import FORMS, LASTING, PATTERN, Address
from metarl_cli.envs.gymnasium.wrappers import WRAPPERS
from metarl_cli.envs.tasks import Choice, Distributions, TasksConfig, Whole

Number = bool | int | float
LARGEST_WHOLE = 2**24  # up to which numbers of 32 bits hold every whole one
Plain = TypeAliasType("Plain", "bool | int | float | str | list[Plain] | dict[str, Plain] | None")
Row = dict[str, Number | str]  # the parameters of one task
Place = Annotated[str, Field(pattern=PATTERN)]
FILE = r"\w[\w.-]*"  # a name without a folder
RESERVED = ("id", "render_mode", "max_episode_steps", "disable_env_checker")  # arguments of gymnasium.make itself


class Parameter(StrictModel):
    """A number, true or false, or one of a few texts, that tasks vary."""

    nominal: Number | str = Field(description="its value in the unchanged environment")
    set: Place | list[Place] = Field(description=f"where it goes, one address or several: {FORMS}")
    folder: Annotated[str, Field(pattern=r"^\w+(/\w+)*$")] | None = Field(
        default=None, description="of the package, where its texts are names of files in it; none: they are no files"
    )

    @property
    def addresses(self) -> list[Address]:
        """Where it goes."""
        return [Address.parse(text) for text in ([self.set] if isinstance(self.set, str) else self.set)]


class Derived(StrictModel):
    """An attribute that the simulator computes from others only when it is built."""

    operation: Literal["sum", "product"] = Field(description="how the others are combined")
    of: list[str] = Field(min_length=1, description="the attributes it derives from")


class WrapperConfig(StrictModel):
    """A wrapper of the list that a configuration may name."""

    name: str = Field(description="the wrapper, as Gymnasium, MiniGrid or this package calls it")
    arguments: dict[str, Plain] = Field(description="its keyword arguments")


class Config(TasksConfig):
    """An environment, and what its tasks vary."""

    id: str = Field(pattern=r"^[\w/.-]+$", description="the environment's name in Gymnasium; package:name, too")
    package: Annotated[str, Field(pattern=r"^\w+(\.\w+)*$")] | None = Field(
        default=None, description="the module that registers it with Gymnasium when it is imported; none: Gymnasium knows it"
    )
    horizon: int = Field(gt=0, description="time limit of an episode [steps]")
    constructor: dict[str, Plain] = Field(description="keyword arguments of the environment, the same for all tasks")
    parameters: dict[str, Parameter] = Field(description="what tasks may vary; nothing: a family of one task")
    choices: dict[str, list[Number] | list[str]] = Field(description="the values of parameters that take only a few")
    test_choices: dict[str, list[Number] | list[str]] = Field(
        default_factory=dict,
        description="the values of test tasks, in place of the choices, which training and validation have",
    )
    ood_choices: dict[str, list[Number] | list[str]] = Field(description="further values, of out-of-distribution tasks alone")
    derived: dict[str, Derived] = Field(description="attributes to recompute after the parameters are set")
    action_mask: Annotated[str, Field(pattern=r"^(info|observation)\.\w+$")] | None = Field(
        default=None,
        description="where the environment says which actions can be taken: info.KEY or observation.KEY; none: all can",
    )
    wrappers: list[WrapperConfig] = Field(description="wrappers of the environment, the innermost first")
    idle: Annotated[int, Operational()] = Field(
        default=256, ge=0, description="environments kept for tasks that come again; each takes the memory of its simulator"
    )
    processes: Annotated[int, Operational()] = Field(gt=0, description="processes that share the environments; 1 is this one")

    @model_validator(mode="before")
    @classmethod
    def _package_in_id(cls, values: Any) -> Any:
        """Read ``id: package:name``, Gymnasium's own way to say which module registers an environment."""
        if not isinstance(values, dict) or not isinstance(name := values.get("id"), str) or name.count(":") != 1:
            return values
        package, name = name.split(":")
        if values.get("package") not in (None, package):
            raise ValueError(f"id names the package {package}, and package is {values['package']}")
        return {**values, "id": name, "package": package}

    @model_validator(mode="after")
    def _names_are_known(self) -> Config:
        for name in self.choices:
            if name not in self.parameters:
                raise ValueError(f"choices of {name}: no such task parameter{known_options(name, self.parameters)}")
            if name in self.ranges:
                raise ValueError(f"{name} has both a range and choices")
            if not self.choices[name]:
                raise ValueError(f"choices of {name} must not be empty")
        if self.action_mask and any(wrapper.name == "PermutedActions" for wrapper in self.wrappers):
            raise ValueError("action_mask is of the environment's own actions, which PermutedActions numbers otherwise")
        for kind, taken in (("ood_choices", [self.choices, self.test_choices]), ("test_choices", [self.choices])):
            for name, values in getattr(self, kind).items():
                if (
                    not values
                    or name not in self.choices
                    or {*values} & {value for each in taken for value in each.get(name, [])}
                ):
                    raise ValueError(f"{kind} of {name} must be other values than its choices")
        for name in self.choices:
            numbers = sorted(value for value in self.every_choice(name) if not isinstance(value, str))
            for one, other in pairwise(numbers):
                if np.isclose(one, other):
                    raise ValueError(f"choices of {name} must differ more than {one} and {other} do")
            if any(isinstance(value, int) and abs(value) > LARGEST_WHOLE for value in numbers):
                raise ValueError(f"choices of {name} must be within ±{LARGEST_WHOLE:,}: a task holds no larger whole number")
        for name, parameter in self.parameters.items():
            texts = {isinstance(value, str) for value in (parameter.nominal, *self.every_choice(name))}
            if len(texts) > 1 or (texts == {True} and parameter.nominal not in self.every_choice(name)):
                raise ValueError(f"{name} must be a number, or one of choices that are texts; its nominal value is one of them")
            files = [parameter.nominal, *self.every_choice(name)] if parameter.folder else []
            if files and not (self.package and all(isinstance(file, str) and re.fullmatch(FILE, file) for file in files)):
                raise ValueError(f"{name} has a folder: its values must be names of files there, and package says whose it is")
        for name in self._seeds():
            levels = [*self.ranges.get(name, []), *self.every_choice(name)]
            if not all(isinstance(level, int | float) and level in range(LARGEST_WHOLE + 1) for level in levels):
                raise ValueError(f"{name} is a seed: its values must be whole numbers from 0 to {LARGEST_WHOLE:,}")
            if name in self.ood_ranges:
                raise ValueError(
                    f"{name} is a seed: levels of other seeds are no other distribution; leave it out of ood_ranges"
                )
        for wrapper in self.wrappers:
            if wrapper.name not in WRAPPERS:
                raise ValueError(f"no such wrapper: {wrapper.name}{known_options(wrapper.name, WRAPPERS)}")
        for keyword in [*self.constructor, *(path.split(".")[0] for path in self._targets("constructor"))]:
            if keyword in RESERVED:
                raise ValueError(f"constructor.{keyword} cannot be set by a configuration")
        used = [wrapper.name for wrapper in self.wrappers]
        for target in self._targets("wrapper"):
            name = target.split(".")[0]
            if used.count(name) != 1:
                raise ValueError(f"set: wrapper.{target}: {name} must be one of wrappers, once; it has {', '.join(used)}")
        paths = [*(path for how in (*LASTING, "reset") for path in self._targets(how)), *self.derived]
        for path in [*paths, *(p for d in self.derived.values() for p in d.of)]:
            if any(not part or part.startswith("_") for part in path.split(".")):
                raise ValueError(f"attribute {path} is not public")
        return self

    @override
    def distributions(self, signed: Collection[str] = ()) -> tuple[Distributions, Distributions]:
        inside, outside = super().distributions(signed)
        inside |= {name: Whole(low, middle) for name, (low, middle, _) in self._levels().items()}
        choices = {name: self._choice(name, values) for name, values in self.choices.items()}
        wider = {name: self._choice(name, [*values, *self.ood_choices.get(name, [])]) for name, values in self.choices.items()}
        return inside | choices, inside | outside | wider if outside or self.ood_choices else {}

    @override
    def tested(self) -> Distributions:
        levels = {name: Whole(middle + 1, high) for name, (_, middle, high) in self._levels().items() if middle < high}
        return levels | {name: self._choice(name, values) for name, values in self.test_choices.items()}

    def _seeds(self) -> list[str]:
        """Return the parameters that are the seed of every episode."""
        return [name for name, each in self.parameters.items() if any(address.how == "seed" for address in each.addresses)]

    def _levels(self) -> dict[str, tuple[int, int, int]]:
        """Return the ranges of seeds, with the last one of training and validation; test tasks have those after it."""
        whole = {
            name: (round(self.ranges[name][0]), round(self.ranges[name][1])) for name in self._seeds() if name in self.ranges
        }
        return {name: (low, (low + high) // 2, high) for name, (low, high) in whole.items()}

    def _choice(self, name: str, values: Sequence[Number | str]) -> Choice:
        return Choice(tuple(self.number(name, value) for value in values))

    def every_choice(self, name: str) -> list[Number | str]:
        """Return the choices of a parameter: of training, then of test, then of ood tasks; none where it has a range."""
        return [value for each in (self.choices, self.test_choices, self.ood_choices) for value in each.get(name, [])]

    def number(self, name: str, value: Number | str) -> float:
        """Return the number by which a task holds the value of a parameter: of a text, its place among the choices.

        Raises:
            ValueError: for a text that is no choice.
        """
        every = self.every_choice(name)
        if every and isinstance(every[0], str) and not isinstance(value, str):
            value = f"{value:g}"  # a text that looks like a number
        if not isinstance(value, str):
            return float(value)
        if value not in every:
            raise ValueError(f"{name} must be one of {', '.join(map(str, every))}, got {value}")
        return float(every.index(value))

    def value(self, name: str, number: float) -> Number | str:
        """Return what the simulator is given: a text, true or false, a whole number where all choices are such, or a number."""
        every = self.every_choice(name)
        if every and isinstance(every[0], str):
            return every[round(number)]
        if isinstance(self.parameters[name].nominal, bool):
            return bool(round(number))
        if name in self.ranges and name in self._seeds():
            return round(number)
        return round(number) if every and all(isinstance(choice, int) for choice in every) else number

    def placed(self, row: Row) -> Iterator[tuple[Address, Number | str]]:
        """Yield every address with the value that a task has there.

        Raises:
            ValueError: if the package has not the file that a task names.
        """
        for name, parameter in self.parameters.items():
            value = row[name]
            if parameter.folder and self.package:
                value = packages.file_of(self.package, f"{parameter.folder}/{value}")
            for address in parameter.addresses:
                yield address, value

    def _targets(self, how: str) -> list[str]:
        """Return what the addresses of one kind name."""
        return [a.path for parameter in self.parameters.values() for a in parameter.addresses if a.how == how]
