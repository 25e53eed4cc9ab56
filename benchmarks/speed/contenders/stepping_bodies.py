"""Gymnasium's MuJoCo bodies: its environment, its vector environments, and what MuJoCo's ``mj_step`` itself takes for the same.

All episodes have the same length and falls do not end them, so that all contenders step the same kind of states. Actions are
prepared.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from serving import Contender, serve

HEALTHY = ("Ant-v5", "Hopper-v5", "Walker2d-v5", "Humanoid-v5")  # those that a fall would end
LEAN = {  # what metarl's families do not observe and are not charged for
    "Ant-v5": {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0.0},
    "Humanoid-v5": {
        **{f"include_{name}_in_observation": False for name in ("cinert", "cvel", "qfrc_actuator", "cfrc_ext")},
        "contact_cost_weight": 0.0,
    },
}


def build(options: dict[str, Any]) -> Contender:
    name, copies, steps, kind = (options[key] for key in ("id", "copies", "steps", "kind"))
    more: dict[str, Any] = LEAN.get(name, {}) | ({"terminate_when_unhealthy": False} if name in HEALTHY else {})

    def one() -> gymnasium.Env[Any, Any]:
        return gymnasium.make(name, max_episode_steps=steps, **more)

    env = one()
    low, high = env.action_space.low, env.action_space.high
    actions = np.random.default_rng(0).uniform(low, high, (steps, copies, len(low))).astype(np.float32)
    return Contender(KINDS[kind](env, one, copies, actions))


def bare(warm: bool) -> Callable[..., Callable[[int], float]]:
    """``mj_step`` of one copy after another, with the solver's warm start or, as metarl's families, without it."""

    def make(env: Any, one: Any, copies: int, actions: np.ndarray) -> Callable[[int], float]:
        inner = env.unwrapped
        model, data, skip = inner.model, inner.data, inner.frame_skip
        if not warm:
            model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_WARMSTART
        number = 0

        def run(count: int) -> float:
            nonlocal number
            for _ in range(count):
                inner.reset()
                mine = actions[:, number % copies]
                number += 1
                for action in mine:
                    data.ctrl[:] = action
                    mujoco.mj_step(model, data, skip)
            return float(count * len(actions))

        return run

    return make


def single(env: Any, one: Any, copies: int, actions: np.ndarray) -> Callable[[int], float]:
    """``gymnasium.make``, one copy after another."""
    number = 0

    def run(count: int) -> float:
        nonlocal number
        for _ in range(count):
            env.reset()
            mine = actions[:, number % copies]
            number += 1
            for action in mine:
                env.step(action)
        return float(count * len(actions))

    return run


def vector(kind: Any) -> Callable[..., Callable[[int], float]]:
    """A vector environment of Gymnasium's, which begins episodes by itself."""

    def make(env: Any, one: Any, copies: int, actions: np.ndarray) -> Callable[[int], float]:
        together, number, steps = kind([one] * copies), 0, len(actions)
        together.reset(seed=0)

        def run(count: int) -> float:
            nonlocal number
            for _ in range(count * steps):
                together.step(actions[number % steps])
                number += 1
            return float(count * steps * copies)

        return run

    return make


KINDS = {
    "mj_step": bare(warm=False),
    "mj_step, warm start": bare(warm=True),
    "gymnasium.make": single,
    "SyncVectorEnv": vector(SyncVectorEnv),
    "AsyncVectorEnv": vector(AsyncVectorEnv),
}

warnings.filterwarnings("ignore")
serve(build, ["gymnasium", "mujoco"])
