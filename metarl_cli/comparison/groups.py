"""Runs that differ in the seed alone are a group; groups that were tested on the same tasks are compared.

The folds of a cross-validation are runs of one group, though each is tested on tasks of its own.

The name of a group is its algorithm, with its experiment and values in which groups of that algorithm differ: those that were
overridden on the command line, and others as far as they are needed for distinct names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from metarl_cli.comparison.saved import FOLD, Saved
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
    where: str  # the values in which it differs from other comparisons of the same environment; empty without any
    tasks: str  # the hash of the tasks, or the folds of a cross-validation
    groups: list[Group]
    notes: list[str]  # what a reader has to know, one line each

    @property
    def title(self) -> str:
        """The environment in words."""
        return " ".join(filter(None, (self.env or "environment", self.where)))


def compare(runs: Sequence[Saved], by: Sequence[str]) -> tuple[list[Comparison], list[str]]:
    """Group runs.

    Args:
        runs: of any algorithms and environments.
        by: the groups of the configuration and keys whose values make a group; none: all but the seed.

    Returns:
        A comparison for each environment and set of tasks, and lines on the runs that have no place in one.

    Raises:
        UserError: if no run has one of the keys ``by``.
    """
    _check(runs, by)
    left = _together(
        (run, f"is {run.status}: {'it was not tested here' if run.status == 'finished' else 'it is left out'}")
        for run in runs
        if not run.tested
    )
    places = _collected([run for run in runs if run.tested], _place)
    compared = []
    for env, members in _collected_places(places).items():
        wheres = _wheres([place[0] for place in members])
        for where, (first, inside) in zip(wheres, members, strict=True):
            assert first.tested
            compared.append(Comparison(env, where, first.folds or first.tested.tasks, *_grouped(inside, by)))
    return compared, left


def _check(runs: Sequence[Saved], by: Sequence[str]) -> None:
    known = {"experiment", *(key for run in runs for key in (*run.choices, *run.values))}
    if wrong := [key for key in by if key not in known and f"algo.{key}" not in known]:
        raise UserError(*(f"by={key}: {no_such_key(key, known)}" for key in wrong))


def _place(run: Saved) -> str:
    """Return what runs share that can be compared: the environment, the tasks, and the values of the environment."""
    assert run.tested
    tasks = (run.folds, run.values.get("tasks_seed")) if run.folds else run.tested.tasks
    return repr((run.env, tasks, run.tested.adapted.scores.shape[1], sorted(_of_env(run).items())))


def _of_env(run: Saved) -> dict[str, Any]:
    return {key: value for key, value in run.values.items() if within(key, {"env"})}


def _collected_places(places: dict[str, list[Saved]]) -> dict[str, list[tuple[Saved, list[Saved]]]]:
    """Return the first run and all runs of each place, by environment."""
    by_env = defaultdict[str, list[tuple[Saved, list[Saved]]]](list)
    for members in places.values():
        by_env[members[0].env].append((members[0], members))
    return dict(by_env)


def _wheres(runs: Sequence[Saved]) -> list[str]:
    """Return the values in which the environments and the tasks of some runs differ, for each run; nothing for a single run."""
    if len(runs) == 1:
        return [""]
    keys = _differing([_of_env(run) for run in runs])
    texts = [", ".join(f"{key}={show(run.values.get(key))}" for key in keys) for run in runs]
    tasks = [run.folds or (f"tasks {run.tested.tasks[:6]}" if run.tested else "") for run in runs]
    return [
        text if texts.count(text) == 1 else ", ".join(filter(None, (text, task)))
        for text, task in zip(texts, tasks, strict=True)
    ]


def _collected(items: Iterable[Saved], key: Callable[[Saved], Key]) -> dict[Key, list[Saved]]:
    by_key = defaultdict[Key, list[Saved]](list)
    for item in items:
        by_key[key(item)].append(item)
    return dict(by_key)


def _grouped(runs: list[Saved], by: Sequence[str]) -> tuple[list[Group], list[str]]:
    """Return the groups of comparable runs, by name, and what there is to say of them."""
    alike = _collected(runs, lambda run: repr((sorted(run.values.items()), run.seed)))
    single = sorted((members[0] for members in alike.values()), key=lambda run: run.order)
    notes = _together((m[0], "is there several times: it counts once") for m in alike.values() if m[1:])
    if by:
        members = list(_collected(single, lambda run: repr(_chosen(run, by))).values())
        names = [_name(group[0], by) for group in members]
    else:
        members = list(_collected(single, lambda run: repr(sorted(_but_the_fold(run).items()))).values())
        names, hidden = _names(members)
        notes += hidden
    names = [name if names.count(name) == 1 else f"{name} ({k})" for k, name in enumerate(names, 1)]
    groups = sorted((Group(name, group) for name, group in zip(names, members, strict=True)), key=lambda group: group.name)
    notes += [note for group in groups if by for note in _pooled(group)]
    return groups, [*notes, *_warnings(groups)]


def _but_the_fold(run: Saved) -> dict[str, Any]:
    return {key: value for key, value in run.values.items() if key != FOLD}


def _chosen(run: Saved, by: Sequence[str]) -> list[Any]:
    """Return the values of a run that make its group."""
    return [run.choices.get(key, run.values.get(key, run.values.get(f"algo.{key}"))) for key in by]


def _name(run: Saved, by: Sequence[str]) -> str:
    pairs = zip(by, _chosen(run, by), strict=True)
    bare = ("algo", "env", "experiment")
    return " ".join(f"no {key}" if value is None else value if key in bare else f"{key}={show(value)}" for key, value in pairs)


def _names(groups: list[list[Saved]]) -> tuple[list[str], list[str]]:
    """Return a name for each group of runs alike, and a note where their names do not say all that they differ in."""
    names, notes = [""] * len(groups), list[str]()
    by_algo = defaultdict[str, list[int]](list)
    for place, members in enumerate(groups):
        by_algo[members[0].choices.get("algo", "")].append(place)
    for algo, places in by_algo.items():
        first = [groups[place][0] for place in places]
        experiments = [run.choices.get("experiment", "") for run in first]
        keys = _differing([_but_the_fold(run) for run in first])
        needed = {key for key in keys if any(within(key, set(run.overridden)) for run in first)}
        for key in keys:
            if _distinct(first, {*needed, key}) > _distinct(first, needed):
                needed.add(key)
        if rest := [key for key in keys if key not in needed]:
            notes.append(f"{algo}: its groups differ in {_some(rest)}, too.")
        keys = [key for key in keys if key in needed]
        for place, run, experiment in zip(places, first, experiments, strict=True):
            parts = [f"{key.removeprefix('algo.')}={show(run.values.get(key))}" for key in keys if key in run.values]
            more = experiment if len(set(experiments)) > 1 and experiment != algo else ""
            names[place] = " ".join(filter(None, (algo, more, *parts)))
    return names, notes


def _distinct(runs: Sequence[Saved], keys: Iterable[str]) -> int:
    """Return the number of distinct combinations of experiment and values of some keys among some runs."""
    return len({repr((run.choices.get("experiment"), [run.values.get(key, ...) for key in keys])) for run in runs})


def _differing(values: Sequence[dict[str, Any]]) -> list[str]:
    """Return the keys whose values are not the same in all configurations."""
    keys = dict.fromkeys(key for each in values for key in each)
    return [key for key in keys if len({repr(each.get(key, ...)) for each in values}) > 1]


def _together(said: Iterable[tuple[Saved, str]]) -> list[str]:
    """Return a line for each thing that is said of runs: the first of them, and how many more there are."""
    paths = defaultdict[str, list[str]](list)
    for run, words in said:
        paths[words].append(str(run.path))
    return [f"{first}{f', as {len(more)} more,' if more else ''} {words}" for words, (first, *more) in paths.items()]


def _some(keys: Sequence[str]) -> str:
    return f"{', '.join(keys[:5])}{' and more' * (len(keys) > 5)}"


def _pooled(group: Group) -> list[str]:
    keys = _differing([_but_the_fold(run) for run in group.runs])
    if not keys:
        return []
    same = len({(run.seed, run.values.get(FOLD)) for run in group.runs}) < len(group.runs)
    seeds = "; several have the same seed, so that they are no independent ones" if same else ""
    return [f"{group.name}: runs that differ in {_some(keys)} are taken together{seeds}."]


def _warnings(groups: list[Group]) -> list[str]:
    """Say where a comparison is not like with like."""
    runs = [run for group in groups for run in group.runs]
    lines = _together((run, note) for run in runs for note in run.notes)
    of_fold = {(run.values.get(FOLD), run.tested.tasks) for run in runs if run.tested and run.folds}
    if len(of_fold) > len({fold for fold, _ in of_fold}):
        lines.append("Runs of one fold were tested on different tasks: their environment has changed between them.")
    episodes = {run.tested.episodes for run in runs if run.tested}
    if len(episodes) > 1:
        lines.append(f"Tasks were tested with {' and '.join(map(str, sorted(episodes)))} episodes.")
    if len(versions := {run.git for run in runs}) > 1:
        lines.append(f"The runs are of {len(versions)} revisions of the code.")
    if (counts := {len(group.runs) for group in groups}) and max(counts) > 1 and min(counts) < max(counts):
        lines.append(f"Groups have from {min(counts)} to {max(counts)} runs.")
    missing = [(run, int(np.isnan(run.tested.adapted.scores).any(0).sum())) for run in runs if run.tested]
    lines += _together((run, f"has no return on {num} tasks: its means are not known.") for run, num in missing if num)
    return lines
