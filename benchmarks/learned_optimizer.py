"""A learned optimiser beside Adam and SGD, tuned on the same tasks, at the same number of inner steps on held-out tasks; slow.

    metarl train experiment=learned_optimizer_cartpole seed=0 run=outputs/learned/seed0        and seeds 1 and 2, then
    python benchmarks/learned_optimizer.py outputs/learned/seed*

Adam and SGD get the best learning rate of a grid of nine, by the return at the end of the lifetime on validation tasks: for one
lifetime and for a longer one. Then all live on the test tasks, from the same initial weights. Cells are the mean over seeds of
the IQM over tasks, with Student's 95 % interval over the seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metarl_cli.config.models import TrainConfig
from metarl_cli.config.registry import load
from metarl_cli.evaluation.held_out import held_out_tasks
from metarl_cli.evaluation.statistics import iqm, over_seeds
from metarl_cli.experience.rollout import run_episodes
from metarl_cli.interfaces import Budget, Task
from metarl_cli.runs.build import Components, build
from metarl_cli.runs.folder import RunFolder
from metarl_cli.runs.results import load_weights
from metarl_cli.seeding import torch_rng

RATES = {"adam": np.geomspace(3e-4, 0.1, 9), "sgd": np.geomspace(3e-3, 3.0, 9)}


def lives(parts: Components, task: Task, steps: list[int], seed: int, scratch: bool) -> np.ndarray:
    """Mean returns ``[len(steps), M]`` after so many adaptation steps, by the champion or without a genome."""
    algorithm: Any = parts.algorithm
    begin = algorithm.adapt_from_scratch if scratch else algorithm.adapt
    found = []
    for adaptation in begin(task, Budget(max(steps)), torch_rng(seed, "support")):
        if adaptation.step in steps:
            rngs = torch_rng(seed, "episodes"), torch_rng(seed, "policy")
            (returns,), _ = run_episodes(parts.family, task, adaptation.policy, 5, *rngs)
            found.append(returns.double().mean(1).numpy())
    return np.stack(found)


def with_rule(config: TrainConfig, rule: str, lr: float) -> Components:
    """The run's lifetime with another update rule."""
    algo = config.algo.values
    algo["lifetime"]["rule"], algo["lifetime"]["hyper"]["lr"] = rule, float(lr)
    return build(config.model_copy(update={"algo": load("algo", algo)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="finished runs of learned_optimizer with different seeds")
    parser.add_argument("--tasks", type=int, default=100, help="test tasks")
    parser.add_argument("--longer", type=int, default=4, help="a long lifetime, in lifetimes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = RunFolder(args.runs[0]).config()
    length = config.algo.config.lifetime.config.steps
    steps = [length, args.longer * length]
    family = build(config).family
    validation, test = (held_out_tasks(family, split, args.tasks, config.tasks_seed) for split in ("validation", "test"))
    found: dict[str, list[np.ndarray]] = {}
    for rule, rates in RATES.items():
        for goal, k in (("one lifetime", 0), (f"{args.longer} lifetimes", 1)):
            scores = [float(iqm(lives(with_rule(config, rule, lr), validation, steps[: k + 1], 1000, True)[k])) for lr in rates]
            print(
                f"{rule}, tuned for {goal}: " + "  ".join(f"{lr:.2g}: {x:.1f}" for lr, x in zip(rates, scores, strict=True)),
                flush=True,
            )
            best = with_rule(config, rule, rates[int(np.argmax(scores))])
            found[f"{rule}, lr {rates[int(np.argmax(scores))]:.2g}, tuned for {goal}"] = [
                lives(best, test, steps, seed, True) for seed in range(len(args.runs))
            ]
    for number, path in enumerate(args.runs):
        parts = build(RunFolder(path).config())
        load_weights(RunFolder(path), parts.algorithm, "best")
        found.setdefault("learned, trained on one lifetime", []).append(lives(parts, test, steps, number, False))
    lifetime = config.algo.config.lifetime.config
    updates = length * lifetime.iterations * lifetime.updates
    print(f"\n| rule | return after one lifetime (about {updates} updates) | after {args.longer} |\n|---|---|---|")
    for name, each in found.items():
        scores_ = np.stack(each)  # [seeds, 2, M]
        print(f"| {name} | {over_seeds(iqm(scores_[:, 0]))} | {over_seeds(iqm(scores_[:, 1]))} |")


if __name__ == "__main__":
    main()
