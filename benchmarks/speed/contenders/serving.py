"""The contender's side of a measurement: it builds once, then answers each request with the seconds of one repetition.

Requests and answers are JSON, one line each, on standard input and output; what libraries print goes to standard error. This
module needs the standard library alone, as every contender runs in an environment of its own.

    ->                                        <- {"ready": {"torch": "2.13.0"}, "facts": {}}
    -> {"count": 3, "round": 0}               <- {"wall": 1.2, "processor": 1.2, "path": 1.2, "work": 768, "peak_mib": 12.5}
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any


class Unavailable(Exception):
    """What is to be measured does not exist here; the text says why."""


@dataclass
class Contender:
    """One thing to be measured."""

    run: Callable[[int], float]  # does so many units, returns the work done, such as environment steps
    start: Callable[[int], object] = lambda number: None  # before each repetition, not timed, given the round: 0 warms up
    facts: dict[str, float] = field(default_factory=dict)  # numbers known once it is built
    extras: Callable[[], dict[str, float]] = dict  # numbers of the last repetition


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The installed versions of packages."""
    return {name: version(name) for name in packages}


def memory(entry: str) -> float:
    """``VmRSS``, the memory of this process, or ``VmHWM``, its peak [MiB]."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{entry}:"))


def reset_peak() -> None:
    """Have the peak of this process's memory start from what it takes now."""
    Path("/proc/self/clear_refs").write_text("5")


def processor_times() -> dict[int, float]:
    """The processor time of each thread of this process, the main one first, and of each process that it started [s]."""
    found = {os.getpid(): 0.0}
    for task in Path("/proc/self/task").iterdir():
        number = int(task.name)
        found[number] = time.clock_gettime(~number << 3 | 6)  # Linux: the clock of a thread
        for child in map(int, (task / "children").read_text().split()):
            found[child] = time.clock_gettime(~child << 3 | 2)  # that of a process
    return found


def path(before: dict[int, float], after: dict[int, float], cores: int) -> float:
    """How long work takes on so many idle cores [s]: what the main thread and the busiest other take, or an even share.

    Args:
        before: :func:`processor_times` when it started.
        after: the same when it ended.
        cores: that it may use.
    """
    main, *others = (after[number] - before.get(number, 0.0) for number in after)
    return max((main + sum(others)) / cores, main + max(others, default=0.0))


def serve(
    build: Callable[[dict[str, Any]], Contender],
    packages: Iterable[str],
    requests: Iterable[str] = sys.stdin,
    silent: bool = False,
) -> None:
    """Build the contender of the options on the command line and answer requests until they end.

    Args:
        build: from the options to the contender; raises :class:`Unavailable`.
        packages: whose versions are reported.
        requests: JSON, one for each repetition.
        silent: gives no answers.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        if not silent:
            print(json.dumps(answer), file=answers, flush=True)

    try:
        contender = build(json.loads(sys.argv[1]))
    except Unavailable as error:
        say({"unavailable": str(error)})
        return
    before = memory("VmRSS")
    say({"ready": versions(packages), "facts": contender.facts})
    for line in requests:
        request = json.loads(line)
        contender.start(request["round"])
        reset_peak()
        began, worked, shares = time.perf_counter(), time.process_time(), processor_times()
        work = contender.run(request["count"])
        seconds = {"wall": time.perf_counter() - began, "processor": time.process_time() - worked}
        seconds["path"] = path(shares, processor_times(), len(os.sched_getaffinity(0)))
        say(seconds | {"work": work, "peak_mib": memory("VmHWM") - before} | contender.extras())
