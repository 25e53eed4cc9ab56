"""The configuration of a Gymnasium environment as a family of tasks."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import override

from metarl_cli.config.base import Operational, StrictModel
from metarl_cli.config.messages import known_options
from metarl_cli.envs.gymnasium.wrappers import WRAPPERS
from metarl_cli.envs.tasks import Choice, Distributions, TasksConfig

Number = int | float
Plain = bool | int | float | str | list[bool | int | float | str]
Row = dict[str, Number]  # the parameters of one task
RESERVED = ("id", "render_mode", "max_episode_steps", "disable_env_checker")  # arguments of gymnasium.make itself


class Parameter(StrictModel):
    """A number that tasks vary."""

    nominal: Number = Field(description="its value in the unchanged environment")
    set: str = Field(
        pattern=r"^(constructor\.\w+|(attribute|scale)\.[\w.]+|wrapper\.\w+\.\w+)$",
        description="where it goes: constructor.KEYWORD, attribute.PATH, scale.PATH or wrapper.NAME.ARGUMENT",
    )


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

    id: str = Field(pattern=r"^[\w/.-]+$", description="the environment's name in Gymnasium")
    horizon: int = Field(gt=0, description="time limit of an episode [steps]")
    constructor: dict[str, Plain] = Field(description="keyword arguments of the environment, the same for all tasks")
    parameters: dict[str, Parameter] = Field(min_length=1, description="what tasks may vary")
    choices: dict[str, list[Number]] = Field(description="the values of parameters that take only a few")
    ood_choices: dict[str, list[Number]] = Field(description="further values, of out-of-distribution tasks alone")
    derived: dict[str, Derived] = Field(description="attributes to recompute after the parameters are set")
    wrappers: list[WrapperConfig] = Field(description="wrappers of the environment, the innermost first")
    processes: Annotated[int, Operational()] = Field(gt=0, description="processes that share the environments; 1 is this one")

    @model_validator(mode="after")
    def _names_are_known(self) -> Config:
        for name in self.choices:
            if name not in self.parameters:
                raise ValueError(f"choices of {name}: no such task parameter{known_options(name, self.parameters)}")
            if name in self.ranges:
                raise ValueError(f"{name} has both a range and choices")
            if not self.choices[name]:
                raise ValueError(f"choices of {name} must not be empty")
        for name, values in self.ood_choices.items():
            if not values or name not in self.choices or set(values) & set(self.choices[name]):
                raise ValueError(f"ood_choices of {name} must be other values than its choices")
        for wrapper in self.wrappers:
            if wrapper.name not in WRAPPERS:
                raise ValueError(f"no such wrapper: {wrapper.name}{known_options(wrapper.name, WRAPPERS)}")
        for keyword in [*self.constructor, *self._targets("constructor")]:
            if keyword in RESERVED:
                raise ValueError(f"constructor.{keyword} cannot be set by a configuration")
        used = [wrapper.name for wrapper in self.wrappers]
        for target in self._targets("wrapper"):
            name = target.split(".")[0]
            if used.count(name) != 1:
                raise ValueError(f"set: wrapper.{target}: {name} must be one of wrappers, once; it has {', '.join(used)}")
        paths = [*self._targets("attribute"), *self._targets("scale"), *self.derived]
        for path in [*paths, *(p for d in self.derived.values() for p in d.of)]:
            if any(not part or part.startswith("_") for part in path.split(".")):
                raise ValueError(f"attribute {path} is not public")
        return self

    @override
    def distributions(self, signed: Collection[str] = ()) -> tuple[Distributions, Distributions]:
        inside, outside = super().distributions(signed)
        choices = {name: Choice(tuple(values)) for name, values in self.choices.items()}
        wider = {name: Choice((*values, *self.ood_choices.get(name, []))) for name, values in self.choices.items()}
        return inside | choices, inside | outside | wider if outside or self.ood_choices else {}

    def _targets(self, kind: str) -> list[str]:
        """Return what the addresses of one kind name."""
        addresses = [p.set.split(".", 1) for p in self.parameters.values()]
        return [target for how, target in addresses if how == kind]
