"""The registry of modules, and validation: from plain values to a checked configuration, with every problem at once.

A group says ``module: maml`` and means ``metarl_cli.algos.maml``; the rest of the group is that module's ``Config``. Installed
packages add modules through entry points named for the folders, such as ``metarl.algos`` and ``metarl.searches``. No path, no
``_target_``, nothing instantiated from a file. A ``Config`` may hold groups of its own, marked by :class:`Part`.
"""

from __future__ import annotations

import copy
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from metarl_cli.config.base import Group, Part
from metarl_cli.config.compatibility import check_run
from metarl_cli.config.messages import describe, expected, known_options, one_line, show
from metarl_cli.config.models import TrainConfig
from metarl_cli.errors import Problem, UserError

# kind of group -> folder of its modules, and the class each module has beside its Config
MODULES = {
    "env": ("envs", "Family"),
    "learner": ("learners", "Learner"),
    "algo": ("algos", "Algo"),
    "genome": ("evolution.genomes", "Genome"),
    "lifetime": ("evolution.lifetimes", "Lifetime"),
    "search": ("evolution.searches", "Search"),
}

# keys that name a place of the user
PLACES = ("run", "outputs", "out", "robust", "oracle", "demonstrations", "demonstrator", "study")
LARGEST = 3.4e38  # of a number: tensors of 32 bits hold no larger one
# Texts that a run folder never holds: the name of code, an interpolation, a path that is absolute or climbs with ``..``.
UNSAFE = re.compile(r"_target_|\$\{|^[/\\~]|^[A-Za-z]:[/\\]|(^|[/\\])\.\.([/\\]|$)")

Model = TypeVar("Model", bound=BaseModel)


class ConfigError(UserError):
    """A configuration that cannot run, with everything that is wrong with it."""


def validate(model: type[Model], values: Mapping[str, Any], choices: Mapping[str, str | None] | None = None) -> Model:
    """Check the values of a command's configuration.

    Args:
        model: the command's ``Config``.
        values: plain values, as composed.
        choices: the option of each config group, by which messages name the algorithm; none: by its module.

    Raises:
        ConfigError: with every problem of the command's own keys and of each group's.
    """
    parsed, problems, failed = _load_parts(model, values, "")
    if issubclass(model, TrainConfig):
        parsed, problems = check_run(parsed, problems, choices or {})
    try:
        config = _parse(model, parsed, failed=failed)
    except ConfigError as error:
        problems = error.problems + problems
    problems += _unsafe({key: value for key, value in values.items() if key not in PLACES})
    if problems:
        raise ConfigError(*{problem.key: problem for problem in problems}.values())
    assert config is not None
    return config


def load(kind: str, values: Mapping[str, Any], place: str = "") -> Group:
    """Import the module that ``values["module"]`` names and parse its ``Config`` from the other values.

    Args:
        kind: of the group, a key of ``MODULES``.
        values: the group.
        place: where it stands in the configuration, for the messages; none: at the top, under the name of its kind.

    Raises:
        ConfigError: if there is no such module, or values are wrong: a problem for each.
    """
    place = place or kind
    module = _module(kind, values.get("module"), place)
    rest = {k: v for k, v in values.items() if k != "module"}
    parsed, problems, failed = _load_parts(module.Config, rest, f"{place}.")
    try:
        config = _parse(module.Config, parsed, f"{place}.", failed)
    except ConfigError as error:
        problems = error.problems + problems
    if problems:
        raise ConfigError(*problems)
    return Group(str(values["module"]), module, config)


def _load_parts(
    model: type[BaseModel], values: Mapping[str, Any], prefix: str
) -> tuple[dict[str, Any], list[Problem], set[str]]:
    """Parse every group that ``model`` marks as a :class:`Part`.

    Returns ``values`` with a :class:`Group` in the place of each, the problems, and the fields of groups that have some.
    """
    parsed, problems, failed = dict(values), list[Problem](), set[str]()
    for field, info in model.model_fields.items():
        group = values.get(field)
        for part in info.metadata if isinstance(group, Mapping) else ():  # else the model itself refuses it
            if not isinstance(part, Part):
                continue
            assert isinstance(group, Mapping)
            groups = dict(group) if part.many else {"": group}
            for name, inner in groups.items():
                if isinstance(inner, Mapping):
                    try:
                        groups[name] = load(part.kind, inner, f"{prefix}{field}.{name}".rstrip("."))
                    except ConfigError as error:
                        problems += error.problems
                        failed.add(field)
            parsed[field] = groups if part.many else groups[""]
    return parsed, problems, failed


def owner(config: BaseModel, path: Sequence[str]) -> tuple[type[BaseModel], Sequence[str]]:
    """Return the ``Config`` class that defines the key at ``path``, be it of a group within, and the path inside it."""
    names = {info.alias or name: name for name, info in type(config).model_fields.items()}
    value = getattr(config, names.get(path[0], path[0]), None)
    if isinstance(value, Group) and len(path) > 1:
        return owner(value.config, path[1:])
    if isinstance(value, dict) and len(path) > 2 and isinstance(inner := value.get(path[1]), Group):
        return owner(inner.config, path[2:])
    return type(config), path


def meanings(model: type[BaseModel], values: Mapping[str, Any]) -> Callable[[Sequence[str]], tuple[str, str]]:
    """Return a function from the path of a value to its meaning and what is allowed there; empty where nobody knows.

    Args:
        model: the command's ``Config``.
        values: as composed; groups with wrong values have no meaning.
    """
    parsed, _, failed = _load_parts(model, values, "")

    def meaning(path: Sequence[str]) -> tuple[str, str]:
        group = parsed.get(path[0])
        if path[-1] == "module" or path[0] in failed or (isinstance(group, Group) and len(path) == 1):
            return "", ""
        inside, rest = owner(group.config, path[1:]) if isinstance(group, Group) else (model, path)
        allowed, text, _ = expected(inside, list(rest))
        return text, allowed

    return meaning


def _module(kind: str, name: object, place: str) -> ModuleType:
    """Return a module of this package or of an installed entry point, looked up in a list: a name is never a path."""
    folder, needed = MODULES[kind]
    package = importlib.import_module(f"metarl_cli.{folder}")
    sources = dict[str, Callable[[], Any]]()
    for info in pkgutil.iter_modules(package.__path__):
        sources[info.name] = partial(importlib.import_module, f"{package.__name__}.{info.name}")

    def imported(key: str) -> ModuleType | None:
        try:
            module = sources[key]()
        except ImportError as error:
            if key != name:
                return None
            problem = f"{place}.module={name}: cannot be imported: {one_line(error)}"
            raise ConfigError(Problem(f"{place}.module", problem)) from error
        complete = isinstance(module, ModuleType) and hasattr(module, "Config") and hasattr(module, needed)
        return module if complete else None

    if isinstance(name, str) and name in sources and (module := imported(name)):
        return module
    installed = {point.name: point.load for point in entry_points(group=f"metarl.{folder.rpartition('.')[2]}")}
    sources = installed | sources  # which takes a look at every package that is installed
    if isinstance(name, str) and name in installed and (module := imported(name)):
        return module
    known = sorted(key for key in sources if imported(key))
    wrong = ": missing" if name is None else f"={show(name)}: no such module"
    raise ConfigError(Problem(f"{place}.module", f"{place}.module{wrong}{known_options(str(name or ''), known)}"))


def _parse(model: type[Model], values: dict[str, Any], prefix: str = "", failed: set[str] | None = None) -> Model | None:
    """Return an instance of ``model``; a float without a fraction passes for an integer (``steps=1e5``).

    Returns None where nothing is wrong but the ``failed`` fields, whose problems are known already.

    Raises:
        ConfigError: with a problem for every other key at fault.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        errors = error.errors()
    for wrong in errors:
        if wrong["type"] == "int_type" and isinstance(wrong["input"], float) and wrong["input"].is_integer():
            values = _replaced(values, wrong["loc"], int(wrong["input"]))
    try:
        return model.model_validate(values)
    except ValidationError as error:
        errors = [e for e in error.errors() if not (e["loc"] and e["loc"][0] in (failed or ()))]
        if not errors:
            return None
        raise ConfigError(*describe(model, errors, values, prefix)) from error


def _replaced(values: Any, path: Sequence[Any], value: Any) -> Any:
    """Return nested ``values`` with another value at ``path``; the original stays as it is."""
    if not path:
        return value
    changed = copy.copy(values)
    changed[path[0]] = _replaced(values[path[0]], path[1:], value)
    return changed


def _unsafe(values: Any, prefix: str = "") -> Iterator[Problem]:
    """Yield what no value may be: a number that 32 bits do not hold, a text that no run folder holds; modules are looked up."""
    pairs = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list) else ()
    for key, value in pairs:
        place = f"{prefix}{key}"
        if key == "_target_":
            yield Problem(place, f"{place}={show(value)}: refused; code is named by module, never by path")
        elif isinstance(value, int | float) and not abs(value) <= LARGEST:  # nan, too
            yield Problem(place, f"{place}={show(value)}: must be a finite number, at most {LARGEST:g}")
        elif key != "module" and any(isinstance(text, str) and UNSAFE.search(text) for text in (key, value)):
            why = "a text may not name code, nor a place outside the current folder (give ./NAME for a file in it)"
            yield Problem(place, f"{place}={show(value)}: refused; {why}")
        yield from _unsafe(value, f"{place}.")
