"""Meta inverse RL: learn on many grids what people may want, then infer a new wish from two demonstrations.

python examples/reward_from_demonstrations.py [key=value ...]       about two minutes; any override of metarl train
"""

import sys

import metarl_cli as metarl

run = metarl.train("algo=mandril", "env=sprite_grid", "train.iterations=3000", *sys.argv[1:])
curve = run.test()["adapted"]
for num, returns in zip(curve["steps"], curve["task_returns"], strict=True):
    print(f"{num} demonstrations: return {sum(returns) / len(returns):.2f} in a grid that nobody has shown")
