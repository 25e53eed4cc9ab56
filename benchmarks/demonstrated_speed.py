"""What a demonstration of a cheetah's speed tells by itself: the mean of one observed number, beside the learned methods.

    metarl train experiment=oracle_pg_half_cheetah_vel run=outputs/oracle
    python benchmarks/demonstrated_speed.py outputs/oracle      half a minute

Nothing is trained. The demonstrator's policy, which takes the speed as an input, acts in test tasks, with

known       the speed of the task
read        the mean forward velocity of one demonstration, after its first 20 steps
constant    1 m/s, the middle of the range: the policy cannot know the task

Each number is the mean return over tasks, by the likeliest actions, with Student's 95 % interval over repetitions.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from metarl_cli.envs.experts import known_by
from metarl_cli.evaluation.held_out import held_out_tasks
from metarl_cli.evaluation.statistics import over_seeds
from metarl_cli.experience.demonstrations import demonstrate
from metarl_cli.experience.rollout import run_episodes
from metarl_cli.interfaces import Budget
from metarl_cli.runs.build import build
from metarl_cli.runs.demonstrator import trained_expert
from metarl_cli.runs.folder import RunFolder
from metarl_cli.runs.results import load_weights
from metarl_cli.seeding import torch_rng

FORWARD = 8  # the place of the forward velocity in an observation
LATER = 20  # [steps] until the cheetah has its speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="of experiment=oracle_pg_half_cheetah_vel")
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--tasks-seed", type=int, default=3041)
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    folder = RunFolder(args.run)
    config = folder.config()
    family, algorithm, _ = build(config)
    load_weights(folder, algorithm, "best")
    task = held_out_tasks(family, "test", args.tasks, args.tasks_seed)
    demonstrator = known_by(family, trained_expert(args.run, family, config.hardware))

    def returned(speed: torch.Tensor, seed: int) -> float:
        policy = next(iter(algorithm.adapt({**task, "velocity": speed}, Budget(0), torch_rng(seed, "support")))).policy
        return float(run_episodes(family, task, policy, 2, torch_rng(seed, "env"), torch_rng(seed, "act"))[0].mean())

    def read(seed: int) -> torch.Tensor:
        seen = demonstrate(demonstrator, task, 1, torch_rng(seed, "demonstrations")).experience
        return seen.next_obs[:, LATER:, 0, FORWARD].mean(1).view_as(task["velocity"])

    constant = torch.ones_like(task["velocity"])
    for name, speed in (("known", lambda _: task["velocity"]), ("read", read), ("constant", lambda _: constant)):
        print(f"{name:<10}{over_seeds(np.array([returned(speed(seed), seed) for seed in range(args.repetitions)]))}")


if __name__ == "__main__":
    main()
