"""Environments that break in every way known, registered with Gymnasium: what the tests of faults share."""

from __future__ import annotations

import os

import gymnasium
import numpy as np
from gymnasium import spaces

# what an environment may do in a step, and what the line about it says
STEPS = {
    "reward_nan": "the reward is nan",
    "reward_inf": "the reward is inf",
    "reward_huge": "the reward is 1e\\+38, beyond 1e\\+18",
    "reward_none": "the reward is None, not one number",
    "reward_text": "the reward is str 'much', not one number",
    "reward_vector": r"the reward is an array of the shape \[2\], not one number: a wrapper must make one number of it",
    "obs_nan": "the observation holds nan",
    "obs_inf": "the observation holds -inf",
    "obs_huge": "the observation holds 1e\\+30",
    "obs_shape": r"the observation has the shape \[3\], the observation space \[2\]",
    "obs_ragged": "the observation is no array of numbers",
    "obs_text": "the observation is of the type <U",
    "obs_none": r"the observation has the shape \[\]",
    "obs_complex": "the observation is of the type complex128",
    "ends_vector": r"terminated is an array of the shape \[2\], not one boolean",
    "four_values": "step raised ValueError: not enough values to unpack",
    "no_value": "step raised TypeError: cannot unpack",
    "raises": "step raised ValueError: two lines, one word",
    "asserts": "step raised AssertionError",
    "exits": "step raised SystemExit",
    "unpicklable": "step raised Unpicklable: no",
}
FINE = ("fine", "reward_array", "ends_array", "obs_integers")
AFTER = 40  # steps of all episodes of an environment until it breaks: more than a trial at the start takes


class Unpicklable(Exception):
    """An error that no pipe carries."""

    def __init__(self, first, second):
        super().__init__("no")
        self.lock = lambda: (first, second)


class Broken(gymnasium.Env):
    """A point on a line; ``how`` it breaks after ``after`` steps of all its episodes."""

    observation_space = spaces.Box(-10, 10, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, how="fine", after=AFTER, push=1.0):
        if how == "exits_at_once":
            raise SystemExit("no licence")
        self.how, self.after, self.push, self.steps = how, after, push, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.state, {}

    def step(self, action):
        self.steps += 1
        self.state = (self.state + np.float32(0.1 * self.push) * np.array([2 * action - 1, 1], np.float32)).clip(-5, 5)
        answer = [self.state, -float(abs(self.state[0])), False, False, {}]
        return tuple(answer) if self.steps <= self.after else self._break(answer)

    def _break(self, answer):
        obs, how = np.array(answer[0]), self.how
        if how == "dies":
            os._exit(3)
        if how == "raises":
            raise ValueError("two lines,\n one word")
        if how == "asserts":
            raise AssertionError
        if how == "exits":
            raise SystemExit("enough")
        if how == "unpicklable":
            raise Unpicklable(1, 2)
        obs[1] = {"obs_nan": np.nan, "obs_inf": -np.inf, "obs_huge": 1e30}.get(how, obs[1])
        integers = how == "obs_integers"
        answer[0] = {
            "obs_shape": np.zeros(3, np.float32),
            "obs_ragged": [[1.0], [1.0, 2.0]],
            "obs_text": np.array(["a", "b"]),
            "obs_none": None,
            "obs_complex": obs.astype(complex),
        }.get(how, obs.round().astype(int) if integers else obs)
        rewards = {"nan": np.nan, "inf": np.inf, "huge": 1e38, "none": None, "text": "much", "vector": np.ones(2)}
        rewards["array"] = np.ones(1)
        if how.startswith("reward_"):
            answer[1] = rewards[how.removeprefix("reward_")]
        answer[2] = {"ends_vector": np.zeros(2, bool), "ends_array": np.zeros(1, bool)}.get(how, False)
        return {"four_values": tuple(answer[:4]), "no_value": None}.get(how, tuple(answer))


class Unseeded(Broken):
    """Draws its starts from a generator that ``reset`` never seeds."""

    chance = np.random.default_rng(0)

    def reset(self, *, seed=None, options=None):
        self.state = self.chance.uniform(-1, 1, 2).astype(np.float32)
        return self.state, {}


class Remembers(Broken):
    """Begins where the episode before ended."""

    def reset(self, *, seed=None, options=None):
        before = getattr(self, "state", None)
        obs, info = super().reset(seed=seed)
        if before is not None:
            self.state = before
        return (obs if before is None else before), info


class Overwrites(Broken):
    """Sets its goal anew at every reset."""

    goal = 0.0

    def reset(self, *, seed=None, options=None):
        self.goal = 1.0
        return super().reset(seed=seed)


class Copies(Broken):
    """Gives away a copy, so that what is written into it is lost."""

    wind = property(lambda self: np.zeros(2))


class Bounded(Broken):
    """Asserts that actions are within its float64 bounds, which no 32-bit number hits."""

    action_space = spaces.Box(np.array([-0.3]), np.array([0.1]), dtype=np.float64)

    def step(self, action):
        assert self.action_space.contains(action), f"{action} is out of bounds"
        return super().step(1)


class Whole(Broken):
    """Takes a vector of whole numbers."""

    action_space = spaces.Box(0, 3, (1,), np.int64)

    def step(self, action):
        assert self.action_space.contains(action)
        return (np.array([float(action[0]), 0], np.float32), *super().step(1)[1:])


for kind in (Broken, Unseeded, Remembers, Overwrites, Copies, Bounded, Whole):
    gymnasium.register(f"{kind.__name__}-v0", kind)


def values(id="Broken-v0", address="constructor.push", nominal=1.0, spread=(0.5, 2.0), **constructor):
    """The values of a family of one parameter, as in yaml."""
    return {
        "id": id,
        "horizon": 15,
        "constructor": constructor,
        "parameters": {"push": {"nominal": nominal, "set": address}},
        "ranges": {"push": list(spread)},
        "choices": {},
        "ood_choices": {},
        "ood_ranges": {},
        "derived": {},
        "wrappers": [],
        "processes": 1,
    }
