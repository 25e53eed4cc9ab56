"""ADRL, as PBT and by tournaments, against random search over the same space at the same budget, and the defaults; slow.

    python benchmarks/adrl.py --jobs 2                        train what is not finished yet, then print the table
    python benchmarks/adrl.py --no-train --outputs outputs/adrl

*Learners* is the return of the sixteen networks themselves on their training tasks, mean over the last five generations and
± standard error over seeds: the best one and the mean of all. *Settings* is what is found, put to use: a fresh network on each
held-out task learns alone by the champion's settings; the mean over seeds of the IQM over tasks after the lifetime, and as the
mean of the last quarter of it, with Student's 95 % interval over the seeds. *Default* are the settings of
``algo.lifetime``.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from run_folders import done, train

from metarl_cli.evaluation.statistics import iqm, over_seeds

SEEDS = {  # of each family, the most that docs/results/evolution.md has
    "cartpole": 10,
    "mountain_car": 10,
    "acrobot": 5,
    "pendulum": 6,
    "cartpole_wide": 5,
    "pendulum_wide": 9,
}
KINDS = {  # search -> the experiment of a family, and what is changed
    "pbt": ("adrl_{}", []),
    "tournaments": ("adrl_{}", ["algo/search=genetic_few"]),
    "random": ("adrl_random_{}", []),
}


def mean(values: list[float]) -> str:
    """Mean and standard error over seeds."""
    error = f" ± {np.std(values, ddof=1) / np.sqrt(len(values)):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{error}"


def lines(family: str, kind: str, folders: list[Path]) -> list[str]:
    """The row of a search; after random search's that of the default settings."""
    logs = [[json.loads(x) for x in (f / "metrics.jsonl").read_text().splitlines()] for f in folders]
    ends = [[row for row in log if "fitness/best" in row][-5:] for log in logs]
    best, everyone = ([float(np.mean([row[f"fitness/{k}"] for row in end])) for end in ends] for k in ("best", "mean"))
    results = [json.loads((f / "results" / "test.json").read_text()) for f in folders]
    minutes = np.mean([max(row.get("time/training_seconds", 0.0) for row in log) for log in logs]) / 60

    def settings(who: str) -> str:
        found = np.array([result[who]["task_returns"] for result in results])  # [seeds, P, M]
        late = found[:, -(found.shape[1] // 4) :].mean(1)
        return " | ".join(str(over_seeds(iqm(scores))) for scores in (found[:, -1], late))

    learners = f"{mean(best)} | {mean(everyone)}"
    rows = [f"| {family} | {kind} | {len(folders)} | {learners} | {settings('adapted')} | {minutes:.1f} min |"]
    if kind == "random":
        rows.append(f"| {family} | default | {len(folders)} | | | {settings('from_scratch')} | |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, help="of every family; without it the most that docs/results/evolution.md has")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one core each")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/adrl"))
    parser.add_argument("--no-train", action="store_true", help="print the table of what is finished")
    args = parser.parse_args()
    folders = {
        (family, kind): [args.outputs / f"{kind}_{family}-seed{s}" for s in range(args.seeds or num)]
        for family, num in SEEDS.items()
        for kind in KINDS
        if kind != "tournaments" or not family.endswith("_wide")  # not tried there
    }
    if not args.no_train:
        commands = [
            ["metarl", "train", f"experiment={KINDS[kind][0].format(family)}", *KINDS[kind][1], f"seed={seed}", f"run={folder}"]
            for (family, kind), each in folders.items()
            for seed, folder in enumerate(each)
        ]
        with ThreadPoolExecutor(args.jobs) as pool:
            for command, code in zip(commands, pool.map(train, commands), strict=True):
                print(code, " ".join(command), flush=True)
    columns = ["family", "search", "seeds", "learners: best", "all", "settings: after a lifetime"]
    columns += ["its last quarter", "training"]
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for (family, kind), each in folders.items():
        if finished := [f for f in each if (f / "results" / "test.json").exists() and done(f)]:
            print(*lines(family, kind, finished), sep="\n")


if __name__ == "__main__":
    main()
