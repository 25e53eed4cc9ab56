"""What the learners of ADRL come to on held-out tasks, beside random search from the same draws and at the same budget; slow.

    python benchmarks/adrl_learners.py --jobs 2               learn what is not learned yet, then print the table
    python benchmarks/adrl_learners.py --families navigation --seeds 3

ADRL searches while it learns, and what comes of it is a network as well as settings (``benchmarks/adrl.py`` is about those).
Here it learns held-out tasks themselves, four of the test split, others for every seed, as the family's experiment has it:
sixteen learners on each, thirty generations, networks and settings inherited.

    pbt        ADRL
    random     the same draws of settings, networks at birth, tasks and steps of learning; nobody is selected
    default    sixteen learners with the settings of ``algo.lifetime`` and the whole network, as many steps of learning,
               networks of their own at birth, each by itself

The fittest, by the four episodes on each task that fitness is, is measured anew after the last generation, for 32 greedy
episodes on each task with other random numbers, and so are all sixteen: *mean of all*.

A score is the mean over a seed's tasks. Tables have the mean over seeds and Student's 95 % interval over them, seeds being all
that is independent; a difference is that of pairs with the same seed. Environment steps include those that fitness takes, more
where episodes last longer.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor

from metarl_cli.building import TrainConfig, validate
from metarl_cli.composing import conf_dir
from metarl_cli.evolution import tile
from metarl_cli.inner_loop import run_episodes
from metarl_cli.run_folder import Parts, build
from metarl_cli.seeding import numpy_rng, torch_rng
from metarl_cli.statistics import Scores
from metarl_cli.types import Task

FAMILIES = ["cartpole", "navigation", "pendulum"]
KINDS = {"pbt": "adrl_{}", "random": "adrl_random_{}", "default": "adrl_{}"}  # search -> the experiment of a family
LEARNERS = 16
SEEDS = 10
EPISODES = 32  # of the last measurement, on each task


def learn(family: str, kind: str, seed: int) -> dict[str, Any]:
    """Learn held-out tasks: the returns ``[P][M]`` of all, measured anew, and who had been the fittest."""
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        overrides = [f"experiment={KINDS[kind].format(family)}", f"seed={seed}", "hardware=cpu"]
        config = validate("train", OmegaConf.to_container(compose("train", overrides), resolve=True))  # type: ignore[arg-type]
    assert isinstance(config, TrainConfig)
    parts, fitness = build(config), config.algo["fitness"]
    task = parts.family.sample_tasks(fitness["tasks"], "test", numpy_rng(seed, "learned"))
    if kind == "default":
        return by_default(parts, task, config.train.iterations, fitness["episodes"], seed)
    algorithm: Any = parts.algorithm
    algorithm.task = task
    fittest: list[int] = []

    def choose(genomes: Tensor, fitness: Tensor) -> dict[str, float]:
        fittest.append(int(fitness.argmax()))
        return {}

    algorithm._choose = choose  # no settings are looked for
    for generation in range(config.train.iterations):
        metrics = algorithm.train_step()
        print(f"generation {generation + 1}: best {metrics['fitness/best']:.2f} mean {metrics['fitness/mean']:.2f}", flush=True)
    with torch.no_grad():
        returns, _ = algorithm._measure(algorithm.lives, task, LEARNERS, EPISODES, None, "anew")
    return {"returns": returns.tolist(), "fittest": fittest[-1], "env_steps": algorithm.env_steps}


def by_default(parts: Parts, task: Task, steps: int, episodes: int, seed: int) -> dict[str, Any]:
    """The same of learners that have the settings of the lifetime."""
    algorithm: Any = parts.algorithm
    rows = tile(task, LEARNERS)
    *_, learned = algorithm.adapt_from_scratch(rows, steps, torch_rng(seed, "lives"))

    def measured(episodes: int, name: str) -> tuple[Tensor, int]:
        act = functools.partial(algorithm.act, learned.params)
        returns, lengths = run_episodes(parts.family, rows, act, episodes, torch_rng(seed, name))
        return returns.double().mean(1).view(LEARNERS, -1), int(lengths.sum())

    (fitness, spent), (returns, _) = measured(episodes, "fitness"), measured(EPISODES, "anew")
    learning = learned.env_steps * len(returns.flatten())
    return {"returns": returns.tolist(), "fittest": int(fitness.mean(1).argmax()), "env_steps": learning + spent}


def interval(scores: Scores) -> str:
    """Mean over seeds with Student's 95 % interval, from ``scores [seeds]``."""
    if len(scores) < 2:
        return f"{scores.mean():.2f}"
    low, high = scipy.stats.t.interval(0.95, len(scores) - 1, scores.mean(), scipy.stats.sem(scores))
    return f"{scores.mean():.2f} [{low:.2f}, {high:.2f}]"


def lines(family: str, outputs: Path, seeds: int) -> list[str]:
    """The rows of a family, of the seeds that all have learned."""
    files = [[outputs / f"{kind}_{family}-seed{seed}.json" for kind in KINDS] for seed in range(seeds)]
    found = [[json.loads(f.read_text()) for f in each] for each in files if all(f.exists() for f in each)]
    if not found:
        return []
    best = np.array([[np.mean(r["returns"][r["fittest"]]) for r in each] for each in found])  # [seeds, kinds]
    everyone = np.array([[np.mean(r["returns"]) for r in each] for each in found])
    millions = np.array([[r["env_steps"] for r in each] for each in found]).mean(0) / 1e6

    def row(name: str, best: Scores, everyone: Scores, more: str = "") -> str:
        return f"| {family} | {name} | {len(found)} | {interval(best)} | {interval(everyone)} | {more} |"

    return [row(k, best[:, i], everyone[:, i], f"{millions[i]:.2f} M") for i, k in enumerate(KINDS)] + [
        row(f"pbt less {k}", best[:, 0] - best[:, i], everyone[:, 0] - everyone[:, i]) for i, k in enumerate(KINDS) if i > 0
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=2, help="searches at a time, one core each")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/adrl_learners"))
    parser.add_argument("--one", nargs=3, metavar=("FAMILY", "SEARCH", "SEED"), help="do one search and print what it found")
    args = parser.parse_args()
    if args.one:
        torch.set_num_threads(1)
        family, kind, seed = args.one
        found = learn(family, kind, int(seed))
        file = args.outputs / f"{kind}_{family}-seed{seed}.json"
        file.with_suffix(".part").write_text(json.dumps(found))
        os.replace(file.with_suffix(".part"), file)
        return
    args.outputs.mkdir(parents=True, exist_ok=True)
    searches = [(f, k, str(s)) for f in args.families for s in range(args.seeds) for k in KINDS]
    left = [(f, k, s) for f, k, s in searches if not (args.outputs / f"{k}_{f}-seed{s}.json").exists()]

    def start(search: tuple[str, str, str]) -> None:
        family, kind, seed = search
        command = [sys.executable, __file__, "--outputs", str(args.outputs), "--one", family, kind, seed]
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (args.outputs / f"{kind}_{family}-seed{seed}.log").open("w") as log:
            code = subprocess.run(command, env=one_thread, stdout=log, stderr=log, check=False).returncode
        print(code, family, kind, f"seed {seed}", flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(start, left))
    print("\n| family | search | seeds | the fittest | mean of all | environment steps |\n|---|---|---|---|---|---|")
    for family in args.families:
        print(*lines(family, args.outputs, args.seeds), sep="\n")


if __name__ == "__main__":
    main()
