"""The references of RL² beside its tables (Duan 2016, arXiv:1611.02779, tables 1 and 2): total reward of a trial.

    python benchmarks/references.py                           both tables, about five minutes on one core
    python benchmarks/references.py bandit --n 10 100         some rows
    python benchmarks/references.py mdp --only psrl --tasks 200

Each task is one trial. Every number is a ``metarl train algo=... env=... algo.episodes=N`` with the overrides below; the tasks
are the same for all strategies of a row. A cell is the mean and its standard error over tasks, then the paper's value and,
where there is one, that of an independent recomputation. Where the paper tuned a constant, so is the one here, by row.

Bandits meet the paper's columns but for optimistic Thompson sampling, which does not gain as much as reported. Processes: PSRL
meets it from n=50 on. UCRL2, BEB and both greedy ones do better here, since their estimates count the prior the tasks are drawn
from; without it the greedy ones fall a little short of the paper. OPSRL gains less than reported.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from metarl_cli.config.registry import load
from metarl_cli.experience.rollout import run_episodes
from metarl_cli.interfaces import Budget, Context
from metarl_cli.seeding import numpy_rng, torch_rng

CONF = Path(__file__).resolve().parent.parent / "conf"
CPU = torch.device("cpu")


class Column(NamedTuple):
    """One strategy: the option of ``conf/algo``, and what to change in row ``(n, k)``."""

    algo: str
    overrides: Callable[[int, int], list[str]]
    paper: list[float]
    recomputed: list[float]  # empty where there is none


def same(*overrides: str) -> Callable[[int, int], list[str]]:
    return lambda n, k: list(overrides)


def by_n(key: str, values: dict[int, float]) -> Callable[[int, int], list[str]]:
    return lambda n, k: [f"{key}={values[n]}"]


ALONE = same("algo.prior.successors=0.0001", "algo.prior.reward=0.0", "algo.prior.strength=0.0001")  # as if without a prior
BANDIT_ROWS = list(product([10, 100, 500], [5, 10, 50]))
BANDIT = {
    "random": Column("greedy", same("algo.epsilon=1.0"), [5.0, 5.0, 5.1, 49.9, 49.9, 49.8, 249.8, 249.0, 249.6], []),
    "gittins": Column(
        "gittins",
        same(),
        [6.6, 6.6, 6.5, 78.3, 82.8, 85.2, 405.8, 437.8, 463.7],
        [6.59, 6.64, 6.64, 78.7, 83.7, 85.2, 406.6, 440.3, 462.1],
    ),
    "thompson": Column(
        "thompson",
        same(),
        [5.7, 5.5, 5.2, 74.7, 76.7, 64.5, 402.0, 429.5, 427.2],
        [5.83, 5.58, 5.15, 75.1, 77.0, 64.5, 401, 432, 426],
    ),
    "optimistic_thompson": Column("optimistic_thompson", same(), [6.5, 6.2, 5.5, 77.9, 81.4, 67.7, 406.7, 438.9, 437.6], []),
    "ucb1": Column(
        "ucb1",
        lambda n, k: [f"algo.bonus={0.1 if n == 10 else 0.2 if (n, k) != (500, 5) else 0.25}"],
        [6.7, 6.7, 6.6, 78.0, 82.4, 84.3, 405.8, 437.1, 457.6],
        [6.66, 6.70, 6.71, 78.4, 83.4, 84.7, 406.3, 440.0, 457.8],
    ),
    "epsilon_greedy": Column(
        "epsilon_greedy",
        by_n("algo.epsilon", {10: 0.01, 100: 0.02, 500: 0.05}),
        [6.6, 6.6, 6.5, 75.4, 77.4, 78.3, 388.2, 408.0, 413.6],
        [],
    ),
    "greedy": Column("greedy", same(), [6.6, 6.6, 6.5, 74.8, 77.1, 78.0, 380.6, 395.0, 402.8], []),
}
MDP_ROWS = [(n, 0) for n in (10, 25, 50, 75, 100)]
MDP = {
    "random": Column("mdp_greedy", same("algo.epsilon=1.0"), [100.1, 250.2, 499.7, 749.9, 999.4], []),
    "psrl": Column("psrl", same(), [138.1, 408.8, 904.4, 1417.1, 1939.5], [134.2, 402.8, 905, 1430, 1940]),
    "opsrl": Column("opsrl", same(), [144.1, 425.2, 930.7, 1449.2, 1973.9], []),
    "ucrl2": Column(
        "ucrl2",
        by_n("algo.radius", {10: 0.07, 25: 0.07, 50: 0.1, 75: 0.1, 100: 0.1}),
        [146.6, 424.1, 918.9, 1427.6, 1942.1],
        [],
    ),
    "beb": Column(
        "beb",
        by_n("algo.bonus", {10: 0.35, 25: 0.7, 50: 1.0, 75: 1.0, 100: 1.2}),
        [150.2, 427.8, 917.8, 1422.6, 1935.1],
        [151.8, 443, 965, 1486, 2000],
    ),
    "epsilon_greedy": Column(
        "mdp_epsilon_greedy",
        by_n("algo.epsilon", {10: 0.02, 25: 0.02, 50: 0.05, 75: 0.05, 100: 0.05}),
        [132.8, 377.3, 823.3, 1293.9, 1778.2],
        [],
    ),
    "epsilon_greedy, no prior": Column(
        "mdp_epsilon_greedy",
        lambda n, k: [*ALONE(n, k), "algo.epsilon=0.1"],
        [132.8, 377.3, 823.3, 1293.9, 1778.2],
        [],
    ),
    "greedy": Column("mdp_greedy", same(), [134.8, 368.8, 769.3, 1172.9, 1578.5], [149.4, 422, 901, 1371, 1841]),
    "greedy, no prior": Column("mdp_greedy", ALONE, [134.8, 368.8, 769.3, 1172.9, 1578.5], []),
    "oracle": Column("oracle", same(), [], [218.3, 545.75, 1091.5, 1637.25, 2183.0]),
}
# name -> rows, columns, tasks of a trial of n episodes
TABLES = {
    "bandit": (BANDIT_ROWS, BANDIT, {10: 20_000, 100: 4000, 500: 2000}),
    "mdp": (MDP_ROWS, MDP, {10: 2000, 25: 1000, 50: 1000, 75: 1000, 100: 1000}),
}


def measure(table: str, column: Column, n: int, k: int, tasks: int) -> tuple[float, float]:
    """The mean and standard error of the total reward of one trial on each of so many tasks."""
    env = ["env=bandit", f"env.arms={k}"] if table == "bandit" else ["env=tabular_mdp"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("train", [f"algo={column.algo}", *env, f"algo.episodes={n}", *column.overrides(n, k)])
        values = {group: OmegaConf.to_container(composed[group], resolve=True) for group in ("env", "algo")}
    group, algo = (load(kind, group) for kind, group in values.items())
    family = group.module.Family(group.config, CPU)
    algorithm = algo.module.Algo(algo.config, Context(family, None, 1, 0, CPU))
    task = family.sample_tasks(tasks, "test", numpy_rng(0, "tasks", "test"))
    adapted = next(algorithm.adapt(task, Budget(), torch_rng(0, "support")))
    rngs = torch_rng(0, "env"), torch_rng(0, "agent")
    returns, _ = run_episodes(family, task, adapted.policy, 1, *rngs, adapted.episodes)
    total = returns.sum(0).double()
    return float(total.mean()), float(total.std()) / tasks**0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="bandit, mdp; both if none")
    parser.add_argument("--n", type=int, nargs="+", help="only rows of so many episodes")
    parser.add_argument("--only", nargs="+", help="only these columns")
    parser.add_argument("--tasks", type=int, help="tasks in every row")
    chosen = parser.parse_args()
    if unknown := set(chosen.tables) - set(TABLES):
        parser.error(f"no such table: {', '.join(sorted(unknown))}; known: {', '.join(TABLES)}")
    torch.set_num_threads(1)
    for table in chosen.tables or TABLES:
        rows, columns, sizes = TABLES[table]
        columns = {name: column for name, column in columns.items() if not chosen.only or name in chosen.only}
        seconds = dict.fromkeys(columns, 0.0)
        heading = ["n, k" if table == "bandit" else "n", "tasks", *columns]
        print(f"\nmeasured ± standard error (paper; recomputed)\n\n| {' | '.join(heading)} |\n|{'---|' * len(heading)}")
        for place, (n, k) in enumerate(rows):
            if chosen.n and n not in chosen.n:
                continue
            tasks = chosen.tasks or sizes[n]
            cells = [f"{n}, {k}" if k else str(n), str(tasks)]
            for name, column in columns.items():
                began = time.monotonic()
                mean, error = measure(table, column, n, k, tasks)
                seconds[name] += time.monotonic() - began
                others = [str(values[place]) for values in (column.paper, column.recomputed) if values]
                digits = 2 if mean < 100 else 1
                cells.append(f"{mean:.{digits}f} ± {error:.{digits}f}" + (f" ({'; '.join(others)})" if others else ""))
            print(f"| {' | '.join(cells)} |", flush=True)
        print(f"| seconds | | {' | '.join(f'{value:.0f}' for value in seconds.values())} |", flush=True)


if __name__ == "__main__":
    main()
