"""The base of every configuration, and the marks its fields may carry."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from types import ModuleType
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, field_validator
from pydantic_core import CoreSchema, core_schema

LARGEST = 2**63 - 1  # of torch's whole numbers
Share = Annotated[float, Field(ge=0, le=1)]


class StrictModel(BaseModel):
    """A frozen configuration: unknown keys, wrong types and missing values are errors; the values live in ``conf/``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @field_validator("*", mode="before")
    @classmethod
    def _fits_a_tensor(cls, value: object) -> object:
        if isinstance(value, int) and abs(value) > LARGEST:
            raise ValueError(f"must be within ±{LARGEST:.3g}")
        return value


class Part(NamedTuple):
    """Marks a field that holds a :class:`Group` of a kind of modules, or with ``many`` a dict of such groups."""

    kind: str
    many: bool = False


class Operational:
    """Marks a field that cannot change a result: where a run lies, how fast it computes, how often it logs."""


class Later:
    """Marks a field that came after runs had names: while it has its default, the values that can change a result lack it."""


@dataclass(frozen=True)
class Group:
    """A parsed group of a configuration: the module it names, and that module's ``Config``.

    ``model_dump`` gives the values it was parsed from, ``{"module": name, **values}``.
    """

    name: str
    module: ModuleType
    config: Any  # an instance of module.Config
    instance: Any = field(default=None, compare=False, repr=False)  # what validation built of it on the CPU, if anything

    @property
    def values(self) -> dict[str, Any]:
        """The values as in yaml."""
        return {"module": self.name, **self.config.model_dump(by_alias=True)}

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.name, self.module.__name__, self.config)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        dump = core_schema.plain_serializer_function_ser_schema(lambda group: group.values)
        return core_schema.is_instance_schema(cls, serialization=dump)


def _restore(name: str, module: str, config: Any) -> Group:
    return Group(name, importlib.import_module(module), config)


def result_values(config: BaseModel) -> dict[str, Any]:
    """Return the values of a configuration that can change a result: all but those marked :class:`Operational`.

    Names of runs and studies are hashes of them, so those marked :class:`Later` are left out while they have their defaults.
    """
    kept = dict[str, Any]()
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        later = any(isinstance(mark, Later) for mark in info.metadata)
        if not _operational(info.metadata) and not (later and value == info.default):
            kept[info.alias or name] = value
    return {name: _plain(value) for name, value in kept.items()}


def operational_keys(config: BaseModel, prefix: str = "") -> set[str]:
    """Return the dotted keys of the fields marked :class:`Operational`, those inside groups included."""
    keys: set[str] = set()
    for name, info in type(config).model_fields.items():
        key = f"{prefix}{info.alias or name}"
        keys |= {key} if _operational(info.metadata) else _keys_within(getattr(config, name), f"{key}.")
    return keys


def _operational(marks: list[Any]) -> bool:
    return any(isinstance(mark, Operational) for mark in marks)


def _plain(value: Any) -> Any:
    if isinstance(value, Group):
        return {"module": value.name, **result_values(value.config)}
    if isinstance(value, BaseModel):
        return result_values(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _keys_within(value: Any, prefix: str) -> set[str]:
    if isinstance(value, Group):
        return operational_keys(value.config, prefix)
    if isinstance(value, BaseModel):
        return operational_keys(value, prefix)
    if isinstance(value, dict):
        return {key for name, item in value.items() for key in _keys_within(item, f"{prefix}{name}.")}
    return set()
