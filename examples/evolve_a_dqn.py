"""A population of Q-networks: selection, crossover and mutation of initial weights, judged by what a DQN learns from them.

python examples/evolve_a_dqn.py [key=value ...]       about three minutes; any override of metarl train
"""

import sys

import metarl_cli as metarl


def show(progress):
    """Print the fitness of every tenth generation."""
    if progress.iteration % 10 == 0:
        print(f"generation {progress.iteration}: best fitness {progress.metrics['fitness/best']:.1f}")


run = metarl.train("experiment=evo_dqn_cartpole", *sys.argv[1:], progress=show)
curve = run.test()["adapted"]
for step, iqm in zip(curve["steps"], curve["iqm"], strict=True):
    print(f"step {step}: return {iqm['value']:.1f} [{iqm['low']:.1f}, {iqm['high']:.1f}] on tasks of the test")
