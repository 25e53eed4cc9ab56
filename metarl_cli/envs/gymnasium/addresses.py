"""Where a task parameter goes: an address, such as ``attribute.model.opt.gravity.2``, and how a value is put there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, NamedTuple

import numpy as np

from metarl_cli.config.messages import did_you_mean, one_line

PATTERN = r"^(seed|wrapper\.\w+(\.\w+)+|(constructor|attribute|scale|reset|options)(\.\w+)+)$"
FORMS = "constructor.PATH, attribute.PATH, scale.PATH, reset.PATH, options.PATH, wrapper.NAME.PATH or seed"
LASTING = "attribute", "scale"  # attributes that must outlast a reset


class Address(NamedTuple):
    """One place of a parameter."""

    how: str  # the first word
    path: str  # the rest; empty for the seed

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address of the form :data:`PATTERN`."""
        how, _, path = text.partition(".")
        return cls(how, path)


def place(arguments: dict[str, Any], path: str, value: Any, whose: str = "constructor") -> None:
    """Put a value into keyword arguments, within the dicts and lists that its path leads through.

    A key that is missing on the way is a new dict. ``whose`` arguments they are is said in messages.

    Raises:
        ValueError: if the path leads through anything else, or beyond the end of a list.
    """
    *parts, last = path.split(".")
    holder: Any = arguments
    for part, after in zip(parts, [*parts, last][1:], strict=True):
        holder = holder.setdefault(part, {}) if isinstance(holder, dict) else _entry(holder, part, f"{whose}.{path}")
        if not isinstance(holder, dict | list):
            raise ValueError(f"{whose}.{path}: {part} is {one_line(holder)}, in which there is no {after}")
    if isinstance(holder, list):
        _entry(holder, last, f"{whose}.{path}")
        holder[int(last)] = value
    else:
        holder[last] = value


def _entry(holder: list[Any], part: str, path: str) -> Any:
    if not part.isdigit() or int(part) >= len(holder):
        raise ValueError(f"{path}: {part} is no entry of a list of {len(holder)}")
    return holder[int(part)]


def read(env: Any, path: str) -> Any:
    """Return a copy of the number, truth value, text or array of numbers at ``path`` of an environment.

    A part of the path names an attribute, or a key of a mapping; digits are an index.

    Raises:
        ValueError: if the path does not exist, is not public or leads to something else.
    """
    value = _follow(env, path.split("."), path)
    is_array = isinstance(value, np.ndarray) and (value.dtype == bool or np.issubdtype(value.dtype, np.number))
    if not is_array and not isinstance(value, (bool, int, float, str, np.bool_, np.number)):
        raise ValueError(f"attribute {path} is not a number: {type(value).__name__}")
    return value.copy() if is_array else value


def write(env: Any, path: str, value: Any) -> None:
    """Set the number, truth value, text or array of numbers at ``path`` to a value of the same kind and shape.

    Raises:
        ValueError: if it cannot be written, or is not there afterwards.
    """
    before = read(env, path)
    if isinstance(before, str) != isinstance(value, str) or (_truths(before) and not _truths(value)):
        raise ValueError(f"attribute {path} is {_shown(before)}, which {_shown(value)} cannot replace")
    if np.shape(before) != np.shape(value):
        raise ValueError(f"attribute {path} is an array: name one entry, as in {path}.0")
    *parts, last = path.split(".")
    holder = _follow(env, parts, path)
    try:
        if isinstance(holder, MutableMapping):
            holder[_key(holder, last)] = value
        elif last.isdigit():
            holder[int(last)] = value
        elif np.shape(value):
            getattr(holder, last)[:] = value
        else:
            setattr(holder, last, value)
    except Exception as error:  # a property may refuse in its own way
        raise ValueError(f"attribute {path} cannot be set: {one_line(error)}") from error
    if not same(kept := read(env, path), value):
        raise ValueError(f"attribute {path} has no effect: {value} was set, and it is {kept} all the same")


def same(one: Any, other: Any) -> bool:
    """Return whether two values of an attribute are the same, but for rounding."""
    if isinstance(one, str) or isinstance(other, str):
        return bool(one == other)
    return np.allclose(one, other, rtol=1e-6, atol=1e-12)


def _shown(value: Any) -> str:
    text = one_line(value)
    return repr(text) if isinstance(value, str) else text


def _truths(value: Any) -> bool:
    """Return whether a value is true or false, or an array of such."""
    return not isinstance(value, str) and np.asarray(value).dtype == bool


def _follow(env: Any, parts: Iterable[str], path: str) -> Any:
    """Return the object at the end of ``parts``."""
    for part in parts:
        if part.startswith("_"):
            raise ValueError(f"attribute {path} is not public")
        try:
            if isinstance(env, Mapping):
                env = env[_key(env, part)]
            elif part.isdigit():
                env = env[int(part)]
            else:
                env = getattr(env, part)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            names = map(str, env) if isinstance(env, Mapping) else dir(env)
            hint = did_you_mean(part, [name for name in names if not name.startswith("_")])
            raise ValueError(f"the environment has no attribute {path}{hint}") from error
    return env


def _key(holder: Mapping[Any, Any], part: str) -> Any:
    """Return the key of a mapping that a part of a path names."""
    return int(part) if part.isdigit() and part not in holder else part
