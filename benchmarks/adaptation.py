"""The adaptation table of the README: every variant, several seeds, the same held-out tasks; slow.

    python benchmarks/adaptation.py cartpole --seeds 3 --jobs 2            train what is not finished yet, then print the table
    python benchmarks/adaptation.py navigation --only maml_dqn pretrain_dqn
    python benchmarks/adaptation.py cartpole_evolution                     evolution on the same tasks
    python benchmarks/adaptation.py classic_mix                            one line for each family of a mix

    python benchmarks/adaptation.py docs                                   tables of the documents, from benchmarks/results

Every run is an ordinary ``metarl train experiment=maml_dqn_<family>`` (evolution's are experiments of their own) with the
overrides named below, so that it can be repeated alone. What the tables need of the runs is kept in
``benchmarks/results/learning/<family>.json``: the mean return of each held-out task, for each seed. A cell is the mean over
seeds of each run's IQM over tasks, with Student's 95 % interval over the seeds. The mean, the worst tenth of the tasks and the
share of tasks solved are those after adaptation. Each run uses one core; time is its own training time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from metarl_cli.evaluation.statistics import iqm, mean, over_seeds, worst_tenth

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "learning"
MARKER = re.compile(r"(<!-- learning: (\w+) -->\n).*?(\n<!-- end -->)", re.DOTALL)
HEAD = ["algorithm", "seeds", "before", "after", "mean", "worst tenth", "solved", "steps"]
HEAD += ["out of distribution", "from scratch", "env steps", "training"]

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


def kept(folder: Path) -> dict[str, Any]:
    """What the tables need of a finished run: the mean returns of its held-out tasks ``[M]``, and what it cost."""
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    manifest = json.loads((folder / "run.json").read_text())
    test, ood = (folder / "results" / f"{split}.json" for split in ("test", "ood"))
    tested = json.loads(test.read_text())
    groups = list(tested["adapted"].get("groups", {}))
    numbers = tested["tasks"]["parameters"].get("family")

    def scores(result: dict[str, Any] | None, k: int) -> list[float] | None:
        return None if result is None else [round(value, 4) for value in result["task_returns"][k]]

    return {
        "seed": manifest["seed"],
        "command": manifest["command"].split(" run=")[0],
        "revision": manifest["git"],
        "env_steps": log[-1]["step"],
        "minutes": round(max(line.get("time/training_seconds", 0.0) for line in log) / 60, 2),
        "steps": tested["adapted"]["gradient_steps"][-1],
        "groups": [groups[int(number)] for number in numbers] if groups else None,  # [M]
        "before": scores(tested["adapted"], 0),
        "after": scores(tested["adapted"], -1),
        "from_scratch": scores(tested["from_scratch"], -1),
        "ood": scores(json.loads(ood.read_text())["adapted"], -1) if ood.exists() else None,
        "solved": tested["adapted"]["beside"][-1]["solved"],
    }


def rows(name: str, runs: list[dict[str, Any]]) -> list[str]:
    """The lines of the table from the runs of a variant: one, or one for each family of a mix."""

    def cell(who: str, group: str | None) -> str:
        if runs[0][who] is None:
            return "-"
        return str(over_seeds(iqm(chosen(who, group))))

    def chosen(who: str, group: str | None) -> np.ndarray:
        found = np.array([run[who] for run in runs])  # [seeds, M]
        return found if group is None else found[:, [other == group for other in runs[0]["groups"]]]

    def line(title: str, group: str | None) -> str:
        after = chosen("after", group)
        known = group is None and runs[0]["solved"] is not None
        cells = [title, str(len(runs)), cell("before", group), cell("after", group)]
        cells += [f"{float(aggregate(after).mean()):.2f}" for aggregate in (mean, worst_tenth)]
        cells += [f"{np.mean([run['solved'] for run in runs]):.0%}" if known else "-", str(runs[0]["steps"])]
        cells += [cell("ood", group), cell("from_scratch", group)]
        spent = [f"{np.mean([run['env_steps'] for run in runs]) / 1e6:.1f} M"]
        spent += [f"{np.mean([run['minutes'] for run in runs]):.1f} min"]
        return f"| {' | '.join([*cells, *spent])} |"

    if runs[0]["groups"] is None:
        return [line(f"`{name}`", None)]
    return [line(f"`{name}`, {group}", group) for group in dict.fromkeys(runs[0]["groups"])]


def table(family: str) -> str:
    """The table of a family from what is kept of its runs."""
    found = json.loads((RESULTS / f"{family}.json").read_text())
    lines = [line for name, runs in found.items() for line in rows(name, runs)]
    return "\n".join([f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD), *lines])


def fill(page: str) -> str:
    """The page with the tables that its markers name."""
    return MARKER.sub(lambda match: match[1] + table(match[2]) + match[3], page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=[*VARIANTS, "docs"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one core each")
    parser.add_argument("--only", nargs="*", help="these variants alone")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/adaptation"))
    parser.add_argument("--no-train", action="store_true", help="print the table of what is finished")
    args = parser.parse_args()
    if args.family == "docs":
        for page in (ROOT / "docs" / "results.md", ROOT / "README.md"):
            page.write_text(fill(page.read_text()))
        return
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
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{args.family}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for name, all_folders in folders.items():
        if finished := [f for f in all_folders if (f / "results" / "test.json").exists() and done(f)]:
            found[name] = [kept(folder) for folder in finished]
    path.write_text(json.dumps(found) + "\n")
    print(table(args.family))


if __name__ == "__main__":
    main()
