"""The tables of docs/results/rl2.md: every experiment of RL², several seeds, the same held-out tasks; slow.

    python benchmarks/rl2_tables.py --seeds 3 --jobs 2                  train what is not finished yet, then print the table
    python benchmarks/rl2_tables.py --only bandit_n10_k5 mdp_n10
    python benchmarks/rl2_tables.py --no-train --curve bandit_n500_k5   beside the table, validation over training as a figure

Every run is an ordinary ``metarl train experiment=rl2_<name> seed=<n>``, so that it can be repeated alone. A trial's return is
the mean over held-out tasks, with Student's 95 % interval over the seeds; in parentheses the standard error over the tasks of a
seed.
Each run uses one core; time is the wall time of its training, without validation and test.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from run_folders import done, train

from metarl_cli.evaluation.statistics import over_seeds

CONF = Path(__file__).resolve().parent.parent / "conf" / "experiment"
EXPERIMENTS = sorted(path.stem.removeprefix("rl2_") for path in CONF.glob("rl2_*.yaml"))


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """The test's result and the logged metrics of a finished run."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return json.loads((folder / "results" / "test.json").read_text()), [json.loads(line) for line in lines]


def totals(results: list[dict[str, Any]], which: str) -> str:
    """Mean over seeds of whole trials' returns with its interval, and the standard error over tasks within a seed."""
    if results[0][which] is None:
        return "-"
    found = [result[which]["mean"] for result in results]
    within = np.mean([result[which]["standard_error"] for result in results])
    return f"{over_seeds(found)} ({within:.2f})"


def episodes(results: list[dict[str, Any]]) -> str:
    """The mean return of the first, second, middle and last episode."""
    steps = results[0]["adapted"]["steps"]
    shown = sorted({0, min(1, len(steps) - 1), len(steps) // 2, len(steps) - 1}) if len(steps) > 4 else range(len(steps))
    means = np.mean([[point["value"] for point in result["adapted"]["mean"]] for result in results], axis=0)
    return ", ".join(f"{steps[k] + 1}: {means[k]:.2f}" for k in shown)


def row(name: str, folders: list[Path]) -> str:
    """The line of the table from the finished runs of an experiment."""
    results, metrics = zip(*(read(folder) for folder in folders), strict=True)
    minutes = [max(line.get("time/training_seconds", 0.0) for line in lines) / 60 for lines in metrics]
    millions = np.mean([lines[-1]["step"] for lines in metrics]) / 1e6
    cells = [f"`rl2_{name}`", str(len(folders)), totals(results, "trial"), totals(results, "trial_sampled")]
    spent = f"{min(minutes):.1f} to {max(minutes):.1f} min"
    return f"| {' | '.join([*cells, episodes(results), f'{millions:.1f} M', spent])} |"


def draw(curves: dict[str, list[Path]], path: Path) -> None:
    """The greedy trial's return on validation tasks over training, one line for each seed."""
    figure = Figure(figsize=(5 * len(curves), 3.4), layout="constrained")
    for axes, (name, folders) in zip(np.atleast_1d(figure.subplots(1, len(curves))), curves.items(), strict=True):
        for folder in folders:
            lines = [line for line in read(folder)[1] if "eval/trial_return" in line]
            axes.plot([line["step"] / 1e6 for line in lines], [line["eval/trial_return"] for line in lines])
        axes.set(title=f"rl2_{name}", xlabel="environment steps [millions]", ylabel="return of a trial, validation tasks")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    print(f"written: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one core each")
    parser.add_argument("--only", nargs="*", choices=EXPERIMENTS, default=EXPERIMENTS, help="these experiments alone")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/rl2"))
    parser.add_argument("--no-train", action="store_true", help="print the table of what is finished")
    parser.add_argument("--curve", nargs="*", choices=EXPERIMENTS, default=[], help="draw how these learned")
    args = parser.parse_args()
    folders = {name: [args.outputs / f"{name}-seed{seed}" for seed in range(args.seeds)] for name in args.only}
    if not args.no_train:
        commands = [
            ["metarl", "train", f"experiment=rl2_{name}", f"seed={seed}", f"run={folder}"]
            for name, all_folders in folders.items()
            for seed, folder in enumerate(all_folders)
        ]
        with ThreadPoolExecutor(args.jobs) as pool:
            for command, code in zip(commands, pool.map(train, commands), strict=True):
                print(code, " ".join(command), flush=True)
    finished = {
        name: [f for f in all_folders if (f / "results" / "test.json").exists() and done(f)]
        for name, all_folders in folders.items()
    }
    print("\n| experiment | seeds | trial, greedy | trial, sampled | greedy, by episode | env steps | training |")
    print("|---|---|---|---|---|---|---|")
    for name, found in finished.items():
        if found:
            print(row(name, found))
    if args.curve:
        draw({name: finished[name] for name in args.curve}, args.outputs / "curves.png")


if __name__ == "__main__":
    main()
