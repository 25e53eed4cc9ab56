"""Demonstrations of one's own: a JSON file of episodes, or a dataset of Minari.

    {"task": {"grid": 12},  # where they took place; what is missing is as in the task that is adapted to
     "episodes": [{"states": [3, 4, 12], "actions": [2, 1, 0]}, ...]}                                of a family with few states
     "episodes": [{"observations": [[0, 0], [0.1, 0]], "actions": [[0.1, 0]], "terminated": false}]}     of any other

A state is that in which the action was taken; of observations there is one more, where the last action led. No reward is given:
what is wanted is to be inferred. There are at most 10,000 episodes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from metarl_cli.config.footprint import check_memory
from metarl_cli.envs.tabular import TabularFamily
from metarl_cli.errors import UserError
from metarl_cli.experience.recorded import Recorded, demonstrations
from metarl_cli.interfaces import Demonstrations, Family, Footprint, Holding, Task, Transitions, device_of
from metarl_cli.runs.files import read_json, write_whole
from metarl_cli.runs.minari import dataset_file, read_dataset

MOST = 10_000  # episodes of a file
COPIES = 20  # [bytes] of a state of a step: one-hot as whole numbers, and as observations before and after


class Episode(BaseModel):
    """The form of an episode."""

    model_config = ConfigDict(strict=True, extra="forbid")

    states: list[int] | None = None
    observations: list[list[float]] | None = None
    actions: list[int] | list[list[float]]
    terminated: bool = False

    @model_validator(mode="after")
    def _shows_where(self) -> Episode:
        if (self.states is None) == (self.observations is None):
            raise ValueError("give states, of a family with few, or observations")
        return self


class File(BaseModel):
    """The form of a file of demonstrations."""

    model_config = ConfigDict(strict=True, extra="forbid")

    task: dict[str, float] = {}
    episodes: list[Episode] = Field(min_length=1)


def read_demonstrations(
    name: str | Path,
    family: Family,
    parameters: Mapping[str, float | str],
    named: Callable[[Mapping[str, float | str]], Task],
) -> Demonstrations:
    """Read demonstrations of one task.

    Args:
        name: the file, or ``minari:NAME``.
        family: of the task.
        parameters: of the task that is adapted to.
        named: returns the task with some parameters.

    Raises:
        UserError: if the file cannot be read, or its episodes cannot have taken place.
    """
    if (dataset := dataset_file(str(name))) is not None:
        task, recorded = named(parameters), read_dataset(dataset, MOST)
        if isinstance(family, TabularFamily):  # whose states are those in which actions were taken
            recorded = [each._replace(observations=each.observations[:-1]) for each in recorded]
    else:
        content = read_json(Path(name), File, complete=False)
        task = named({**parameters, **content.get("task", {})})
        recorded = [_recorded(episode, family) for episode in content["episodes"]]
    if len(recorded) > MOST:
        raise UserError(f"demonstrations={name}: there are {len(recorded):,} episodes, and there can be {MOST:,}")
    longest = max(len(episode.actions) for episode in recorded)
    if longest <= family.spec.horizon:
        size = len(recorded) * longest * math.prod(family.spec.obs_shape) * COPIES
        check_memory(Footprint([Holding("demonstrations", size)]), device_of(task), "the episodes")
    try:
        if isinstance(family, TabularFamily) and all(episode.observations.ndim == 1 for episode in recorded):
            return family.recorded(task, [(e.observations.tolist(), e.actions.tolist()) for e in recorded])
        return demonstrations(family.spec, task, recorded)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise UserError(f"demonstrations={name}: {error}") from error


def _recorded(episode: Mapping[str, Any], family: Family) -> Recorded:
    """Return an episode in the form of :class:`Episode`."""
    states = episode.get("states")
    if states is not None and not isinstance(family, TabularFamily):
        raise UserError("states are of families with few, such as sprite_grid; give observations, one more than actions")
    try:
        places = np.array(episode["observations"] if states is None else states)
        return Recorded(places, np.array(episode["actions"]), episode.get("terminated", False))
    except ValueError as error:
        raise UserError(f"the rows of observations or of actions are not equally long: {error}") from error


def write_demonstrations(path: Path, family: Family, given: Demonstrations) -> None:
    """Write demonstrations of one task in the form that :func:`read_demonstrations` reads.

    Raises:
        UserError: if it cannot be written, or numbers do not say where the episodes took place.
    """
    if not is_numeric(given.task):
        raise UserError(f"{path}: the environments of these demonstrations are more than numbers, and are not written")
    seen, episodes = given.experience, list[dict[str, Any]]()
    for n, steps in enumerate(seen.weight[0].sum(0).long().tolist()):
        part = Transitions(*(x[0, :steps, n] for x in seen))
        actions = part.action.tolist()
        if isinstance(family, TabularFamily):
            episodes.append({"states": family.states(part.obs).tolist(), "actions": actions})
        else:
            places = [*part.obs.tolist(), part.next_obs[-1].tolist()]
            episodes.append({"observations": places, "actions": actions, "terminated": bool(part.terminated[-1])})
    task = {name: value.item() for name, value in given.task.items()}
    write_whole(path, (json.dumps({"task": task, "episodes": episodes}) + "\n").encode())


def is_numeric(task: Task) -> bool:
    """Whether a file can say which environments those of a task are: each of its parameters is a number."""
    return all(value.dim() == 1 for value in task.values())
