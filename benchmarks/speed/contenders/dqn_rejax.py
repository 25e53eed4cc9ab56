"""Rejax's DQN on CartPole-v1 at the values of experiment=dqn_cartpole_v1, one seed or many by ``vmap``, compiled.

Rejax takes at least one update for each step of its environments: two environments make it one update for two steps. Its loss
is squared where metarl's and Stable-Baselines3's are Huber's.
"""

from __future__ import annotations

from typing import Any

import jax
from rejax import DQN
from serving import Contender, serve

STEPS = 256  # of a unit, for each seed
ENVS = 2


def build(options: dict[str, Any]) -> Contender:
    seeds = options["networks"]
    algorithm = DQN.create(
        env="CartPole-v1",
        agent_kwargs={"activation": "swish"},  # its networks have two layers of 64 units
        num_envs=ENVS,
        num_epochs=1,
        learning_rate=2e-3,
        batch_size=64,
        buffer_size=64_000,
        fill_buffer=1000,
        gamma=0.99,
        max_grad_norm=10.0,
        ddqn=False,
        polyak=0.0,
        target_update_freq=STEPS,
        total_timesteps=64_000,
        exploration_fraction=0.16,
        eps_end=0.04,
    )

    def unit(state: Any) -> Any:
        return jax.lax.fori_loop(0, STEPS // ENVS, lambda _, s: algorithm.train_iteration(s), state)

    if seeds == 1:
        advance, state = jax.jit(unit), jax.jit(algorithm.init_state)(jax.random.PRNGKey(0))
    else:
        advance = jax.jit(jax.vmap(unit))
        state = jax.jit(jax.vmap(algorithm.init_state))(jax.random.split(jax.random.PRNGKey(0), seeds))
    for _ in range(5):  # beyond fill_buffer
        state = advance(state)

    def run(count: int) -> float:
        nonlocal state
        for _ in range(count):
            state = advance(state)
        jax.block_until_ready(state)
        return float(count * STEPS * seeds)

    return Contender(run)


serve(build, ["rejax", "gymnax", "jax"])
