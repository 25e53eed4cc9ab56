"""envpool's MuJoCo bodies, in a pool of threads; as ``stepping_bodies``: episodes of one length, which falls do not end."""

from __future__ import annotations

from typing import Any

import envpool
import numpy as np
from serving import Contender, Unavailable, serve


def build(options: dict[str, Any]) -> Contender:
    name, copies, steps = (options[key] for key in ("id", "copies", "steps"))
    if name not in envpool.list_all_envs():
        raise Unavailable(f"it has no {name}")
    more = {"num_envs": copies, "num_threads": options["threads"], "max_episode_steps": steps, "seed": 0}
    if "terminate_when_unhealthy" in envpool.make_spec(name).config._fields:
        more["terminate_when_unhealthy"] = False
    env = envpool.make(name, env_type="gymnasium", **more)
    space, number = env.action_space, 0
    actions = np.random.default_rng(0).uniform(space.low, space.high, (steps, copies, len(space.low)))
    env.reset()

    def run(count: int) -> float:
        nonlocal number
        for _ in range(count * steps):
            env.step(actions[number % steps])
            number += 1
        return float(count * steps * copies)

    return Contender(run)


serve(build, ["envpool"])
