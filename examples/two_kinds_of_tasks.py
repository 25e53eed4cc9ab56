"""MAML-DQN with CartPoles and MountainCars in one meta-batch: one initialisation, from which both kinds of tasks are learned.

python examples/two_kinds_of_tasks.py [key=value ...]       about six minutes; any override of metarl train
"""

import sys

import metarl_cli as metarl

run = metarl.train("experiment=maml_dqn_classic_mix", *sys.argv[1:])
curve = run.test()["adapted"]
for step, returns in zip(curve["steps"], curve["task_returns"], strict=True):
    cartpoles, cars = returns[::2], returns[1::2]  # the families of a mix take turns
    print(f"step {step}: CartPoles {sum(cartpoles) / len(cartpoles):.1f}, MountainCars {sum(cars) / len(cars):.1f}")
