"""One Gymnasium environment that is not trusted: every answer is checked before a tensor is made of it.

What is wrong is one line with the name of the environment, the episode's step and what was returned.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from metarl_cli.config.messages import one_line
from metarl_cli.errors import EnvironmentFault
from metarl_cli.experience.finite import LARGEST

FIELDS = "observation, reward, terminated, truncated, info"


class Answer(NamedTuple):
    """What one step of one environment returned."""

    obs: np.ndarray
    reward: float
    terminated: bool
    truncated: bool


def together(observations: list[Any], rewards: list[Any], like: Simulator) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the observations ``[K, ...]`` and rewards ``[K]`` of alike environments; None where one needs a closer look.

    A look at all of them takes a fifth of the time of :meth:`Simulator.checked` for each.
    """
    try:
        seen, gained = np.array(observations), np.array(rewards)  # faster than stack for small ones
    except ValueError:  # rows of unequal length
        return None
    if seen.shape[1:] != like.shape or gained.ndim != 1 or gained.dtype.kind not in "fiub":
        return None
    if like.pixels:
        sound = seen.dtype == like.env.observation_space.dtype
    else:
        sound = seen.dtype.kind in "iub" or (seen.dtype.kind == "f" and seen.itemsize > 2 and _moderate(seen))
    gained = gained.astype(np.float64)
    return (seen, gained) if sound and _moderate(gained) else None


def _moderate(numbers: np.ndarray) -> bool:
    """Return whether numbers are finite and not too large; False also where many large ones have too large a sum of squares."""
    flat = numbers.ravel()
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.dot(flat, flat) <= LARGEST**2)  # false for nan, too


class Simulator:
    """One environment, whose observations, rewards and ends are checked.

    Args:
        env: the environment.
        name: by which messages name it.
        details: what else messages say of it, such as the parameters of its task.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], name: str, details: str = ""):
        self.env, self.name, self.details = env, name, details
        self.shape = env.observation_space.shape
        self.pixels = len(self.shape or ()) == 3 and env.observation_space.dtype in (bool, np.uint8)
        self.first_action = int(getattr(env.action_space, "start", 0))
        self.clock = 0  # [steps] of the episode

    def reset(self, seed: int | None = None) -> np.ndarray:
        """Begin an episode; returns its first observation.

        Raises:
            EnvironmentFault: if the environment fails, or returns something else than an observation and a dict.
        """
        self.clock = 0
        answer = self._call("reset", self.env.reset, seed=seed)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise self._fault(f"reset returned {_kind(answer)}, not an observation and a dict")
        return self._observation(answer[0])

    def step(self, action: np.ndarray) -> Answer:
        """Act.

        Args:
            action: a number from 0, or a vector of the environment's own type, within its bounds.

        Raises:
            EnvironmentFault: if the environment fails, or returns anything but finite numbers of the shapes it declares.
        """
        return self.checked(*self.act(action))

    def act(self, action: np.ndarray) -> tuple[Any, Any, Any, Any]:
        """Act as :meth:`step` does; returns what the environment returned, which is to be checked."""
        self.clock += 1
        answer = self._call("step", self.env.step, action if action.ndim else int(action) + self.first_action)
        if not isinstance(answer, tuple) or len(answer) != 5:
            raise self._fault(f"step returned {_kind(answer)}, not {FIELDS}")
        return answer[:4]

    def checked(self, obs: Any, reward: Any, terminated: Any, truncated: Any) -> Answer:
        """Return what the environment returned last, checked; raises EnvironmentFault as :meth:`step` does."""
        ends = self._scalar("terminated", terminated), self._scalar("truncated", truncated)
        return Answer(self._observation(obs), self._reward(reward), bool(ends[0]), bool(ends[1]))

    def _call(self, what: str, method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        try:
            return method(*arguments, **named)
        except (Exception, SystemExit) as error:  # an environment may raise anything, and must not end the run unnamed
            text = one_line(error)
            fault = self._fault(f"{what} raised {type(error).__name__}{': ' if text else ''}{text}")
            fault.add_note(traceback.format_exc())  # for HYDRA_FULL_ERROR=1, also from another process
            raise fault from error

    def _observation(self, obs: Any) -> np.ndarray:
        try:
            array = np.asarray(obs)
        except ValueError:  # rows of unequal length
            raise self._fault("the observation is no array of numbers") from None
        if array.shape != self.shape:
            raise self._fault(
                f"the observation has the shape {list(array.shape)}, the observation space {list(self.shape or ())}"
            )
        kind = array.dtype.kind
        declared = self.env.observation_space.dtype
        if kind not in "fiub" or (self.pixels and array.dtype != declared):
            raise self._fault(f"the observation is of the type {array.dtype}, the observation space of {declared}")
        if kind == "f":
            flat = array.ravel() if array.itemsize > 2 else array.ravel().astype(np.float32)
            with np.errstate(over="ignore", invalid="ignore"):
                square = np.dot(flat, flat)
            if not square <= LARGEST**2:
                worst = flat[np.abs(flat).argmax()]  # the first nan, if there is one
                raise self._fault(f"the observation holds {_number(float(worst))}")
        return array

    def _reward(self, reward: Any) -> float:
        value = reward if type(reward) is float else self._scalar("reward", reward)
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise self._fault(f"the reward is {_kind(reward)}, not a number") from None
        if not -LARGEST <= number <= LARGEST:
            raise self._fault(f"the reward is {_number(number)}")
        return number

    def _scalar(self, name: str, value: Any) -> Any:
        """Return a value of which there is one; an array of one entry passes for it."""
        if isinstance(value, (bool, float, int, np.generic)):
            return value
        array = np.asarray(value)
        if array.size != 1 or array.dtype.kind not in "fiub":
            subject, wanted = ("the reward", "number") if name == "reward" else (name, "boolean")
            hint = ": a wrapper must make one number of it" if name == "reward" and array.size > 1 else ""
            raise self._fault(f"{subject} is {_kind(value)}, not one {wanted}{hint}")
        return array.item()

    def _fault(self, text: str) -> EnvironmentFault:
        when = f"step {self.clock} of an episode" if self.clock else "the start of an episode"
        return EnvironmentFault(f"{self.name}: {text} (at {when}{self.details})")


def whole(actions: np.ndarray, dtype: Any) -> np.ndarray:
    """Return actions in the type of an environment: rounded where it counts in whole numbers, not cut."""
    return (np.rint(actions) if np.issubdtype(dtype, np.integer) else actions).astype(dtype)


def _number(value: float) -> str:
    """Return a number that cannot be learned from, in words."""
    return f"{value:g}" if not math.isfinite(value) else f"{value:g}, beyond {LARGEST:g}, which 32-bit numbers cannot square"


def _kind(value: Any) -> str:
    """Return what a value is, in a few words."""
    if value is None:
        return "None"
    if isinstance(value, np.ndarray) or hasattr(value, "shape"):
        return f"an array of the shape {list(np.shape(value))}"
    if isinstance(value, (tuple, list)):
        return f"{len(value)} values"
    return f"{type(value).__name__} {one_line(value)[:40]!r}"
