"""Probe families, each with a known answer that only one ability reaches."""

from __future__ import annotations

import torch

from metarl_cli.envs.native import NativeConfig, NativeEnv, NativeFamily
from metarl_cli.interfaces import Step
from metarl_cli.spaces import Continuous, Discrete, Spec


class Buttons(NativeFamily):
    """Two buttons, one pays 1, the other -1; which one is hidden and differs between tasks. Nothing is observed."""

    parameters = {"side": 1.0}

    def __init__(self, horizon: int = 4):
        super().__init__(NativeConfig(horizon=horizon, ranges={"side": [-1.0, 1.0]}, ood_ranges={}))
        self.spec = Spec(obs_shape=(1,), actions=Discrete(2), horizon=horizon)

    def initial_state(self, shape, like, rng):
        return torch.ones(*shape, 1, dtype=like.dtype)

    def dynamics(self, state, action, task, rng):
        pays = (action == 1) == (task["side"] > 0)
        return state, torch.where(pays, 1.0, -1.0), torch.zeros_like(pays)


class Dial(Buttons):
    """A dial between -2 and 2, one step an episode: the penalty is the distance to a hidden setting of 1 or -1."""

    def __init__(self):
        super().__init__(horizon=1)
        self.spec = Spec(obs_shape=(1,), actions=Continuous((-2.0,), (2.0,)), horizon=1)

    def dynamics(self, state, action, task, rng):
        setting = torch.where(task["side"] > 0, 1.0, -1.0)
        reward = -(action[..., 0] - setting).abs()
        return state, reward, torch.zeros_like(reward, dtype=torch.bool)


class Cue(NativeFamily):
    """Which button pays is shown in a trial's first episode only, and pressed for 1 or -1 at the last step of its last one.

    Episodes end after ``length`` steps, at most 4, which differs between tasks and is not shown: trials of 3 episodes are of
    different lengths. The observation: the side in the first episode, else 0; 1 in the last episode, else 0.
    """

    parameters = {"side": 1.0, "length": 2.0}
    episodes = 3

    def __init__(self):
        ranges = {"side": [-1.0, 1.0], "length": [0.5, 4.5]}
        super().__init__(NativeConfig(horizon=4, ranges=ranges, ood_ranges={}))
        self.spec = Spec(obs_shape=(2,), actions=Discrete(2), horizon=4)

    def make(self, task, num_envs, rng, render=False):
        return CueEnv(self, task, num_envs, rng)

    def initial_state(self, shape, like, rng):
        return torch.zeros(*shape, 1, dtype=like.dtype)

    def dynamics(self, state, action, task, rng):
        state = state + 1  # steps of the episode
        pays = (action == 1) == (task["side"] > 0)
        last = state[..., 0] >= task["length"].round()
        return state, torch.where(pays, 1.0, -1.0) * last, last


class CueEnv(NativeEnv):
    """Counts the episodes since it was made, which are those of one trial; all steps of an episode show the same."""

    def __init__(self, family, task, num_envs, rng):
        super().__init__(family, task, num_envs, rng)
        self.episode = torch.zeros(self.shape)
        self.obs = self.shown()

    def shown(self):
        side = self.task["side"].sign().expand(self.shape)
        return torch.stack([side * (self.episode == 0), (self.episode == Cue.episodes - 1).float()], -1)

    def step(self, action):
        obs, asked = self.obs, self.episode == Cue.episodes - 1
        step = super().step(action)
        self.episode = self.episode + (step.ended)
        self.obs = self.shown()
        return Step(obs, step.reward * asked, step.terminated, step.truncated, self.obs)


class Corridor(NativeFamily):
    """Five cells in a row; reward 1 and the end at the right one, 0 elsewhere. Value of cell s: gamma^(4 - s - 1)."""

    parameters = {"length": 5.0}

    def __init__(self):
        super().__init__(NativeConfig(horizon=30, ranges={}, ood_ranges={}))
        self.spec = Spec(obs_shape=(1,), actions=Discrete(2), horizon=30)

    def initial_state(self, shape, like, rng):
        return torch.zeros(*shape, 1, dtype=like.dtype)

    def dynamics(self, state, action, task, rng):
        state = (state + torch.where(action == 1, 0.25, -0.25)[..., None]).clamp(0.0, 1.0)
        there = state[..., 0] >= 1.0
        return state, there.to(state.dtype), there


class Sides(NativeFamily):
    """A row of seven cells, the start in the middle: reward 1 at the end on the hidden side, 0 elsewhere."""

    parameters = {"side": 1.0}

    def __init__(self):
        super().__init__(NativeConfig(horizon=4, ranges={"side": [-1.0, 1.0]}, ood_ranges={}))
        self.spec = Spec(obs_shape=(1,), actions=Discrete(2), horizon=4)

    def initial_state(self, shape, like, rng):
        return torch.zeros(*shape, 1, dtype=like.dtype)

    def dynamics(self, state, action, task, rng):
        state = (state + torch.where(action == 1, 1 / 3, -1 / 3)[..., None]).clamp(-1.0, 1.0)
        there = (state[..., 0].abs() > 0.9) & (state[..., 0].sign() == task["side"].sign())
        return state, there.to(state.dtype), torch.zeros_like(there)

    def knowledge(self, task):
        return task["side"].sign().reshape(-1, 1)
