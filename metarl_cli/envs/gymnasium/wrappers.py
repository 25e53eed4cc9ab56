"""Wrappers of Gymnasium environments: those of this package, and the list of those that a configuration may name."""

from __future__ import annotations

import copy
import importlib
import itertools
import math
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from typing_extensions import override

from metarl_cli.envs.gymnasium.addresses import write


class Direction(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Reward the velocity [m/s] in the direction ``angle`` [rad] from the x-axis, in place of the forward velocity.

    Costs and the survival reward stay the environment's. For bodies that move only along x, pi is MAML's backward task.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], angle: float):
        super().__init__(env)
        self.x, self.y = math.cos(angle), math.sin(angle)

    @override
    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        along = self.x * info["x_velocity"] + self.y * info.get("y_velocity", 0.0)
        return obs, float(reward) - info["reward_forward"] + along, terminated, truncated, info


class Velocity(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Penalise the distance from ``velocity`` [m/s], in place of rewarding the forward velocity; costs stay."""

    def __init__(self, env: gymnasium.Env[Any, Any], velocity: float):
        super().__init__(env)
        self.velocity = velocity

    @override
    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        off = abs(info["x_velocity"] - self.velocity)
        return obs, float(reward) - info["reward_forward"] - off, terminated, truncated, info


class PermutedActions(gymnasium.ActionWrapper[Any, Any, Any]):
    """Keep only the first ``actions`` actions, in permutation number ``order`` (lexicographic; 0 is the identity)."""

    def __init__(self, env: gymnasium.Env[Any, Any], actions: int, order: int):
        super().__init__(env)
        self.action_space = spaces.Discrete(actions)
        if not 0 <= order < math.factorial(actions):
            raise ValueError(f"order must be from 0 to {math.factorial(actions) - 1}, got {order}")
        self.permutation = next(itertools.islice(itertools.permutations(range(actions)), order, None))

    @override
    def action(self, action: int) -> int:
        return self.permutation[action]


class ChannelsFirst(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Transpose images ``[H, W, C]`` to ``[C, H, W]``."""

    def __init__(self, env: gymnasium.Env[Any, Any]):
        super().__init__(env)
        space: Any = env.observation_space
        low, high = np.moveaxis(space.low, -1, 0), np.moveaxis(space.high, -1, 0)
        self.observation_space = spaces.Box(low, high, dtype=space.dtype)

    @override
    def observation(self, observation: np.ndarray) -> np.ndarray:
        return np.moveaxis(observation, -1, 0)


class OneHotView(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Encode MiniGrid's partial view one-hot: a plane per object type, colour and state, ``[20, 7, 7]``; drop the mission."""

    def __init__(self, env: gymnasium.Env[Any, Any]):
        super().__init__(env)
        constants = importlib.import_module("minigrid.core.constants")
        tables = (constants.OBJECT_TO_IDX, constants.COLOR_TO_IDX, constants.STATE_TO_IDX)
        self.planes = [np.eye(len(table), dtype=np.float32) for table in tables]
        space: Any = env.observation_space
        shape = (sum(map(len, tables)), *space["image"].shape[:2])
        self.observation_space = spaces.Box(0, 1, shape, np.float32)

    @override
    def observation(self, observation: dict[str, Any]) -> np.ndarray:
        view = observation["image"]
        hot = [plane[view[..., i]] for i, plane in enumerate(self.planes)]
        return np.ascontiguousarray(np.moveaxis(np.concatenate(hot, -1), -1, 0))


class HiddenGoal(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Fix the goal of MiniGrid's FourRooms at column ``x`` and row ``y``; start and doors stay random."""

    def __init__(self, env: gymnasium.Env[Any, Any], x: int, y: int):
        super().__init__(env)
        inner: Any = env.unwrapped
        if not hasattr(inner, "_goal_default_pos"):
            raise ValueError("HiddenGoal is for MiniGrid-FourRooms-v0")
        inner._goal_default_pos = (x, y)


class Entry(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Observe one entry of a Dict of observations, such as an image, and drop the others."""

    def __init__(self, env: gymnasium.Env[Any, Any], key: str):
        super().__init__(env)
        space: Any = env.observation_space
        if not isinstance(space, spaces.Dict) or key not in space.spaces:
            raise ValueError(f"there is no entry {key} in {space}")
        self.key, self.observation_space = key, space[key]

    @override
    def observation(self, observation: dict[str, Any]) -> Any:
        return observation[self.key]


class WeightedReward(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Make one reward of a vector: the sum of its entries, each times one of ``weights``; a weight may be a task's."""

    def __init__(self, env: gymnasium.Env[Any, Any], weights: Sequence[float]):
        super().__init__(env)
        self.weights = np.asarray(weights, float)

    @override
    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, vector, terminated, truncated, info = self.env.step(action)
        reward = np.asarray(vector, float)
        if reward.size != len(self.weights):
            raise ValueError(f"the reward has {reward.size} entries, and there are {len(self.weights)} weights")
        return obs, float(self.weights @ reward.ravel()), terminated, truncated, info


class Episodes(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Begin every episode as the task says.

    Args:
        env: the environment.
        seed: of every episode; None: that of the call.
        options: what a reset is given beside it.
        attributes: numbers by their paths, which a reset draws anew: they are written after it.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], seed: int | None, options: dict[str, Any], attributes: dict[str, Any]):
        super().__init__(env)
        self.seed, self.options, self.attributes = seed, options, attributes

    @override
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        answer = self.env.reset(seed=seed if self.seed is None else self.seed, options=copy.deepcopy(self.options) or options)
        for path, value in self.attributes.items():
            write(self.unwrapped, path, value)
        return answer


OWN: dict[str, Any] = {
    c.__name__: c for c in (Direction, Velocity, PermutedActions, ChannelsFirst, OneHotView, HiddenGoal, Entry, WeightedReward)
}
# Left out: wrappers that take Python objects as arguments, and those with memory across episodes, which replaying one
# episode from a checkpoint would not restore.
LIBRARIES = {
    "gymnasium.wrappers": (
        *("AtariPreprocessing", "ClipAction", "ClipReward", "DiscretizeAction", "DiscretizeObservation", "FilterObservation"),
        *("FlattenObservation", "FrameStackObservation", "GrayscaleObservation", "MaxAndSkipObservation", "RepeatAction"),
        *("RescaleAction", "RescaleObservation", "ReshapeObservation", "ResizeObservation", "StickyAction"),
        "TimeAwareObservation",
    ),
    "minigrid.wrappers": (
        *("FlatObsWrapper", "FullyObsWrapper", "ImgObsWrapper", "RGBImgObsWrapper", "RGBImgPartialObsWrapper"),
        "ViewSizeWrapper",
    ),
}
WRAPPERS = {**dict.fromkeys(OWN, ""), **{name: library for library, names in LIBRARIES.items() for name in names}}
