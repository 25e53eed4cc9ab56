"""The measurement: contenders as processes of their own take turns, round by round."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
from tables import Case, Entry

CONTENDERS = Path(__file__).resolve().parent / "contenders"
PATIENCE = 900  # seconds for one answer; the first one waits for compilation
ONE_THREAD = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
}


class Failed(Exception):
    """A contender that ended or gave no answer; the text has its last words."""


class Process:
    """A contender that runs: it starts at once and is asked for repetitions.

    Args:
        entry: what to start.
        device: what torch computes on.
        overrides: further ones of metarl's configuration.
    """

    def __init__(self, entry: Entry, device: str, overrides: list[str]):
        self.entry = entry
        self.words = tempfile.TemporaryFile("w+")  # noqa: SIM115 (close() closes it)
        options = {**entry.options, "device": device}
        command = [str(peers.python(entry.environment))]
        variables = {**os.environ, **ONE_THREAD}
        if entry.environment == peers.METARL:
            options["overrides"] = [*options.get("overrides", []), *overrides]
            variables["PYTHONPATH"] = str(peers.checkout(entry.revision))
        if entry.processes:
            command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={entry.processes}"]
        command += [str(CONTENDERS / f"{entry.script}.py"), json.dumps(options)]
        cores = sorted(os.sched_getaffinity(0))[-entry.cores :]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.words,
            text=True,
            env=variables,
            preexec_fn=None if entry.processes else lambda: os.sched_setaffinity(0, cores),
        )

    def answer(self) -> dict[str, Any]:
        """The next answer.

        Raises:
            Failed: if there is none.
        """
        timer = threading.Timer(PATIENCE, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if not line:
            self.words.seek(0)
            lines = [line.strip() for line in self.words if line.strip()]
            errors = [line for line in lines if re.match(r"(\[rank\d+\]: *)?[\w.]+(Error|Exception|Exit)\b", line)]
            raise Failed((errors or lines or ["no answer"])[-1])
        found: dict[str, Any] = json.loads(line)
        return found

    def repeat(self, count: int, number: int) -> dict[str, Any]:
        """Measure one repetition of so many units, in a round; 0 is that before the first."""
        with contextlib.suppress(BrokenPipeError):  # it ended: the answer says why
            self.process.stdin.write(json.dumps({"count": count, "round": number}) + "\n")
            self.process.stdin.flush()
        return self.answer() | {"count": count}

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.words.close()


def measure(
    case: Case, rounds: int, seconds: float, device: str, overrides: list[str], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Measure the contenders of a case: one to warm up, then round after round, in turns.

    The order turns round from one round to the next, so that a drift of the machine meets all alike. A contender that cannot
    be had or fails is in the result too, with the reason.

    Args:
        case: what to compare.
        rounds: repetitions of each contender.
        seconds: least length of a repetition, where the case does not say how many units it has.
        device: what torch computes on.
        overrides: further ones of metarl's configuration.
        say: is told what goes on.
    """
    found: list[dict[str, Any]] = []
    running: dict[str, tuple[Process, dict[str, Any], int]] = {}
    lacking = {entry.environment: peers.lacking(entry.environment) for entry in case.entries}  # installs them before they start
    try:
        for entry in case.entries:
            say(f"{case.name}: {entry.name} starts")
            record: dict[str, Any] = {"name": entry.name, "options": entry.options, "runs": []}
            found.append(record)
            if reason := lacking[entry.environment]:
                record["unavailable"] = reason
                continue
            began = time.perf_counter()
            process = Process(entry, device, overrides)
            running[entry.name] = process, record, 0
            try:
                ready = process.answer()
                if "unavailable" in ready:
                    record["unavailable"] = ready["unavailable"]
                    running.pop(entry.name)[0].close()
                    continue
                record |= {"versions": ready["ready"], "facts": ready["facts"], "first": process.repeat(case.count or 1, 0)}
                record["startup"] = time.perf_counter() - began
                count = case.count or max(1, math.ceil(seconds / max(process.repeat(1, 0)["wall"], 1e-6)))
                running[entry.name] = process, record, count
            except Failed as error:
                record["failed"] = str(error)
                running.pop(entry.name)[0].close()
        for number in range(1, rounds + 1):
            say(f"{case.name}: round {number} of {rounds}")
            for name, (process, record, count) in sorted(running.items(), reverse=number % 2 == 0):
                try:
                    record["runs"].append(process.repeat(count, number))
                except Failed as error:
                    record |= {"failed": str(error), "runs": []}
                    running.pop(name)[0].close()
    finally:
        for process, _, _ in running.values():
            process.close()
    return found
