"""Stable-Baselines3's DQN on CartPole-v1 at the values of experiment=dqn_cartpole_v1: 256 steps, then 128 updates."""

from __future__ import annotations

from typing import Any

import gymnasium
import torch
from serving import Contender, serve
from stable_baselines3 import DQN

STEPS = 256  # of a unit


def build(options: dict[str, Any]) -> Contender:
    model = DQN(
        "MlpPolicy",
        gymnasium.make("CartPole-v1"),
        learning_rate=2e-3,
        batch_size=64,
        buffer_size=64_000,
        learning_starts=1000,
        gamma=0.99,
        target_update_interval=256,
        train_freq=STEPS,
        gradient_steps=STEPS // 2,
        exploration_fraction=0.16,
        exploration_final_eps=0.04,
        policy_kwargs={"net_arch": [64, 64], "activation_fn": torch.nn.SiLU},
        device=options["device"],
        seed=0,
    )
    model.learn(5 * STEPS)  # beyond learning_starts

    def run(count: int) -> float:
        model.learn(count * STEPS, reset_num_timesteps=False)
        return float(count * STEPS)

    return Contender(run)


torch.set_num_threads(1)
serve(build, ["stable-baselines3", "gymnasium", "torch"])
