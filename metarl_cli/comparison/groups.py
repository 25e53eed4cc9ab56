"""Runs that differ in the seed alone are a group; groups that were tested on the same tasks are compared.

The name of a group is its algorithm, with the values in which groups of that algorithm differ: those that were overridden on
the command line where they are enough, else all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from metarl_cli.comparison.saved import Saved
from metarl_cli.config.messages import no_such_key, show
from metarl_cli.errors import UserError
from metarl_cli.runs.naming import within

Key = TypeVar("Key", bound=Hashable)


class Group(NamedTuple):
    """Runs with one name, each with a seed of its own."""

    name: str
    runs: list[Saved]

    @property
    def algo(self) -> str:
        """The algorithm of its first run."""
        return self.runs[0].choices.get("algo", "")


class Comparison(NamedTuple):
    """Groups that were tested on the same tasks of the same environment."""

    env: str
    tasks: str  # the hash of the tasks
    groups: list[Group]
    notes: list[str]  # what a reader has to know, one line each


def compare(runs: Sequence[Saved], by: Sequence[str]) -> tuple[list[Comparison], list[str]]:
    """Group runs.

    Args:
        runs: of any algorithms and environments.
        by: the groups of the configuration and keys whose values make a group; none: all but the seed.

    Returns:
        A comparison for each environment and set of tasks, and one line on each run that has no place in one.

    Raises:
        UserError: if no run has one of the keys ``by``.
    """
    _check(runs, by)
    tested = [run for run in runs if run.tested]
    left = [f"{run.path} is {run.status}: it has no result here" for run in runs if not run.tested]
    compared = []
    for (env, tasks, _), members in _collected(tested, _place).items():
        compared.append(Comparison(env, tasks, *_grouped(members, by)))
    return compared, left


def _check(runs: Sequence[Saved], by: Sequence[str]) -> None:
    known = {key for run in runs for key in (*run.choices, *run.values)}
    if wrong := [key for key in by if key not in known and f"algo.{key}" not in known]:
        raise UserError(*(f"by={key}: {no_such_key(key, known)}" for key in wrong))


def _place(run: Saved) -> tuple[str, str, str]:
    """Return what runs share that can be compared: the environment, the tasks, and the values of the environment."""
    assert run.tested
    values = {key: value for key, value in run.values.items() if within(key, {"env"})}
    return run.env, run.tested.tasks, repr(sorted(values.items(), key=lambda item: item[0]))


def _collected(items: Iterable[Saved], key: Callable[[Saved], Key]) -> dict[Key, list[Saved]]:
    found = defaultdict[Key, list[Saved]](list)
    for item in items:
        found[key(item)].append(item)
    return dict(found)


def _grouped(runs: list[Saved], by: Sequence[str]) -> tuple[list[Group], list[str]]:
    """Return the groups of comparable runs, by name, and what there is to say of them."""
    if by:
        groups = [Group(name, members) for name, members in _collected(runs, lambda run: _name(run, by)).items()]
        notes = [note for group in groups for note in _pooled(group)]
    else:
        alike = list(_collected(runs, lambda run: repr(sorted(run.values.items()))).values())
        groups = [Group(name, members) for name, members in zip(_names(alike), alike, strict=True)]
        notes = []
    groups = sorted(groups, key=lambda group: group.name)
    single, repeated = list[Group](), list[str]()
    for group in groups:
        seeds = _collected(group.runs, lambda run: run.seed) if not by else {run.path: [run] for run in group.runs}
        repeated += [
            f"seed {seed} of {group.name} is there {len(m)} times: {m[0].path} counts" for seed, m in seeds.items() if m[1:]
        ]
        single.append(Group(group.name, [members[0] for members in seeds.values()]))
    return single, [*notes, *repeated, *_warnings(single)]


def _name(run: Saved, by: Sequence[str]) -> str:
    values = [run.choices.get(key, run.values.get(key, run.values.get(f"algo.{key}"))) for key in by]
    texts = (
        value if key in ("algo", "env", "experiment") else f"{key}={show(value)}" for key, value in zip(by, values, strict=True)
    )
    return " ".join(str(text) for text in texts if text is not None)


def _names(groups: list[list[Saved]]) -> list[str]:
    """Return a name for each group of runs alike."""
    names = [""] * len(groups)
    by_algo = defaultdict[str, list[int]](list)
    for place, members in enumerate(groups):
        by_algo[members[0].choices.get("algo", "")].append(place)
    for algo, places in by_algo.items():
        first = [groups[place][0] for place in places]
        keys = _differing([run.values for run in first])
        typed = [key for key in keys if any(within(key, set(run.overridden)) for run in first)]
        rows = [[run.values.get(key) for key in typed] for run in first]
        if len({repr(row) for row in rows}) == len(first):
            keys = typed
        for place, run in zip(places, first, strict=True):
            parts = [f"{key.removeprefix('algo.')}={show(run.values.get(key))}" for key in keys if key in run.values]
            names[place] = " ".join([algo, *parts])
    return names


def _differing(values: Sequence[dict[str, Any]]) -> list[str]:
    """Return the keys whose values are not the same in all configurations."""
    keys = dict.fromkeys(key for each in values for key in each)
    return [key for key in keys if len({repr(each.get(key, ...)) for each in values}) > 1]


def _pooled(group: Group) -> list[str]:
    keys = _differing([run.values for run in group.runs])
    return (
        [f"{group.name}: runs that differ in {', '.join(keys[:5])}{' and more' * (len(keys) > 5)} are taken together"]
        if keys
        else []
    )


def _warnings(groups: list[Group]) -> list[str]:
    """Say where a comparison is not like with like."""
    runs, found = [run for group in groups for run in group.runs], list[str]()
    episodes = {run.tested.episodes for run in runs if run.tested}
    if len(episodes) > 1:
        found.append(f"Tasks were tested with {' and '.join(map(str, sorted(episodes)))} episodes.")
    if len(versions := {run.git for run in runs}) > 1:
        found.append(f"The runs are of {len(versions)} revisions of the code.")
    if (counts := {len(group.runs) for group in groups}) and max(counts) > 1 and min(counts) < max(counts):
        found.append(f"Groups have from {min(counts)} to {max(counts)} seeds.")
    return found
