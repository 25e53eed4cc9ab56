"""Environments with other conventions than a vector of numbers, actions that can all be taken, and a reset with a seed."""

from __future__ import annotations

import inspect
import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from typing_extensions import override

LARGEST_BYTE = 255
MOST_ACTIONS = 1024  # of an action that is several choices at once


def in_numbers(env: gymnasium.Env[Any, Any], action_mask: str | None = None) -> gymnasium.Env[Any, Any]:
    """Flatten observations that are no array, make one choice of an action that is several, and show which can be taken.

    A grey image, bytes from 0 to 255 of two axes, becomes one of one channel, and a single number a row of one.

    Args:
        env: the environment.
        action_mask: where it says which actions can be taken: ``info.KEY``, or ``observation.KEY`` of a Dict; None: all can.

    Raises:
        ValueError: if no numbers can be made of the observations, or of the mask.
    """
    place, _, key = (action_mask or "").partition(".")
    if place == "observation":
        env = InInfo(env, key)
    seen = env.observation_space
    if isinstance(seen, spaces.Box) and seen.dtype == np.uint8 and len(seen.shape) == 2 and (seen.high == LARGEST_BYTE).all():
        env = gymnasium.wrappers.ReshapeObservation(env, (1, *seen.shape))
    elif not isinstance(seen, spaces.Box) or not seen.shape:
        try:
            env = gymnasium.wrappers.FlattenObservation(env)
        except NotImplementedError:  # what Gymnasium raises for spaces that it cannot flatten, such as graphs
            raise ValueError(f"observations are {env.observation_space}: a wrapper must make numbers of them") from None
        if not isinstance(env.observation_space, spaces.Box):
            raise ValueError(f"observations are {env.unwrapped.observation_space}: a wrapper must make numbers of them")
    if isinstance(env.action_space, spaces.MultiDiscrete | spaces.MultiBinary):
        env = OneAction(env)
    return MaskedActions(env, key) if key else env


class OneAction(gymnasium.ActionWrapper[Any, Any, Any]):
    """Make one choice of several at once: action i is the i-th combination, of which the last choice changes first."""

    def __init__(self, env: gymnasium.Env[Any, Any]):
        super().__init__(env)
        space: Any = env.action_space
        choices = np.full(space.shape, 2) if isinstance(space, spaces.MultiBinary) else np.asarray(space.nvec)
        self.choices, self.first, self.dtype = choices, np.asarray(getattr(space, "start", 0)), space.dtype
        if (count := math.prod(choices.ravel().tolist())) > MOST_ACTIONS:
            raise ValueError(f"actions are {space}: {count:,} combinations are more than {MOST_ACTIONS:,}")
        self.action_space = spaces.Discrete(count)

    @override
    def action(self, action: int) -> np.ndarray:
        each = np.asarray(np.unravel_index(int(action), self.choices.ravel().tolist()), self.dtype)
        chosen: np.ndarray = each.reshape(self.choices.shape) + self.first.astype(self.dtype)
        return chosen


class InInfo(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Move the entry ``key`` of a Dict of observations to the info."""

    def __init__(self, env: gymnasium.Env[Any, Any], key: str):
        super().__init__(env)
        space: Any = env.observation_space
        if not isinstance(space, spaces.Dict) or key not in space.spaces:
            raise ValueError(f"action_mask: there is no entry {key} in the observations {space}")
        self.key, self.observation_space = key, spaces.Dict({k: v for k, v in space.spaces.items() if k != key})

    def _moved(self, obs: dict[str, Any], info: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        return {key: value for key, value in obs.items() if key != self.key}, {**info, self.key: obs[self.key]}

    @override
    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        return self._moved(*self.env.reset(**arguments))

    @override
    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        obs, info = self._moved(obs, info)
        return obs, reward, terminated, truncated, info


class MaskedActions(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Append the mask ``info[key] [A]`` to the observation: 1 for each action that can be taken, else 0.

    Where an episode has ended there may be none that can be taken: then all are shown as if they could.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], key: str):
        super().__init__(env)
        seen, actions = env.observation_space, env.action_space
        if not isinstance(actions, spaces.Discrete):
            raise ValueError(f"action_mask: actions are {actions}, and only discrete ones can be masked")
        if len(seen.shape or ()) != 1:
            raise ValueError(f"action_mask: observations are {seen}: only a row of numbers has room for the mask")
        self.key, self.actions = key, int(actions.n)
        box: Any = seen
        low, high = (np.append(bound, np.full(self.actions, number)) for bound, number in ((box.low, 0), (box.high, 1)))
        self.dtype = np.result_type(seen.dtype or np.float32, np.float32)
        self.observation_space = spaces.Box(low.astype(self.dtype), high.astype(self.dtype), dtype=self.dtype.type)

    def _masked(self, obs: Any, info: dict[str, Any], ended: bool) -> np.ndarray:
        if self.key not in info:
            raise ValueError(f"info has no entry {self.key}, which action_mask names")
        mask = np.asarray(info[self.key]) > 0
        if mask.shape != (self.actions,):
            raise ValueError(f"the action mask has the shape {list(mask.shape)}, and there are {self.actions} actions")
        if not mask.any():
            if not ended:
                raise ValueError("the action mask allows no action")
            mask = ~mask
        return np.concatenate([np.asarray(obs, self.dtype), mask.astype(self.dtype)])

    @override
    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(**arguments)
        return self._masked(obs, info, False), info

    @override
    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._masked(obs, info, bool(terminated or truncated)), reward, terminated, truncated, info


def takes_seed(env: gymnasium.Env[Any, Any]) -> bool:
    """Return whether the environment has Gymnasium's ``reset(seed=...)``."""
    parameters = inspect.signature(env.reset).parameters
    return "seed" in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


class OldInterface(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Give Gymnasium's interface to an environment with that of before: no seed in ``reset``, no info, one end.

    Wrappers of its registration are left out. Its generator ``np_random`` is seeded, and its method ``seed`` is called, where
    it has one.
    """

    @override
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if options:
            raise ValueError("its reset takes no seed, and so no options, which parameters are set by (options.PATH)")
        if seed is not None:
            gymnasium.Env.reset(self.unwrapped, seed=seed)
            if callable(own := getattr(self.unwrapped, "seed", None)):
                own(seed)
        answer: Any = self.unwrapped.reset()
        return answer if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], dict) else (answer, {})

    @override
    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        answer: Any = self.unwrapped.step(action)
        if not isinstance(answer, tuple) or len(answer) != 4:
            return answer  # what is wrong with it is said where it is checked
        obs, reward, done, info = answer
        truncated = bool(done and isinstance(info, dict) and info.get("TimeLimit.truncated"))
        return obs, reward, done and not truncated, truncated, info
