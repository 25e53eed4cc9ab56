"""What the contenders of the meta-gradient share: weights, experience, and the arithmetic that it takes.

Everything is drawn by numpy from fixed seeds, so that contenders in different environments compute the same loss.
"""

from __future__ import annotations

import numpy as np

OBS, ACTIONS = 4, 2
GAMMA, REWARD_SCALE, RATE = 0.97, 0.03, 0.1  # of conf/learner/dqn.yaml and conf/algo/maml_dqn.yaml
Arrays = dict[str, np.ndarray]


def weights(hidden: int, seed: int) -> Arrays:
    """Weights of a network of two hidden layers, uniform in ± 1 / sqrt(inputs), under metarl's names."""
    rng, found = np.random.default_rng(seed), {}
    for name, outputs, inputs in (("hidden.0", hidden, OBS), ("hidden.1", hidden, hidden), ("head", ACTIONS, hidden)):
        bound = inputs**-0.5
        found[f"{name}.weight"] = rng.uniform(-bound, bound, (outputs, inputs)).astype(np.float32)
        found[f"{name}.bias"] = rng.uniform(-bound, bound, outputs).astype(np.float32)
    return found


def experience(tasks: int, steps: int, envs: int, seed: int) -> Arrays:
    """Random transitions ``[M, T, N, ...]`` under the names of metarl's ``Transitions``; a tenth of them is padding."""
    rng, shape = np.random.default_rng(seed), (tasks, steps, envs)
    return {
        "obs": rng.normal(0, 0.3, (*shape, OBS)).astype(np.float32),
        "action": rng.integers(0, ACTIONS, shape),
        "reward": np.ones(shape, np.float32),
        "next_obs": rng.normal(0, 0.3, (*shape, OBS)).astype(np.float32),
        "terminated": rng.random(shape) < 0.05,
        "ended": rng.random(shape) < 0.06,
        "weight": (rng.random(shape) < 0.9).astype(np.float32),
    }


def operations(tasks: int, steps: int, support: int, query: int, hidden: int) -> float:
    """Floating-point operations of the matrix products of one second-order meta-gradient.

    A product of a batch of B with a matrix of W entries takes 2 B W, and its backward pass as much for the weights and as much
    for the inputs, but for the first layer's inputs, which are data.

    Args:
        tasks: M.
        steps: K, inner steps.
        support: transitions of a task in an inner step.
        query: transitions of a task in the query loss.
        hidden: units of both layers.
    """
    entries = OBS * hidden + hidden * hidden + hidden * ACTIONS
    inside = entries - OBS * hidden  # of the layers whose inputs are not data
    forward, backward = entries, entries + inside
    inner = 2 * support * (2 * forward + backward)  # of the targets and the values; back through the values
    # back through the targets and the values, and through the inner backward pass: its products for the weights depend on the
    # inputs and on what comes from above, its products for the inputs on the weights and on what comes from above
    outer = 2 * support * (2 * backward + entries + 3 * inside)
    loss = 2 * query * (3 * forward + backward)  # the choice and the value of the next action, the values
    return float(tasks * (steps * (2 * inner + outer) + loss))  # the slow copy takes the inner steps too
