"""Kill a sweep of twelve runs with all it has started, issue it again, and compare its bits with those of one never killed.

    python benchmarks/sweeps.py                                  every launcher whose plug-in is installed
    python benchmarks/sweeps.py --launchers basic submitit_slurm

Under each launcher: SIGKILL to all processes of the sweep at a random moment; the same command again, which must end complete,
leave the runs alone that were finished, and have the same bits as an undisturbed sweep of the basic launcher; then two more
seeds, which must be two more runs. Slurm is the stand-in of ``benchmarks/slurm.py``, which preempts every job of the second
command once; Ray is a cluster of two raylets on this machine. The exit code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import slurm
from kills import MAML, METARL, SMALL, Process, contents, differences
from rich.table import Table

from metarl_cli.comparison.standing import standings
from metarl_cli.progress import wide_console

RUNS, MORE = 12, 2
PLUGINS = {
    "basic": "hydra",
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "submitit_local": "hydra_plugins.hydra_submitit_launcher",
    "submitit_slurm": "hydra_plugins.hydra_submitit_launcher",
    "ray": "hydra_plugins.hydra_ray_launcher",
}
OPTIONS = {
    "joblib": ["hydra.launcher.n_jobs=2"],
    "submitit_slurm": ["hydra.launcher.timeout_min=600", "hydra.launcher.max_num_timeout=3"],
    "ray": ["hydra.launcher.ray.init.address=auto", "+hydra.launcher.ray.init.object_store_memory=null"],
}
RAY = {  # environment: the nodes of a cluster need no token in common, and workers are as nice as the rest
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_niceness": "0",
}
PATIENCE = 1200.0  # [s] for a sweep to end
PORT = 6399  # of the cluster of Ray, whose workers have those from 10,002 on


class Sweep(NamedTuple):
    """A command line for a number of seeds, and where its runs go."""

    launcher: str
    folder: Path
    length: list[str]

    @property
    def runs(self) -> Path:
        """The folder of its runs."""
        return self.folder / "runs"

    def begin(self, seeds: int) -> Process:
        """Start it; for Ray, with a cluster of its own."""
        choice = [] if self.launcher == "basic" else [f"hydra/launcher={self.launcher}", *OPTIONS.get(self.launcher, [])]
        words = [*MAML, *SMALL, *self.length, f"seed=range({seeds})", "outputs=runs", *choice]
        os.chdir(self.folder)  # a relative place means the same to a process that a launcher has started elsewhere
        command = [*METARL, "train", "-m", *words]
        if self.launcher == "ray":
            ray = f"{Path(sys.executable).parent / 'ray'} start --num-cpus=1 --disable-usage-stats"
            head = f"{ray} --head --port={PORT} --include-dashboard=false --temp-dir={self.folder / 'ray'}"
            os.environ |= RAY
            command = ["bash", "-c", f'(cd / && {head} && {ray} --address=127.0.0.1:{PORT}) && exec "$@"', "sweep", *command]
        return Process(command, self.folder / "errors", self.folder / "output")

    def finished(self) -> list[Path]:
        """Return the runs that have ended well."""
        if not self.runs.is_dir():
            return []
        return [each.path for each in standings([self.runs]) if each.status == "finished"]

    def done(self) -> float:
        """Return how much of its iterations is done, in runs."""
        found = standings([self.runs]) if self.runs.is_dir() else []
        return sum(each.iteration / (each.iterations or 1) for each in found)

    def complete(self, seeds: int) -> list[str]:
        """Run it to its end; returns what is wrong."""
        process, wrong = self.begin(seeds), list[str]()
        try:
            code = process.process.wait(PATIENCE)
            if code:
                wrong.append(f"exit code {code}: {(self.folder / 'errors').read_text(errors='replace')[-1500:]}")
        except subprocess.TimeoutExpired:
            wrong.append(f"not done after {PATIENCE:.0f} s")
        process.kill()  # a cluster of Ray goes on
        printed = (self.folder / "output").read_text(errors="replace")
        if f"{seeds} jobs" not in printed:
            wrong.append("no table of all jobs at the end")
        return wrong


def state(runs: list[Path]) -> dict[Path, tuple[bytes, bytes]]:
    """Return what a run that trains again would change."""
    return {path: ((path / "run.json").read_bytes(), (path / "metrics.jsonl").read_bytes()) for path in runs}


def tried(sweep: Sweep, expected: Path, rng: random.Random) -> tuple[list[str], list[str]]:
    """Kill a sweep, issue it again, and add seeds; returns a row of the table, and what is wrong."""
    process, began = sweep.begin(RUNS), time.monotonic()
    share = rng.uniform(0.1, 0.9)
    while sweep.done() < share * RUNS and process.process.poll() is None:
        time.sleep(0.1)
    wrong = [] if process.process.poll() is None else ["the sweep had ended before it was killed"]
    process.kill()
    seconds, done = time.monotonic() - began, sweep.finished()
    begun = len(list(sweep.runs.glob("*/run.json"))) - len(done)
    before = state(done)
    if "slurm" in sweep.launcher:
        os.environ[slurm.PREEMPT] = "2"
    wrong += sweep.complete(RUNS)
    os.environ.pop(slurm.PREEMPT, None)
    twice = [path.name for path, kept in state(done).items() if kept != before[path]]
    wrong += [f"trained again: {name}" for name in twice]
    whole = len(sweep.finished())
    if whole != RUNS or len(list(sweep.runs.glob("*/run.json"))) != RUNS:
        wrong.append(f"{whole} runs are finished of {RUNS}")
    first = state(sweep.finished())
    wrong += sweep.complete(RUNS + MORE)
    changed = [path.name for path, kept in state(list(first)).items() if kept != first[path]]
    wrong += [f"trained again for more seeds: {name}" for name in changed]
    more = len(sweep.finished()) - whole
    if more != MORE:
        wrong.append(f"{more} more runs for {MORE} more seeds")
    differ = differences(contents(expected), contents(sweep.runs))
    wrong += [f"{len(differ)} files differ: {', '.join(differ[:3])}"] if differ else []
    row = [sweep.launcher, f"{seconds:.0f} s", f"{len(done)} / {begun} / {RUNS - len(done) - begun}", f"{whole}/{RUNS}"]
    preempted = len(list((sweep.folder / "jobs").glob("*.restarts"))) if "slurm" in sweep.launcher else "-"
    return [*row, str(len(twice) + len(changed)), "no" if differ else "yes", str(more), str(preempted)], wrong


def main() -> int:
    """Try each launcher, print a table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launchers", nargs="*", choices=list(PLUGINS), default=list(PLUGINS))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--iterations", type=int, default=200, help="of each run")
    parser.add_argument("--expected", type=Path, help="the runs of an undisturbed sweep, made if they are not there")
    options = parser.parse_args()
    rng, console = random.Random(options.seed), wide_console()
    length = [f"train.iterations={options.iterations}"]
    columns = (
        "launcher",
        "killed after",
        "finished / begun / not",
        "complete",
        "trained twice",
        "same bits",
        "more",
        "requeued",
    )
    table, faults = Table(*columns), list[str]()
    with tempfile.TemporaryDirectory(prefix="metarl-sweeps-") as scratch:
        expected = Sweep("basic", (options.expected or Path(scratch, "expected")).absolute(), length)
        expected.folder.mkdir(parents=True, exist_ok=True)
        if len(expected.finished()) != RUNS + MORE and (wrong := expected.complete(RUNS + MORE)):
            raise RuntimeError(f"the undisturbed sweep: {wrong}")
        for launcher in options.launchers:
            try:
                installed = find_spec(PLUGINS[launcher])
            except ModuleNotFoundError:
                installed = None
            if installed is None:
                console.print(f"{launcher}: its plug-in is not installed")
                continue
            folder = Path(scratch, launcher)
            folder.mkdir()
            if launcher == "submitit_slurm":
                os.environ |= slurm.install(folder, cores=2)
            row, wrong = tried(Sweep(launcher, folder, length), expected.runs, rng)
            console.print(f"{launcher}: {'; '.join(row[1:])}", soft_wrap=True)
            table.add_row(*row)
            faults += [f"{launcher}: {each}" for each in wrong]
            with contextlib.suppress(OSError):
                shutil.rmtree(folder)
    console.print(table)
    for fault in faults:
        console.print(fault, soft_wrap=True)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
