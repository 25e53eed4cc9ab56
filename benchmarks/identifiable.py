"""Which parameters of a task matter: a family's rule on its own support, and on one of a task alike in all but one parameter.

    python benchmarks/identifiable.py                                  the families below, some minutes on one core
    python benchmarks/identifiable.py two_link_arm --split validation  one family

No network is trained. The rule (``Family.rule``) reads a task from a support of 8 x 20 random steps, as the adaptation of
``maml_dqn`` does; where a random action lasts several steps, the line says so. Each number is the mean return over tasks:

optimum      of the best policy that knows the task, where the family knows it
own          the rule on the task's own support
nothing      the rule without a support: what it does where nothing is known
random       uniformly random actions
swapped      the rule on the support of a task that is alike but for one parameter, which is another task's; beside it what
             that costs, as a share of the way from the better of ``nothing`` and ``random`` to ``own``
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from metarl_cli.config.registry import load
from metarl_cli.experience.exploration import EpsilonGreedy
from metarl_cli.experience.rollout import RandomPolicy, collect, run_episodes
from metarl_cli.interfaces import Family, Policy, Task, Transitions
from metarl_cli.seeding import numpy_rng, torch_rng

CONF = Path(__file__).resolve().parent.parent / "conf"


class Support(NamedTuple):
    """The random steps that a rule reads a task from."""

    rollouts: int = 8
    steps: int = 20
    repeat: int = 1  # steps that a random action lasts


SUPPORTS = {
    "two_link_arm": Support(),
    "navigation_2d": Support(),
    "navigation_2d_sparse": Support(),
    "cartpole_family": Support(),
    "mountain_car_family": Support(steps=60, repeat=16),
    "acrobot_family": Support(steps=40, repeat=4),
    "pendulum_family": Support(),
    "point_target": Support(),
    "trading": Support(),
    "queues": Support(),
    "recommendation": Support(),
    "following": Support(),
    "arm": Support(),
}


def main(argv: list[str] | None = None) -> None:
    """Print one block for each family."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("families", nargs="*", default=list(SUPPORTS), help="options of conf/env with a rule")
    parser.add_argument("--split", default="test", help="which tasks: validation, test or ood")
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of tasks and episodes")
    args = parser.parse_args(argv)
    for name in args.families:
        print("\n".join(measured(name, SUPPORTS.get(name, Support()), args.split, args.tasks, args.episodes, args.seed)))


def measured(name: str, support: Support, split: str, tasks: int, episodes: int, seed: int) -> list[str]:
    """Return the lines of one family."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        values: Any = OmegaConf.to_container(compose("train", [f"env={name}"]).env, resolve=True)
    group = load("env", values)
    family: Family = group.module.Family(group.config)
    task = family.sample_tasks(tasks, split, numpy_rng(seed, "tasks", split))

    def returned(policy: Policy | None) -> float:
        assert policy is not None
        rngs = torch_rng(seed, "episodes"), torch_rng(seed, "policy")
        return float(run_episodes(family, task, policy, episodes, *rngs)[0].mean())

    def seen(of: Task) -> Transitions:
        random = EpsilonGreedy(RandomPolicy(family.spec.actions), family.spec.actions.choices(3), 1.0, support.repeat)
        env = family.make(of, support.rollouts, torch_rng(seed, "support"))
        return collect(env, random, random.start(support.rollouts, torch_rng(seed, "random")), support.steps, one_episode=True)

    own_support = seen(task)
    own = returned(family.rule(own_support))
    nothing = returned(family.rule(own_support._replace(weight=torch.zeros_like(own_support.weight))))
    random = returned(RandomPolicy(family.spec.actions))
    best = family.optimum(task)
    lasting = f", a random action lasts {support.repeat} steps" if support.repeat > 1 else ""
    lines = [f"{name}, {tasks} {split} tasks, support {support.rollouts} x {support.steps} steps{lasting}"]
    rows = {} if best is None else {"optimum": float(best.mean())}
    lines += [
        f"  {label:<24}{value:9.2f}" for label, value in (rows | {"own": own, "nothing": nothing, "random": random}).items()
    ]
    for key, values in task.items():
        if (values != values[:1]).any():
            swapped = returned(family.rule(seen(task | {key: values.roll(1, 0)})))
            share = (own - swapped) / (own - max(nothing, random))
            lines.append(f"  {f'swapped {key}':<24}{swapped:9.2f}   costs {share:.0%} of the way")
    return lines


if __name__ == "__main__":
    main()
