"""Kill commands at random moments, run them again, and compare every bit with a command that was never killed.

    python benchmarks/kills.py --kills 50

Training, a test, an adaptation, a sweep, two processes of ``torchrun`` and environments in processes of their own are ended by
SIGINT, SIGTERM, SIGHUP and SIGKILL. A kill counts when it landed: the command had not ended by itself. What it wrote is then
continued by the same command and compared, but for times: weights, optimisers, replays, generators, metrics, results, figures.
Every process it had started must be gone. The exit code is 1 if anything differs, is left, or ends in a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.table import Table

from metarl_cli.progress import wide_console

METARL = [sys.executable, "-m", "metarl_cli"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "metarl_cli"]
SMALL = [
    "train.iterations=100",
    "train.eval_every=25",
    "train.log_every=10",
    "train.checkpoint_every=0.3",
    "eval.tasks=3",
    "eval.episodes=2",
    "test.tasks=4",
    "test.episodes=2",
    "learner.network.hidden=[8,8]",
    "env.horizon=20",
    "hardware=cpu",
]
MAML = [
    "algo=maml_dqn",
    "eval.steps=1",
    "test.steps=2",
    "algo.tasks=4",
    "algo.outer.tasks=2",
    "algo.outer.updates=2",
    "algo.outer.batch=8",
    "algo.inner.support.rollouts=2",
    "algo.inner.support.steps=6",
    "algo.query.envs=2",
    "algo.query.steps=5",
    "algo.query.capacity=60",
]
EVOLUTION = ["algo=es_dqn", "eval.steps=1", "test.steps=2", "algo.search.population=6", "algo.fitness.tasks=2"]
WORKERS = ["env=simulated", "env.processes=2", "train.iterations=20", "train.eval_every=5"]
SIMULATED = """# CartPole in processes of its own
module: gymnasium
id: CartPole-v1
horizon: 20
constructor: {}
parameters: {gravity: {nominal: 9.8, set: attribute.gravity}}
ranges: {gravity: [5.0, 15.0]}
ood_ranges: {}
choices: {}
ood_choices: {}
derived: {}
wrappers: []
processes: 1
"""
SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LEAVING = 60.0  # [s] for every process to be gone: torchrun grants 30
IMPORTING = 1.0  # [s] in which Python itself may still be starting, and prints its own traceback of Ctrl-C


class What(NamedTuple):
    """Something to kill."""

    command: Callable[[Path, Path], list[str]]  # from the folder to write in, and that of a finished run
    needs_run: bool = False
    launcher: list[str] = METARL


def _train(*overrides: str, launcher: list[str] = METARL) -> What:
    def command(place: Path, run: Path) -> list[str]:
        return [*launcher, "train", "--config-dir", str(place.parent / "conf"), *overrides, f"run={place / 'run'}"]

    return What(command, launcher=launcher)


def _sweep(place: Path, run: Path) -> list[str]:
    return [*METARL, "train", "-m", *MAML, *SMALL, "train.iterations=40", "train.eval_every=20", "seed=0,1", f"outputs={place}"]


def _test(place: Path, run: Path) -> list[str]:
    return [*METARL, "test", f"run={place / 'run'}", "tasks=40", "episodes=20"]


def _adapt(place: Path, run: Path) -> list[str]:
    return [*METARL, "adapt", f"run={place / 'run'}", "task.gravity=15", "episodes=300"]


WHATS = {
    "train": _train(*MAML, *SMALL),
    "workers": _train(*MAML, *SMALL, *WORKERS),
    "two ranks": _train(*EVOLUTION, *SMALL, "train.iterations=40", "train.eval_every=20", launcher=TORCHRUN),
    "sweep": What(_sweep),
    "test": What(_test, needs_run=True),
    "adapt": What(_adapt, needs_run=True),
}


class Process:
    """A running command; a variable in their environment identifies its processes.

    Args:
        command: the words.
        errors: the file of its standard error.
        output: the file of its standard output, if that is kept.
    """

    def __init__(self, command: list[str], errors: Path, output: Path = Path(os.devnull)):
        self.mark = uuid.uuid4().hex
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "METARL_KILLS": self.mark}
        with errors.open("wb") as file, output.open("wb") as printed:
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=file,
                start_new_session=True,
                preexec_fn=_heed_signals,
            )
        self.began = time.monotonic()

    def alive(self) -> list[int]:
        """Return the numbers of its processes that live."""
        self.process.poll()
        return [pid for pid in _processes() if self.mark.encode() in _read(f"/proc/{pid}/environ") and not _ended(pid)]

    def end(self) -> int:
        """Wait until no process is left, or for ``LEAVING``; kill what is left, and return how much it was."""
        deadline = time.monotonic() + LEAVING
        while (left := self.alive()) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.kill()
        return len(left)

    def kill(self) -> None:
        """Kill every process of it that lives, and those that they start meanwhile."""
        while left := self.alive():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()


def _heed_signals() -> None:
    """Undo what a shell does to commands in the background, which ignore SIGINT."""
    for number in SIGNALS[1:]:
        signal.signal(number, signal.SIG_DFL)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def _ended(pid: int) -> bool:
    return _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[:1] in ([b"Z"], [])


# -- comparison


def contents(folder: Path) -> dict[str, Any]:
    """Return everything in a folder that must be the same, by file, without times and places."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        apart = path.name in (".lock", ".reserve", "run.json", "console.log") or "tfevents" in path.name
        if path.is_dir() or "sweeps" in path.relative_to(folder).parts or apart:
            continue
        if path.suffix == ".pt":
            found[name] = dict(_tensors(torch.load(path, weights_only=True, map_location="cpu")))
        elif path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]
        else:
            found[name] = path.read_bytes()
    for path in folder.rglob("run.json"):
        manifest = json.loads(path.read_text())
        found[str(path.relative_to(folder))] = {key: manifest.get(key) for key in ("status", "score", "tasks", "seed")}
    return found


def _tensors(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for key, item in enumerate(value):
            yield from _tensors(item, f"{place}.{key}")
    elif isinstance(value, torch.Tensor):
        yield place, (value.dtype, tuple(value.shape), value.numpy().tobytes())
    elif place != ".seconds" and not place.startswith(".logged"):  # a sum over metrics with their times
        yield place, value


def differences(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """Return the files in which two folders differ."""
    return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


# -- kills


class Kills:
    """Kills of one thing, compared with the same thing that was never killed.

    Args:
        what: the thing.
        folder: where to work.
        run: a finished run, for what needs one.
    """

    def __init__(self, what: What, folder: Path, run: Path):
        self.what, self.folder, self.run = what, folder, run
        self.whole, self.torn = folder / "whole", folder / "torn"
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        started = time.monotonic()
        self._complete(self.whole)
        self.seconds = time.monotonic() - started
        self.expected = contents(self.whole)

    def _fresh(self, place: Path) -> None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        if self.what.needs_run:
            shutil.copytree(self.run, place / "run")

    def _complete(self, place: Path, fresh: bool = True) -> None:
        if fresh:
            self._fresh(place)
        errors = self.folder / "errors"
        process = Process(self.what.command(place, self.run), errors)
        code = process.process.wait()
        if code or process.end():
            raise RuntimeError(f"not killed, and exit code {code}: {errors.read_text()[-2000:]}")

    def kill(self, number: signal.Signals, rng: random.Random) -> bool:
        """Kill once, or twice in a row, and go on; returns whether it landed."""
        self._fresh(self.torn)
        landed = 0
        for _ in range(rng.choice((1, 1, 2))):
            errors = self.folder / "errors"
            process = Process(self.what.command(self.torn, self.run), errors)
            moment = rng.uniform(0, self.seconds)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.process.wait(moment)
            if process.process.poll() is not None:
                self.seconds = min(self.seconds, time.monotonic() - process.began)  # the machine is less busy than it was
                process.end()
                break
            targets = [process.process.pid]
            if number == signal.SIGKILL:  # also of a rank or a worker
                targets = [rng.choice(process.alive() or targets)]
            with contextlib.suppress(ProcessLookupError):
                os.kill(targets[0], number)
            orphans = process.end()
            code = process.process.returncode
            said = errors.read_text(errors="replace")
            landed += code != 0
            where = f"{number.name} after {moment:.1f} of {self.seconds:.1f} s"
            if orphans:
                self._fault("orphans", f"{where}: {orphans} processes left")
            if self.what.launcher != METARL or targets != [process.process.pid]:
                continue  # torchrun prints tracebacks of its own, and has its own exit codes
            if "Traceback" in said and moment > IMPORTING:
                self._fault("tracebacks", f"{where}: {said[-1500:]}")
            if code not in (0, *_codes(number)) and moment > IMPORTING:
                self._fault("exit codes", f"{where}: exit code {code}")
        if not landed:
            return False
        self.counts["kills"] += landed
        try:
            self._complete(self.torn, fresh=False)
            wrong = differences(self.expected, contents(self.torn))
        except RuntimeError as error:
            wrong = [str(error)]
        if wrong:
            self._fault("different", f"{where}: {', '.join(wrong)}")
        else:
            self.counts["same"] += landed
        return True

    def _fault(self, kind: str, text: str) -> None:
        self.counts[kind] += 1
        self.faults.append(f"{kind}: {text}")


def _codes(number: int) -> tuple[int, int]:
    """Return the exit codes by which a shell knows that a process was ended by a signal."""
    return 128 + number, -number


FAULTS = ("different", "orphans", "tracebacks", "exit codes")


def main() -> int:
    """Kill, print a table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="kills in all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", nargs="*", choices=list(WHATS), default=list(WHATS), help="what to kill")
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no further kill after so long")
    options = parser.parse_args()
    rng, console, deadline = random.Random(options.seed), wide_console(), time.monotonic() + 60 * options.minutes
    table = Table("what", "kills that landed", "same bits", *FAULTS)
    faults: list[str] = []
    total = 0
    with tempfile.TemporaryDirectory(prefix="metarl-kills-") as scratch:
        folder = Path(scratch)
        (folder / "conf" / "env").mkdir(parents=True)
        (folder / "conf" / "env" / "simulated.yaml").write_text(SIMULATED)
        trained = Kills(WHATS["train"], folder, folder)
        shutil.copytree(trained.whole / "run", folder / "run")
        every = {}
        for place, name in enumerate(options.only):
            if name == "train":
                every[name] = trained
            else:
                (folder / str(place)).mkdir()
                shutil.copytree(folder / "conf", folder / str(place) / "conf")
                every[name] = Kills(WHATS[name], folder / str(place), folder / "run")
            console.print(f"{name}: {every[name].seconds:.1f} s when it is not killed")
        turn = 0
        while total < options.kills and time.monotonic() < deadline:
            name = options.only[turn % len(options.only)]
            number = SIGNALS[sum(divmod(turn, len(options.only))) % len(SIGNALS)]  # another one in each round
            turn += 1
            before = every[name].counts["kills"]
            every[name].kill(number, rng)
            total += every[name].counts["kills"] - before
            console.print(f"{total}/{options.kills}  {name}  {number.name}  {dict(every[name].counts)}", soft_wrap=True)
        for name, kills in every.items():
            counts = kills.counts
            table.add_row(name, *(str(counts[key]) for key in ("kills", "same", *FAULTS)))
            faults += [f"{name}: {fault}" for fault in kills.faults]
    console.print(table)
    for fault in faults:
        console.print(fault, soft_wrap=True)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
