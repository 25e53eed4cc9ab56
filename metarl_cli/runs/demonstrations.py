"""Demonstrations of one's own: a JSON file of episodes in a family whose states are few.

    {"task": {"grid": 12},  # where they took place; what is missing is as in the task that is adapted to
     "episodes": [{"states": [3, 4, 12], "actions": [2, 1, 0]}, ...]}

A state is that in which the action was taken. No reward is given: what is wanted is to be inferred. There are at most 10,000
episodes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from metarl_cli.config.footprint import judge
from metarl_cli.envs.tabular import TabularFamily
from metarl_cli.errors import UserError
from metarl_cli.interfaces import Demonstrations, Family, Footprint, Holding, Task
from metarl_cli.runs.files import read_json, write_whole

MOST = 10_000  # episodes of a file
COPIES = 20  # [bytes] of a state of a step: one-hot as whole numbers, and as observations before and after


class Episode(BaseModel):
    """The form of an episode."""

    model_config = ConfigDict(strict=True, extra="forbid")

    states: list[int]
    actions: list[int]


class File(BaseModel):
    """The form of a file of demonstrations."""

    model_config = ConfigDict(strict=True, extra="forbid")

    task: dict[str, float] = {}
    episodes: list[Episode] = Field(min_length=1)


def read_demonstrations(
    path: Path, family: Family, parameters: Mapping[str, float | str], named: Callable[[Mapping[str, float | str]], Task]
) -> Demonstrations:
    """Read demonstrations of one task.

    Args:
        path: the file.
        family: of the task.
        parameters: of the task that is adapted to.
        named: returns the task with some parameters.

    Raises:
        UserError: if the file cannot be read, or its episodes cannot have taken place.
    """
    table = _few_states(family, path)
    found = File.model_validate(read_json(path, File, complete=False))
    if len(found.episodes) > MOST:
        raise UserError(f"demonstrations={path}: there are {len(found.episodes):,} episodes, and there can be {MOST:,}")
    longest = max(len(episode.states) for episode in found.episodes)
    if longest <= table.spec.horizon:
        size = len(found.episodes) * longest * table.num_states * COPIES
        judge(Footprint([Holding("demonstrations", size)]), table.device, "the episodes")
    task = named({**parameters, **found.task})
    try:
        return table.recorded(task, [(episode.states, episode.actions) for episode in found.episodes])
    except ValueError as error:
        raise UserError(f"demonstrations={path}: {error}") from error


def _few_states(family: Family, path: Path) -> TabularFamily:
    if not isinstance(family, TabularFamily):
        raise UserError(f"{path}: files of demonstrations are for families with few states alone, such as sprite_grid")
    return family


def write_demonstrations(path: Path, family: Family, given: Demonstrations) -> None:
    """Write demonstrations of one task in the form that :func:`read_demonstrations` reads.

    Raises:
        UserError: if it cannot be written, states are not few, or numbers do not say where the episodes took place.
    """
    if not told_by_numbers(given.task):
        raise UserError(f"{path}: the environments of these demonstrations are more than numbers, and are not written")
    table = _few_states(family, path)
    experience, episodes = given.experience, list[dict[str, Any]]()
    rows = (table.states(experience.obs)[0].T, experience.action[0].T, experience.weight[0].T)
    for states, actions, weight in zip(*(row.tolist() for row in rows), strict=True):
        steps = int(sum(weight))
        episodes.append({"states": states[:steps], "actions": actions[:steps]})
    task = {name: value.item() for name, value in given.task.items()}
    write_whole(path, (json.dumps({"task": task, "episodes": episodes}) + "\n").encode())


def told_by_numbers(task: Task) -> bool:
    """Whether a file can say which environments those of a task are: each of its parameters is a number."""
    return all(value.dim() == 1 for value in task.values())
