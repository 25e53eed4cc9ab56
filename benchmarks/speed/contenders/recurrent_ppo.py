"""sb3-contrib's RecurrentPPO on the trials of experiment=rl2_bandit_n100_k5.

The bandits are one batch of numpy arrays, so that stepping costs next to nothing. The observation is what metarl's memory sees:
the last arm, its reward, whether there was one, and the time.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from serving import Contender, serve
from stable_baselines3.common.vec_env import VecEnv

ARMS, PULLS = 5, 100


class Bandits(VecEnv):
    """Bernoulli bandits whose trials end together; then new ones are drawn."""

    def __init__(self, trials: int):
        observation = gymnasium.spaces.Box(-1, 1, (ARMS + 3,), np.float32)
        self.render_mode = None
        self.rng, self.rows = np.random.default_rng(0), np.arange(trials)
        super().__init__(trials, observation, gymnasium.spaces.Discrete(ARMS))

    def reset(self) -> np.ndarray:
        self.chances, self.time = self.rng.random((self.num_envs, ARMS)), 0
        return np.zeros((self.num_envs, ARMS + 3), np.float32)

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        reward = (self.rng.random(self.num_envs) < self.chances[self.rows, self.actions]).astype(np.float32)
        self.time += 1
        obs = np.zeros((self.num_envs, ARMS + 3), np.float32)
        obs[self.rows, self.actions] = 1
        obs[:, ARMS], obs[:, ARMS + 1], obs[:, ARMS + 2] = reward, 1, self.time / PULLS
        infos: list[dict[str, Any]] = [{} for _ in self.rows]
        ended = self.time == PULLS
        if ended:
            for row, info in enumerate(infos):
                info["terminal_observation"] = obs[row]
            obs = self.reset()
        return obs, reward, np.full(self.num_envs, ended), infos

    def close(self) -> None:
        pass

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        pass

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return [None] * self.num_envs

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


def build(options: dict[str, Any]) -> Contender:
    trials, hidden = options["trials"], 64
    model = RecurrentPPO(
        "MlpLstmPolicy",
        Bandits(trials),
        n_steps=PULLS,
        batch_size=PULLS * trials // options["minibatches"],
        n_epochs=4,
        learning_rate=1e-3,
        gamma=1.0,
        gae_lambda=0.95,
        ent_coef=0.01,
        policy_kwargs={
            "lstm_hidden_size": hidden,
            "shared_lstm": True,
            "enable_critic_lstm": False,
            "net_arch": {"pi": [hidden], "vf": [hidden]},
        },
        device=options["device"],
        seed=0,
    )

    def run(count: int) -> float:
        model.learn(count * PULLS * trials, reset_num_timesteps=False)
        return float(count * PULLS * trials)

    return Contender(run)


torch.set_num_threads(1)
serve(build, ["sb3-contrib", "stable-baselines3", "torch"])
