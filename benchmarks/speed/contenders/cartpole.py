"""What the contenders of evolution share: eight CartPoles, the policy's start, and the physics for torch and JAX alike."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np

SIZES = (4, 32, 32, 2)  # of the policy's layers
HORIZON = 500
# Eight tasks of env=cartpole_family (seed 0, three digits): SI units, force_mag below zero is a reversed actuator.
PHYSICS = {
    "gravity": [6.79, 8.5, 17.0, 16.5, 14.2, 14.6, 5.83, 6.36],
    "masscart": [1.9, 0.939, 1.95, 1.63, 1.15, 1.76, 1.05, 1.31],
    "masspole": [0.372, 0.143, 0.172, 0.361, 0.28, 0.0919, 0.306, 0.257],
    "length": [0.256, 1.49, 1.22, 1.15, 1.32, 1.23, 0.874, 0.69],
    "force_mag": [11.3, -7.76, -11.5, 11.8, 12.7, 9.3, 5.03, 10.8],
}
TASKS = len(PHYSICS["gravity"])


def start(number: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the standard deviations ``[G]`` from which the search of a round starts, in float32.

    The genes are weights and biases layer by layer, as ``torch.nn.Sequential`` orders its parameters.
    """
    rng, means, deviations = np.random.default_rng(number), [], []
    for inputs, outputs in pairwise(SIZES):
        bound = 1 / math.sqrt(inputs)
        means += [rng.uniform(-bound, bound, outputs * inputs), np.zeros(outputs)]
        deviations.append(np.full(outputs * (inputs + 1), bound / 2))
    return np.concatenate(means).astype(np.float32), np.concatenate(deviations).astype(np.float32)


def step(xp: Any, state: tuple[Any, ...], action: Any, task: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
    """The next state and whether the episode ends; ``xp`` is ``torch`` or ``jax.numpy``.

    The equations and constants are Gymnasium's CartPole-v1.
    """
    x, speed, angle, spin = state
    mass, moment = task["masscart"] + task["masspole"], task["masspole"] * task["length"]
    sin, cos = xp.sin(angle), xp.cos(angle)
    push = (xp.where(action == 1, task["force_mag"], -task["force_mag"]) + moment * spin * spin * sin) / mass
    turn = (task["gravity"] * sin - cos * push) / (task["length"] * (4 / 3 - task["masspole"] * cos * cos / mass))
    drive = push - moment * turn * cos / mass
    moved = (x + 0.02 * speed, speed + 0.02 * drive, angle + 0.02 * spin, spin + 0.02 * turn)
    return moved, (abs(moved[0]) > 2.4) | (abs(moved[2]) > math.pi / 15)
