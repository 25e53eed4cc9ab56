"""Episodes that somebody recorded, as demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from metarl_cli.data import Demonstrations, Task, Transitions, device_of
from metarl_cli.experience.finite import LARGEST
from metarl_cli.spaces import Continuous, Spec


class Recorded(NamedTuple):
    """An episode of T steps."""

    observations: np.ndarray  # [T+1, ...] from the first to where the last action led
    actions: np.ndarray  # [T], or [T, D]
    terminated: bool  # whether it ended by itself, and not by a time limit


def demonstrations(spec: Spec, task: Task, episodes: Sequence[Recorded]) -> Demonstrations:
    """Return the episodes of one task (M=1) as demonstrations; nothing is known of rewards.

    Raises:
        ValueError: for an episode that is none of this spec.
    """
    for number, episode in enumerate(episodes, 1):
        _check(f"episode {number}", episode, spec)
    longest, device = max(len(episode.actions) for episode in episodes), device_of(task)

    def padded(rows: np.ndarray) -> np.ndarray:
        return np.concatenate([rows, np.repeat(rows[-1:], longest - len(rows), 0)])

    obs, after, action = (
        np.stack([padded(rows) for rows in column], 1)[None]
        for column in (
            [e.observations[:-1] for e in episodes],
            [e.observations[1:] for e in episodes],
            [e.actions for e in episodes],
        )
    )
    step, length = np.arange(longest)[:, None], np.array([len(e.actions) for e in episodes])
    default = torch.get_default_dtype()
    weight = torch.as_tensor(step < length, dtype=default, device=device)[None]
    ended = torch.as_tensor(step == length - 1, device=device)[None]
    terminated = ended & torch.tensor([e.terminated for e in episodes], device=device)
    acted = torch.as_tensor(action, dtype=default if isinstance(spec.actions, Continuous) else torch.long, device=device)
    images = spec.pixels and obs.dtype != bool  # of bytes, which a file has as numbers of any type
    before, reached = (spec.observation(places.astype(np.uint8) if images else places, device) for places in (obs, after))
    return Demonstrations(task, Transitions(before, acted, 0 * weight, reached, terminated, ended, weight))


def _check(name: str, episode: Recorded, spec: Spec) -> None:
    seen, acted, actions = episode.observations, episode.actions, spec.actions
    if not 0 < len(acted) == len(seen) - 1 <= spec.horizon:
        numbers = f"{len(seen)} observations and {len(acted)} actions"
        raise ValueError(f"{name} has {numbers}: it needs 1 to {spec.horizon} actions, and an observation more")
    if seen.shape[1:] != spec.obs_shape:
        raise ValueError(f"{name} has observations {list(seen.shape[1:])}, and those of this family are {list(spec.obs_shape)}")
    shape = (actions.size,) if isinstance(actions, Continuous) else ()
    if acted.shape[1:] != shape:
        raise ValueError(f"{name} has actions {list(acted.shape[1:])}, and those of this family are {list(shape)}")
    if not all(float(np.abs(numbers).max()) <= LARGEST for numbers in (seen, acted)):  # nan, too
        raise ValueError(f"{name} has a number that is not finite, or larger than {LARGEST:g}")
    if spec.pixels and (wrong := seen[(seen < 0) | (seen > 255) | (seen % 1 != 0)]).size:
        raise ValueError(f"{name} has {wrong[0]} in an image, whose entries are bytes, 0 to 255")
    if not isinstance(actions, Continuous) and (wrong := acted[(acted < 0) | (acted >= actions.n) | (acted % 1 != 0)]).size:
        raise ValueError(f"{name}: action {wrong[0]} is none of 0 to {actions.n - 1}")
