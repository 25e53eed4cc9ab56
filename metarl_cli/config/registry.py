"""From a composed configuration to objects: validation with every problem at once, and modules found by name.

A group says ``module: maml`` and means ``metarl_cli.algos.maml``; the rest of the group is that module's ``Config``. Installed
packages add modules through the entry points ``metarl.algos``, ``metarl.learners`` and ``metarl.envs``. No path, no
``_target_``, nothing instantiated from a file. A ``Config`` may hold groups of its own, marked by :class:`Part`.
"""

from __future__ import annotations

import copy
import importlib
import math
import pkgutil
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce
from importlib.metadata import entry_points
from operator import getitem
from types import ModuleType
from typing import Any, NamedTuple, cast

from pydantic import BaseModel, ValidationError

from metarl_cli.config.messages import choose, describe, one_line, show
from metarl_cli.config.models import MODELS, AdaptConfig, TestConfig, TrainConfig
from metarl_cli.errors import UserError

GROUPS = ("env", "learner", "algo")  # of ``metarl train``; env first: a learner needs its spec
# kind of group -> folder of its modules, and the class each module has beside its Config
MODULES = {
    "env": ("envs", "Family"),
    "learner": ("learners", "Learner"),
    "algo": ("algos", "Algo"),
    "genome": ("evolution.genomes", "Genome"),
    "lifetime": ("evolution.lifetimes", "Lifetime"),
    "search": ("evolution.searches", "Search"),
}


class Part(NamedTuple):
    """Marks a field of a ``Config`` that is itself a group of a kind with modules, or with ``many`` a dict of such groups."""

    kind: str
    many: bool = False


class ConfigError(UserError):
    """A configuration that cannot run; ``problems`` says everything wrong with it, one line each."""

    def __init__(self, problems: list[str]):
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)


def validate(command: str, values: dict[str, Any]) -> TrainConfig | TestConfig | AdaptConfig:
    """The checked configuration of a command; groups stay plain dicts, with every number in its field's type.

    Raises:
        ConfigError: with every problem of the command's own keys and of each group's.
    """
    values, problems = dict(values), dict(_unsafe(values))
    spec = None
    for group in GROUPS if command == "train" else ():
        if not isinstance(values.get(group), dict):
            continue  # told with the command's own keys
        try:
            module, config = load(group, values[group])
            values[group] = {"module": values[group]["module"], **config.model_dump(by_alias=True)}
            if group == "env":
                spec = module.Family(config).spec
            elif group == "learner" and spec is not None:
                module.Learner(config, spec)
        except ConfigError as error:
            problems = {_key(line): line for line in error.problems} | problems
        except ValueError as error:
            problems[group] = f"{group}: {one_line(error)}"
    try:
        checked = _parse(MODELS[command], values)
    except ConfigError as error:
        problems = {_key(line): line for line in error.problems} | problems
    if problems:
        raise ConfigError(list(problems.values()))
    assert isinstance(checked, TrainConfig | TestConfig | AdaptConfig)
    return checked


def load(kind: str, values: dict[str, Any], place: str = "") -> tuple[ModuleType, Any]:
    """The module that ``values["module"]`` names, and its ``Config`` of the other values, the groups in it checked too.

    Args:
        kind: of the group, a key of ``MODULES``.
        values: the group.
        place: where it stands in the configuration, for the messages; none: at the top, under the name of its kind.

    Raises:
        ConfigError: if there is no such module, or values are wrong: a line for each.
    """
    place = place or kind
    module = _module(kind, values.get("module"), place)
    values, problems = _check_parts(module.Config, {k: v for k, v in values.items() if k != "module"}, place)
    try:
        config = _parse(module.Config, values, f"{place}.")
    except ConfigError as error:
        problems = error.problems + problems
    if problems:
        raise ConfigError(problems)
    return module, config


def _check_parts(model: type[BaseModel], values: dict[str, Any], place: str) -> tuple[dict[str, Any], list[str]]:
    """``values`` with every group that ``model`` marks as a :class:`Part` checked, and what is wrong with those groups."""
    values, problems = dict(values), []
    for field, info in model.model_fields.items():
        group = values.get(field)
        for part in info.metadata if isinstance(group, dict) else ():  # else told with the model's own keys
            if not isinstance(part, Part):
                continue
            assert isinstance(group, dict)
            groups = dict(group) if part.many else {"": group}
            for name, inner in groups.items():
                if isinstance(inner, dict):
                    try:
                        _, config = load(part.kind, inner, ".".join(filter(None, (place, field, name))))
                        groups[name] = {"module": inner["module"], **config.model_dump(by_alias=True)}
                    except ConfigError as error:
                        problems += error.problems
            values[field] = groups if part.many else groups[""]
    return values, problems


def owner(model: type[BaseModel], values: dict[str, Any], path: Sequence[str]) -> tuple[type[BaseModel], Sequence[str]]:
    """The ``Config`` that says what the key at ``path`` in ``values`` means, be it of a group within, and its path in that."""
    info = model.model_fields.get(path[0])
    for part in info.metadata if info else ():
        if isinstance(part, Part) and len(path) > (deep := 1 + part.many):
            group = reduce(getitem, path[:deep], cast(Any, values))
            return owner(_module(part.kind, group.get("module"), ".".join(path)).Config, group, path[deep:])
    return model, path


def _module(kind: str, name: object, place: str) -> ModuleType:
    """One of this package's modules or of an installed entry point's, looked up in a list: a name is never a path."""
    folder, needed = MODULES[kind]
    package = importlib.import_module(f"metarl_cli.{folder}")
    sources: dict[str, Callable[[], Any]] = {p.name: p.load for p in entry_points(group=f"metarl.{folder.rpartition('.')[2]}")}
    for found in pkgutil.iter_modules(package.__path__):
        sources[found.name] = partial(importlib.import_module, f"{package.__name__}.{found.name}")

    def imported(key: str) -> ModuleType | None:
        try:
            module = sources[key]()
        except ImportError as error:
            if key != name:
                return None
            raise ConfigError([f"{place}.module={name}: cannot be imported: {one_line(error)}"]) from error
        complete = isinstance(module, ModuleType) and hasattr(module, "Config") and hasattr(module, needed)
        return module if complete else None

    if isinstance(name, str) and name in sources and (module := imported(name)):
        return module
    known = sorted(key for key in sources if imported(key))
    wrong = ": missing" if name is None else f"={show(name)}: no such module"
    raise ConfigError([f"{place}.module{wrong}{choose(str(name or ''), known)}"])


def _parse(model: type[BaseModel], values: dict[str, Any], prefix: str = "") -> Any:
    """An instance of ``model``; a float without a fraction passes for an integer (``steps=1e5``).

    Raises:
        ConfigError: with a line for every key at fault.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        errors = error.errors()
    values = copy.deepcopy(values)
    for wrong in errors:
        if wrong["type"] == "int_type" and isinstance(wrong["input"], float) and wrong["input"].is_integer():
            *path, last = wrong["loc"]
            reduce(getitem, path, cast(Any, values))[last] = int(wrong["input"])
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(list(describe(model, error.errors(), values, prefix).values())) from error


def _unsafe(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """What no value may be, anywhere: a name of code, a number that is none; as (key, problem)."""
    pairs = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in pairs:
        place = f"{prefix}{key}"
        if key == "_target_":
            yield place, f"{place}={show(value)}: refused; code is named by module, never by path"
        elif isinstance(value, float) and not math.isfinite(value):
            yield place, f"{place}={show(value)}: must be a finite number"
        yield from _unsafe(value, f"{place}.")


def _key(problem: str) -> str:
    return re.split(r"[=:]", problem, maxsplit=1)[0]
