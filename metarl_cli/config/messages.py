"""Messages about a configuration: the key at fault, its value, what is allowed there, and "did you mean".

The module knows none of the project's own models, and is fast to import.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import SequenceMatcher
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from metarl_cli.config.base import Group
from metarl_cli.errors import Problem

NAMES = {
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false"),
    str: ("a text", "texts"),
}
SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
WORDS = r"(?i)null|true|false|[+-]?(nan|inf)|[+-]?[\d_.]+(e[+-]?[\d_]+)?"  # what Hydra reads as no text
MOST_LISTED = 60  # names of what is known
CLOSE = 0.66  # similarity from which a name is worth suggesting: one wrong letter in four or more
SYNONYMS = {"gpu": "cuda"}  # what people write -> the name here, which no likeness of letters finds


def describe(model: type[BaseModel], errors: list[ErrorDetails], values: Any, prefix: str = "") -> list[Problem]:
    """Return one problem for each key at fault; keys begin with ``prefix``."""
    places = [_without_branches(model, error["loc"]) for error in errors]
    keys = [prefix + ".".join(map(str, place)) for place in places]
    wrong = tuple(f"{key}." for key, error in zip(keys, errors, strict=True) if error["type"] == "extra_forbidden")
    known = {prefix + key for key in (*_fields(model), *flatten(values)) if not f"{prefix}{key}.".startswith(wrong)}
    problems: dict[str, Problem] = {}
    for key, place, error in zip(keys, places, errors, strict=True):
        inner = len(place) < len(error["loc"]) and any(other.startswith(f"{key}.") for other in keys)
        if not inner:  # a part of the value is at fault, for one of the types that it may have
            problems.setdefault(key, Problem(key, _describe(model, key, place, error, known)))
    return list(problems.values())


def _without_branches(model: type[BaseModel], loc: Iterable[int | str]) -> list[int | str]:
    """Return the keys and places in lists on the way to a value, without pydantic's names of the types it may have."""
    kind: Any = model
    keys = []
    for part in loc:
        kind, _ = _bare(kind, [])
        if get_origin(kind) in (Union, UnionType):
            kind = next((a for a in get_args(kind) if str(part).startswith(getattr(get_origin(a), "__name__", "?"))), Any)
            continue
        keys.append(part)
        kind = _inside(kind, part)
    return keys


def _inside(kind: Any, part: int | str) -> Any:
    """Return the type of what lies at one key or place of a value of a type."""
    if _is_model(kind):
        return next((f.annotation for name, f in kind.model_fields.items() if part in (name, f.alias)), Any)
    return get_args(kind)[-1] if get_origin(kind) in (list, tuple, dict) and get_args(kind) else Any


def _describe(model: type[BaseModel], key: str, place: list[int | str], error: ErrorDetails, known: set[str]) -> str:
    given = f"{key}={show(error['input'])}"
    if error["type"] == "extra_forbidden":
        return f"{given}: {no_such_key(key, known)}"
    if error["type"] == "value_error":  # a rule between several keys
        return (f"{key.rstrip('.')}: " if key else "") + one_line(error["ctx"]["error"])
    allowed, meaning, choices = expected(model, place)
    meaning = f" ({meaning})" if meaning else ""
    if error["type"] == "string_pattern_mismatch" and not choices:
        allowed = f"a text that matches {error['ctx']['pattern']}"
    if error["type"] == "missing":
        return f"{key}: missing; must be {allowed}{meaning}"
    return f"{given}: must be {allowed}{meaning}{did_you_mean(str(error['input']), choices)}"


def expected(model: type[BaseModel], loc: list[Any]) -> tuple[str, str, list[str]]:
    """Return the type and range of the value at ``loc`` in words, its meaning, and the names to choose from if any."""
    kind: Any = model
    rules: list[Any] = []
    meaning = ""
    examples: list[Any] = []
    for part in loc:
        kind, rules = _bare(kind, rules)
        if _is_model(kind):
            info = next((f for name, f in kind.model_fields.items() if part in (name, f.alias)), None)
            if info is None:
                break
            kind, rules, meaning, examples = info.annotation, info.metadata, info.description or "", info.examples or []
        elif get_origin(kind) in (Union, UnionType) and isinstance(part, int):  # an entry of one of several lists
            kind, rules = Union[tuple(get_args(a)[0] for a in get_args(kind) if get_origin(a) is list)], []  # noqa: UP007
        elif get_origin(kind) in (list, tuple, dict) and get_args(kind):
            kind, rules = get_args(kind)[-1], []
    bare, _ = _bare(kind, rules)
    names = [str(a) for a in (get_args(bare) if get_origin(bare) is Literal else examples)]
    return f"one of {', '.join(names)}" if examples else _words(kind, rules), meaning, names


def _bare(kind: Any, rules: list[Any]) -> tuple[Any, list[Any]]:
    """Return a type without ``| None`` and ``Annotated``, and all its rules."""
    if get_origin(kind) in (Union, UnionType):
        others = [a for a in get_args(kind) if a is not NoneType]
        kind = others[0] if len(others) == 1 else kind
    if get_origin(kind) is Annotated:
        kind, *more = get_args(kind)
        rules = [*rules, *(m for rule in more for m in (rule.metadata if isinstance(rule, FieldInfo) else [rule]))]
    return kind, rules


def _words(kind: Any, rules: list[Any], many: bool = False) -> str:
    """Return a type with its range in plain words."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join("null" if a is NoneType else _words(a, rules) for a in arguments)
    if origin is Annotated:
        return _words(*_bare(kind, rules), many)
    if origin is Literal:
        return f"one of {', '.join(str(a) for a in arguments)}"
    limits = {k: getattr(r, k) for r in rules for k in (*SIGNS, "min_length", "max_length") if hasattr(r, k)}
    if origin is dict or kind in (dict, Group) or _is_model(kind):
        inner = f", each value {_words(arguments[1], [])}" if arguments and arguments[1] is not Any else ""
        return ("groups of names and values" if many else "a group of names and values") + inner
    if origin in (list, tuple):
        low, high = limits.get("min_length"), limits.get("max_length")
        count = f"{low} " if low and low == high else f"{low} or more " if low else ""
        return f"{'lists' if many else 'a list'} of {count}{_words(arguments[0], [], many=True)}"
    name = NAMES.get(kind, ("a value", "values"))[many]
    limit = " and ".join(f"{sign} {limits[k]:g}" for k, sign in SIGNS.items() if k in limits)
    return f"{name} {limit}" if limit else name


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of a model's keys, groups included."""
    for name, info in model.model_fields.items():
        key = f"{prefix}{info.alias or name}"
        yield key
        kind, _ = _bare(info.annotation, [])
        if _is_model(kind):
            yield from _fields(kind, f"{key}.")


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def flatten(values: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names in nested dicts, groups included."""
    if isinstance(values, Group):
        values = values.values
    for key, value in values.items() if isinstance(values, dict) else ():
        yield f"{prefix}{key}"
        yield from flatten(value, f"{prefix}{key}.")


def leaves(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the path and the value of everything in nested dicts that is not a dict with entries itself."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def show(value: object) -> str:
    """Return a value as it is written on the command line, cut if long."""
    text = str(value) if isinstance(value, str | float) else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def quoted(text: str) -> str:
    """Return a text as Hydra reads it on the command line: in quotes, unless it means nothing else there."""
    text = text.replace("${", r"\${")
    if re.fullmatch(r"[\w./:@%+-]*[A-Za-z_/][\w./:@%+-]*", text, re.ASCII) and not re.fullmatch(WORDS, text):
        return text
    inside = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + match[2].replace("'", r"\'"), text)
    return f"'{inside}'"


def one_line(error: object) -> str:
    """Return a message without its line breaks."""
    return " ".join(str(error).split())


def closest(name: str, known: Iterable[str]) -> list[str]:
    """Return the names most like this one, best first; ``lr`` finds ``algo.outer.lr``, and ``cartpole`` all its families."""
    known = set(known)
    if SYNONYMS.get(name) in known:
        return [SYNONYMS[name]]

    def like(a: str, b: str) -> float:
        return SequenceMatcher(None, a, b).ratio()

    def score(key: str) -> float:
        if key.endswith(f".{name}") or key.startswith(f"{name}_"):
            return 1.0
        whole, last = like(name, key), like(name.rpartition(".")[2], key.rpartition(".")[2])
        return max(whole, 0.9 * last) if "." not in name else 0.5 * whole + 0.5 * last

    scores = sorted(((score(key), key) for key in known - {name}), key=lambda pair: (-pair[0], pair[1]))
    return [key for value, key in scores if value >= max(CLOSE, scores[0][0] - 0.05)][:3]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean a or b?``, or nothing."""
    best = closest(name, known)
    return f"; did you mean {' or '.join(best)}?" if best else ""


def no_such_key(key: str, known: Iterable[str]) -> str:
    """Return that there is no such key, with the keys most like it or else its neighbours."""
    known = sorted(set(known))
    group = key.rpartition(".")[0]
    near = ", ".join(k for k in known if k.rpartition(".")[0] == group)
    return "no such key" + (did_you_mean(key, known) or (f"; known: {near}" if near else ""))


def known_options(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean a? known: a, b, c``; of very many the first."""
    known = list(known)
    hint = did_you_mean(name, known)
    more = f" and {len(known) - MOST_LISTED} more" if len(known) > MOST_LISTED else ""
    return f"{hint or ';'} known: {', '.join(known[:MOST_LISTED])}{more}"
