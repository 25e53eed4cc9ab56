"""MAML by policy gradients on MuJoCo: a cheetah that learns in one gradient step to run forwards, or backwards.

python examples/maml_on_mujoco.py [key=value ...]       about three minutes; any override of metarl train
"""

import math
import sys

import gymnasium

import metarl_cli as metarl

run = metarl.train("experiment=maml_pg_half_cheetah_dir", *sys.argv[1:])
env = gymnasium.make("HalfCheetah-v5")
for direction, angle in (("forwards", 0.0), ("backwards", math.pi)):
    policy = run.adapt(angle=angle)
    obs, info = env.reset(seed=0)
    for _ in range(100):
        obs, _, _, _, info = env.step(policy(obs))
    print(f"adapted to run {direction}: at {info['x_position']:.1f} m after 5 s of Gymnasium's own environment")
env.close()
