"""The adaptation table of the README: every variant, several seeds, the same held-out tasks; slow.

    python benchmarks/adaptation.py cartpole --seeds 3 --jobs 2            train what is not finished yet, then print the table
    python benchmarks/adaptation.py navigation --only maml_dqn pretrain_dqn
    python benchmarks/adaptation.py cartpole_evolution                     evolution on the same tasks
    python benchmarks/adaptation.py classic_mix                            one line for each family of a mix

Every run is an ordinary ``metarl train experiment=maml_dqn_<family>`` (evolution's are experiments of their own) with the
overrides named below, so that it can be repeated alone. Scores are the mean returns of each held-out task after adaptation; the
IQM goes over seeds and tasks, its interval is the stratified bootstrap over seeds within tasks. Each run uses one core; time is
its own training time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from metarl_cli.evaluation.statistics import iqm_interval

# What a variant changes. pretrain_dqn's iterations are cheaper and collect no support: it gets so many more of them that it
# has at least the environment steps and the wall time of maml_dqn; its fine-tuning was tuned on the validation tasks.
SAME = {name: [f"algo={name}"] for name in ("maml_dqn", "metasgd_dqn", "fomaml_dqn", "anil_dqn", "reptile_dqn")}
# A rival with about the wall time of maml_dqn, whose fine-tuning is not tuned.
RIVAL = ["algo=pretrain_dqn", "algo.inner.returns.gamma=null", "eval.steps=3", "test.steps=3"]
MAML = {"maml_dqn": SAME["maml_dqn"]}
VARIANTS: dict[str, dict[str, list[str]]] = {
    "cartpole": SAME
    | {
        "pretrain_dqn": [
            "algo=pretrain_dqn",
            "train.iterations=1100",
            "train.eval_every=50",
            "algo.inner.lr=0.003",
            "eval.steps=5",
            "test.steps=5",
        ]
    },
    "navigation": SAME
    | {
        "pretrain_dqn": [
            "algo=pretrain_dqn",
            "train.iterations=700",
            "train.eval_every=20",
            "algo.inner.rule=sgd",
            "algo.inner.lr=0.05",
            "algo.inner.returns.gamma=null",
            "algo.inner.returns.lambda=0.95",
            "eval.steps=3",
            "test.steps=3",
        ]
    },
    "mountain_car": MAML | {"pretrain_dqn": [*RIVAL, "train.iterations=1200", "train.eval_every=60"]},
    "acrobot": MAML,
    "classic_mix": MAML,
    "half_cheetah_dir": MAML,
    "cartpole_evolution": {  # as long as it takes, and at about the environment steps of maml_dqn
        "es_dqn": ["experiment=es_dqn_cartpole"],
        "evo_dqn": ["experiment=evo_dqn_cartpole"],
        "es_dqn, equal steps": ["experiment=es_dqn_cartpole", "train.iterations=66"],
        "evo_dqn, equal steps": ["experiment=evo_dqn_cartpole", "train.iterations=26"],
    },
}


def experiment(family: str, overrides: list[str]) -> list[str]:
    """The settings that a variant changes, where it does not name its own."""
    return [] if overrides[0].startswith("experiment=") else [f"experiment=maml_dqn_{family}"]


def train(command: list[str]) -> int:
    """One run; finished ones are skipped by metarl itself."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = Path(next(w for w in command if w.startswith("run=")).removeprefix("run=") + ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        return subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False).returncode


def done(folder: Path) -> bool:
    """Whether the run is finished."""
    return bool(json.loads((folder / "run.json").read_text())["status"] == "finished")


def rows(name: str, folders: list[Path]) -> list[str]:
    """The lines of the table from the finished runs of a variant: one, or one for each family of a mix."""
    lines = [[json.loads(x) for x in (f / "metrics.jsonl").read_text().splitlines()] for f in folders]
    minutes = np.mean([max(x.get("time/training_seconds", 0.0) for x in found) for found in lines]) / 60
    millions = np.mean([found[-1]["step"] for found in lines]) / 1e6
    results = {
        split: [json.loads((f / "results" / f"{split}.json").read_text()) for f in folders]
        for split in ("test", "ood")
        if (folders[0] / "results" / f"{split}.json").exists()
    }
    steps = results["test"][0]["adapted"]["gradient_steps"][-1]

    def cell(split: str, who: str, k: int, group: int | None) -> str:
        if split not in results:
            return "-"
        found = np.array([result[who]["task_returns"][k] for result in results[split]])  # [seeds, M]
        if group is not None:
            found = found[:, np.array(results[split][0]["tasks"]["parameters"]["family"]) == group]
        return str(iqm_interval(found))

    def line(title: str, group: int | None) -> str:
        cells = [title, str(len(folders)), cell("test", "adapted", 0, group), cell("test", "adapted", -1, group), str(steps)]
        cells += [cell("ood", "adapted", -1, group), cell("test", "from_scratch", -1, group)]
        return f"| {' | '.join([*cells, f'{millions:.1f} M', f'{minutes:.1f} min'])} |"

    families = list(results["test"][0]["adapted"].get("groups", {}))
    if not families:
        return [line(f"`{name}`", None)]
    return [line(f"`{name}`, {family}", number) for number, family in enumerate(families)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=VARIANTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one core each")
    parser.add_argument("--only", nargs="*", help="these variants alone")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/adaptation"))
    parser.add_argument("--no-train", action="store_true", help="print the table of what is finished")
    args = parser.parse_args()
    chosen = {k: v for k, v in VARIANTS[args.family].items() if not args.only or k in args.only}
    folders = {
        n: [args.outputs / f"{args.family}-{n.replace(', ', '-').replace(' ', '_')}-seed{s}" for s in range(args.seeds)]
        for n in chosen
    }
    if not args.no_train:
        commands = [
            ["metarl", "train", *experiment(args.family, chosen[n]), *chosen[n], f"seed={s}", f"run={folders[n][s]}"]
            for n in chosen
            for s in range(args.seeds)
        ]
        with ThreadPoolExecutor(args.jobs) as pool:
            for command, code in zip(commands, pool.map(train, commands), strict=True):
                print(code, " ".join(command), flush=True)
    print("\n| algorithm | seeds | before | after | steps | out of distribution | from scratch | env steps | training |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, all_folders in folders.items():
        finished = [f for f in all_folders if (f / "results" / "test.json").exists() and done(f)]
        if finished:
            print(*rows(name, finished), sep="\n")


if __name__ == "__main__":
    main()
