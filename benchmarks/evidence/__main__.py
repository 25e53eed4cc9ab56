"""The main table: every method on every family, five seeds, the same held-out tasks, robust and oracle beside them.

    python benchmarks/evidence                                 train what is not finished yet, keep and print the results
    python benchmarks/evidence --families cartpole_family --methods maml_dqn osi_dqn --seeds 2
    python benchmarks/evidence --minutes 60 --jobs 2           start nothing after an hour; the next call goes on
    python benchmarks/evidence --extra hardware.compile=true   options that change no result
    python benchmarks/evidence probe --seeds 3                 what the adaptation of each finished run uses of its support
    python benchmarks/evidence docs                            make the tables and the figures from what is kept

The first seed of every method comes first, then the second. A run is an ordinary ``metarl train`` with the overrides that
``matrix.yaml`` names, so that it can be repeated alone. What a report needs of it is kept in
``benchmarks/results/evidence/<family>.json`` as soon as it is finished: a file of ``metarl report format=runs``. A method whose
settings in the matrix change begins anew. Each run uses one core; the time is that of its own training.

The tables are those of ``metarl report``. A cell is the mean over tasks, with Student's 95 % interval over the seeds. The
normalised score is (after - robust) / (oracle - robust), of these means.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import supports
from matrix import FAMILIES, Job, jobs, load, read, train, write
from scores import PAGES, ROOT, draw, fill, steps, tables


def documents() -> None:
    """Fill the tables of the documents, and draw the figures."""
    for page in PAGES:
        page.write_text(supports.fill(fill(page.read_text())))
    draw(ROOT / "docs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", choices=["run", "probe", "docs"], default="run")
    parser.add_argument("--families", nargs="*", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--methods", nargs="*", help="these alone")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one core each")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run later than this")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/evidence"))
    parser.add_argument("--extra", nargs="*", default=[], help="options of every run that change no result")
    args = parser.parse_args()
    if args.task == "docs":
        return documents()
    if args.task == "probe":
        for family in args.families:
            supports.probe(family, args.methods, range(args.seeds), args.outputs)
        return None
    kept = {(family, method, run.seed) for family in args.families for method, runs in read(family).items() for run in runs}
    todo = [job for job in jobs(args.families, args.methods, range(args.seeds)) if job[:3] not in kept]
    end, lock = time.monotonic() + 60 * args.minutes, Lock()

    def run(job: Job) -> bool:
        if time.monotonic() > end:
            return False
        code = train(job, args.outputs, args.extra)
        with lock:
            if code == 0:
                write(job, load(job.folder(args.outputs), job.family))
            print(f"{'done' if code == 0 else f'exit code {code}'}: {job.folder(args.outputs)}", flush=True)
        return code == 0

    with ThreadPoolExecutor(args.jobs) as pool:
        done = sum(pool.map(run, todo))
    print(f"{done} of {len(todo)} runs finished")
    for family in dict.fromkeys(job.family for job in todo):
        print(f"\n{family}\n\n{tables(family)}")
        if FAMILIES[family].get("by_step"):
            print(f"\n{steps(family)}")


if __name__ == "__main__":
    main()
