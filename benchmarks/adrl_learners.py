"""What the learners of ADRL come to on held-out tasks, beside random search from the same draws and the default settings; slow.

    python benchmarks/adrl_learners.py --jobs 2               learn what is not learned yet, then print the table
    python benchmarks/adrl_learners.py --families navigation --seeds 3

ADRL searches while it learns, and what comes of it is networks as well as settings (``benchmarks/adrl.py`` is about those).
Here held-out tasks are what is learned: four of the test split, others for every seed. Sixteen learners on each share their
experience, as the family's experiment in ``conf/experiment`` has it:

    pbt        ADRL: networks and settings are inherited
    random     the same draws of settings, networks at birth and tasks, and as many steps and updates; nobody is selected
    default    the same tasks, and as many steps and updates; the settings of ``algo.lifetime``, the whole network, and networks
               of their own at birth
    alone      the same, but each with its own experience only; the mean of all is what one DQN by the default settings comes to

The fittest one after the last generation, by the episodes that fitness is, is measured anew: 32 greedy episodes on each task
with other random numbers. *Mean of all* are all sixteen, measured so; PBT has made others of the worst, random search has not.

A score is the mean over a seed's tasks. Tables have the mean over seeds and Student's 95 % interval over them, seeds being all
that is independent; a difference is that of pairs with the same seed. Environment steps are those of learning and of fitness,
which takes more where episodes last longer, and which the defaults are judged by but once.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from metarl_cli.adaptation.gradient import NetworkPolicy
from metarl_cli.cli.compose import conf_dir, plain
from metarl_cli.config.models import TrainConfig
from metarl_cli.config.registry import validate
from metarl_cli.evaluation.statistics import Scores, over_seeds
from metarl_cli.evolution.population import tile
from metarl_cli.experience.rollout import run_episodes
from metarl_cli.interfaces import Task
from metarl_cli.networks.stacked import first, fresh
from metarl_cli.runs.build import Components, build
from metarl_cli.seeding import CommonRandomNumbers, numpy_rng, torch_rng

FAMILIES = ["cartpole", "navigation", "pendulum", "acrobot", "key_to_door", "key_to_door_wide"]
KINDS = {  # who learns -> the experiment of a family, and what is changed
    "pbt": ("adrl_{}", []),
    "random": ("adrl_random_{}", []),
    "default": ("adrl_{}", []),
    "alone": ("adrl_{}", ["algo.lifetime.shared=false"]),
}
SEEDS = 10
EPISODES = 32  # of the last measurement, on each task


def learn(family: str, kind: str, seed: int, file: Path) -> None:
    """Learn held-out tasks; writes the returns ``[P][M]`` of all, measured anew, and who had been the fittest."""
    torch.set_num_threads(1)
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        experiment, changes = KINDS[kind]
        overrides = [f"experiment={experiment.format(family)}", f"seed={seed}", "hardware=cpu", *changes]
        config = validate(TrainConfig, plain(compose("train", overrides)))
    algo = config.algo.config
    parts, num, episodes = build(config), algo.search.config.population, algo.fitness.episodes
    task = parts.family.sample_tasks(algo.fitness.tasks, "test", numpy_rng(seed, "learned"))
    if kind in ("default", "alone"):
        found = by_default(parts, task, num, config.train.iterations, episodes, seed)
    else:
        found = by_search(parts, task, num, config.train.iterations)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(found))
    os.replace(part, file)


def by_search(parts: Components, task: Task, num: int, generations: int) -> dict[str, Any]:
    """ADRL's learners, or random search's."""
    algorithm: Any = parts.algorithm
    algorithm.task, fittest = task, 0

    def choose(genomes: Tensor, fitness: Tensor) -> dict[str, float]:
        nonlocal fittest
        fittest = int(fitness.argmax())
        return {}

    algorithm._choose = choose  # no settings are looked for
    for _ in range(generations):
        algorithm.train_step()
    with torch.no_grad():
        returns, _ = algorithm._measure(algorithm.lives, task, num, EPISODES, None, "anew")
    return {"returns": returns.tolist(), "fittest": fittest, "env_steps": algorithm.env_steps}


def by_default(parts: Components, task: Task, num: int, steps: int, episodes: int, seed: int) -> dict[str, Any]:
    """Learners that have the settings of the lifetime."""
    algorithm: Any = parts.algorithm
    rows, rng = tile(task, num), torch_rng(seed, "lives")
    networks = fresh(algorithm.learner, len(first(rows)), rng)
    life = algorithm.lifetime.begin(networks, algorithm.lifetime.default, rows, rng, copies=num)
    for _ in range(steps):
        life.learn()

    def measured(episodes: int, name: str) -> tuple[Tensor, int]:
        policy = NetworkPolicy(algorithm.learner, life.params)
        with CommonRandomNumbers(num):
            (returns,), lengths = run_episodes(
                parts.family, rows, policy, episodes, torch_rng(seed, name), torch_rng(seed, "policy")
            )
        return returns.double().mean(1).view(num, -1), int(lengths.sum())

    with torch.no_grad():
        (fitness, spent), (returns, _) = measured(episodes, "fitness"), measured(EPISODES, "anew")
    learning = int(life.env_steps.sum())
    return {"returns": returns.tolist(), "fittest": int(fitness.mean(1).argmax()), "env_steps": learning + spent}


def lines(family: str, outputs: Path, seeds: int) -> list[str]:
    """The rows of a family, of the seeds that all have learned."""
    files = [[outputs / f"{kind}_{family}-seed{seed}.json" for kind in KINDS] for seed in range(seeds)]
    found = [[json.loads(f.read_text()) for f in each] for each in files if all(f.exists() for f in each)]
    if not found:
        return []
    best = np.array([[np.mean(r["returns"][r["fittest"]]) for r in each] for each in found])  # [seeds, kinds]
    everyone = np.array([[np.mean(r["returns"]) for r in each] for each in found])
    millions = np.array([[r["env_steps"] for r in each] for each in found]).mean(0) / 1e6

    def row(who: str, best: Scores, everyone: Scores, more: str = "") -> str:
        return f"| {family} | {who} | {len(found)} | {over_seeds(best)} | {over_seeds(everyone)} | {more} |"

    return [row(k, best[:, i], everyone[:, i], f"{millions[i]:.2f} M") for i, k in enumerate(KINDS)] + [
        row(f"pbt less {k}", best[:, 0] - best[:, i], everyone[:, 0] - everyone[:, i]) for i, k in enumerate(KINDS) if i > 0
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=2, help="processes, one core each")
    parser.add_argument(
        "--outputs", type=Path, default=Path("outputs/adrl_learners"), help="what is there is not learned again"
    )
    args = parser.parse_args()
    args.outputs.mkdir(parents=True, exist_ok=True)
    runs = [(f, k, s, args.outputs / f"{k}_{f}-seed{s}.json") for f in args.families for s in range(args.seeds) for k in KINDS]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, mp_context=spawn, max_tasks_per_child=1) as pool:
        futures = {run: pool.submit(learn, *run) for run in runs if not run[-1].exists()}
        for (family, kind, seed, _), future in futures.items():
            future.result()
            print(f"{family}, {kind}, seed {seed}: learned", flush=True)
    print("\n| family | learners | seeds | the fittest | mean of all | environment steps |\n|---|---|---|---|---|---|")
    print("\n".join(line for family in args.families for line in lines(family, args.outputs, args.seeds)))


if __name__ == "__main__":
    main()
