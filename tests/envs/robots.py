"""What the tests of MuJoCo's bodies share: families of ours and Gymnasium's environments."""

import gymnasium
import mujoco
from conftest import compose_values, load

from metarl_cli.envs import mujoco as bodies

LIKE = {  # body -> Gymnasium's environment, what it leaves out there, and what it is paid for here
    "half_cheetah": ("HalfCheetah-v5", {}, {"control_cost": 0.1}),
    "ant": ("Ant-v5", {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0.0}, {"control_cost": 0.5}),
    "hopper": ("Hopper-v5", {}, {"control_cost": 1e-3}),
    "walker2d": ("Walker2d-v5", {}, {"control_cost": 1e-3}),
    "humanoid": (
        "Humanoid-v5",
        {f"include_{name}_in_observation": False for name in ("cinert", "cvel", "qfrc_actuator", "cfrc_ext")}
        | {"contact_cost_weight": 0.0},
        {"control_cost": 0.1, "goal_reward": 1.25, "healthy_reward": 5.0},
    ),
    "reacher": ("Reacher-v5", {}, {"control_cost": 1.0, "goal": "reach", "terminate": False}),
}
IDS = list(LIKE)


def family(body="half_cheetah", **more):
    values = compose_values("train", ["env=half_cheetah_vel"])["env"]
    plain = {**values, "goal": "forward", "ranges": {}, "ood_ranges": {}, "healthy_reward": 1.0, "terminate": True}
    _, config = load("env", {**plain, "body": body, **LIKE[body][2], **more})
    return bodies.Family(config)


def shipped(name):
    module, config = load("env", compose_values("train", [f"env={name}"])["env"])
    assert module is bodies
    return bodies.Family(config)


def reference(body, **factors):
    """Gymnasium's environment, whose solver starts cold and whose physics are multiplied."""
    name, options, _ = LIKE[body]
    env = gymnasium.make(name, max_episode_steps=10_000, disable_env_checker=True, **options)
    model = env.unwrapped.model
    model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_WARMSTART
    for name, factor in factors.items():
        getattr(model, name)[:] *= factor
    mujoco.mj_setConst(model, env.unwrapped.data)
    env.reset(seed=0)
    return env
