"""gymnax's CartPole-v1 by ``vmap``, the steps of a unit in one compiled ``scan``, with random actions that are prepared."""

from __future__ import annotations

from math import prod
from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
from serving import Contender, serve


def build(options: dict[str, Any]) -> Contender:
    copies, steps = prod(options["shape"]), options["steps"]
    env, params = gymnax.make("CartPole-v1")
    actions = jnp.array(np.random.default_rng(0).integers(0, 2, (steps, copies)))
    key = jax.random.PRNGKey(0)
    obs, state = jax.vmap(env.reset, (0, None))(jax.random.split(key, copies), params)

    def step(carry: Any, action: jax.Array) -> tuple[Any, None]:
        key, state, obs, total = carry
        key, now = jax.random.split(key)
        obs, state, reward, *_ = jax.vmap(env.step, (0, 0, 0, None))(jax.random.split(now, copies), state, action, params)
        return (key, state, obs, total + reward.sum()), None

    unit = jax.jit(lambda carry: jax.lax.scan(step, carry, actions)[0])
    carry: Any = (key, state, obs, 0.0)

    def run(count: int) -> float:
        nonlocal carry
        for _ in range(count):
            carry = unit(carry)
        jax.block_until_ready(carry)
        return float(count * steps * copies)

    return Contender(run)


serve(build, ["gymnax", "jax"])
