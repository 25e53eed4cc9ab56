"""evosax's SNES on the shared CartPoles: generations are compiled; episodes run in a ``while_loop`` until the last one ends."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import cartpole
import jax
import jax.numpy as jnp
from evosax.algorithms import SNES
from serving import Contender, serve

PHYSICS = {name: jnp.array(values) for name, values in cartpole.PHYSICS.items()}


def values(genomes: jax.Array, obs: jax.Array) -> jax.Array:
    """The outputs ``[P, M, 2]`` of the policies ``[P, G]`` for observations ``[P, M, 4]``."""
    x, place, last = obs, 0, len(cartpole.SIZES) - 2
    for layer, (inputs, outputs) in enumerate(pairwise(cartpole.SIZES)):
        end = place + outputs * inputs
        weights, biases = genomes[:, place:end].reshape(-1, outputs, inputs), genomes[:, end : end + outputs]
        x = jnp.einsum("pmi,poi->pmo", x, weights) + biases[:, None]
        x, place = x if layer == last else jax.nn.silu(x), end + outputs
    return x


def returns(genomes: jax.Array, key: jax.Array) -> jax.Array:
    """The returns ``[P, M]`` of one episode on each task; starts are the same for every individual."""
    shape = (len(genomes), cartpole.TASKS)
    first = jax.random.uniform(key, (4, cartpole.TASKS), minval=-0.05, maxval=0.05)
    state = tuple(jnp.broadcast_to(column, shape) for column in first)

    def going(carry: Any) -> jax.Array:
        return (carry[1] < cartpole.HORIZON) & carry[2].any()

    def body(carry: Any) -> Any:
        state, time, running, total = carry
        action = values(genomes, jnp.stack(state, -1)).argmax(-1)
        moved, ended = cartpole.step(jnp, state, action, PHYSICS)
        return moved, time + 1, running & ~ended, total + running

    return jax.lax.while_loop(going, body, (state, 0, jnp.ones(shape, bool), jnp.zeros(shape)))[-1]


def build(options: dict[str, Any]) -> Contender:
    population = options["population"]
    search = SNES(population, jnp.zeros_like(jnp.array(cartpole.start(0)[0])))
    params = search.default_params

    @jax.jit
    def generation(key: jax.Array, state: Any) -> tuple[Any, jax.Array]:
        asking, starting, telling = jax.random.split(key, 3)
        genomes, state = search.ask(asking, state, params)
        found = returns(genomes, starting)
        state, _ = search.tell(telling, genomes, -found.mean(1), state, params)  # it minimises
        return state, found.sum()

    state: Any = None
    key = jax.random.PRNGKey(0)
    spent: list[jax.Array] = []

    def step() -> None:
        nonlocal state, key
        key, now = jax.random.split(key)
        state, steps = generation(now, state)
        spent.append(steps)

    def start(number: int) -> None:
        nonlocal state, key
        key = jax.random.PRNGKey(number)
        mean, deviations = (jnp.array(x) for x in cartpole.start(number))
        state = search.init(key, mean, params).replace(std=deviations)
        step()
        jax.block_until_ready(state)
        spent.clear()

    def run(count: int) -> float:
        for _ in range(count):
            step()
        jax.block_until_ready(state)
        return float(count * population * cartpole.TASKS)

    return Contender(run, start, extras=lambda: {"env_steps": float(sum(spent))})


serve(build, ["evosax", "jax"])
