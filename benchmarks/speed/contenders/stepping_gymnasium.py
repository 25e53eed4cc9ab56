"""Gymnasium's own vectorised CartPole-v1 (``vector_entry_point``), with random actions that are prepared."""

from __future__ import annotations

from math import prod
from typing import Any

import gymnasium
import numpy as np
from serving import Contender, serve


def build(options: dict[str, Any]) -> Contender:
    copies = prod(options["shape"])
    env = gymnasium.make_vec("CartPole-v1", num_envs=copies, vectorization_mode="vector_entry_point")
    env.reset(seed=0)
    actions = list(np.random.default_rng(0).integers(0, 2, (options["steps"], copies)))

    def run(count: int) -> float:
        for _ in range(count):
            for action in actions:
                env.step(action)
        return float(count * len(actions) * copies)

    return Contender(run)


serve(build, ["gymnasium", "numpy"])
