"""The profile of a run: where the time of an iteration goes, as a table and as a trace.

The parts of an iteration (:func:`metarl_cli.progress.timed`) are timed without torch's profiler, which makes small operations
slower than they are. The iterations after those are recorded by ``torch.profiler``: the trace shows the same parts.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.profiler import ProfilerActivity, record_function

from metarl_cli.errors import UserError
from metarl_cli.progress import timing
from metarl_cli.runs.files import write_whole

WARMUP = 10  # iterations before the profile, if so many are left: memory, caches and replay fill
TIMED = 5  # iterations whose parts are timed
TRACED = 2  # iterations that torch's profiler records
OPERATORS = 10  # rows of torch's operators
WIDEST = 44  # [characters] of a name in the table
TRACE = "profile.pt.trace.json.gz"  # the ending by which TensorBoard finds a trace


Step = Callable[[], dict[str, float]]


class Part(NamedTuple):
    """A part of an iteration."""

    name: str
    depth: int  # 0 in an iteration, 1 within such a part, ...
    calls: float  # per iteration
    seconds: float  # per iteration


class Profile(NamedTuple):
    """Where the time of an iteration goes."""

    first: int  # the number of the first iteration that was timed
    seconds: float  # of an iteration
    parts: list[Part]  # each below the part that it lies within
    operators: list[Part]  # of torch, the costliest first, without what they call
    traced: float  # [s] of an iteration while torch's profiler recorded it
    trace: Path  # for TensorBoard and Perfetto


Report = Callable[[Profile], None]


class Timer:
    """Adds up the time of named blocks, by the blocks they lie within.

    Args:
        device: a GPU computes at its own pace, so it has to finish before a block begins or ends.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.totals: dict[tuple[str, ...], tuple[int, float]] = {}  # calls and seconds of each path of names
        self.path: tuple[str, ...] = ()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time the block as ``name``."""
        outer, self.path = self.path, (*self.path, name)
        self.totals.setdefault(self.path, (0, 0.0))  # before the parts within it
        began = self._now()
        try:
            yield
        finally:
            calls, seconds = self.totals[self.path]
            self.totals[self.path] = calls + 1, seconds + self._now() - began
            self.path = outer

    def parts(self, iterations: int) -> list[Part]:
        """Return the parts per iteration: each before the parts within it, the longest first."""

        def within(path: tuple[str, ...]) -> list[Part]:
            inner = [key for key in self.totals if key[:-1] == path]
            inner.sort(key=lambda key: -self.totals[key][1])
            return [part for key in inner for part in (self._part(key, iterations), *within(key))]

        return within(())

    def _part(self, path: tuple[str, ...], iterations: int) -> Part:
        calls, seconds = self.totals[path]
        return Part(path[-1], len(path) - 1, calls / iterations, seconds / iterations)


def check_left(iterations: int) -> None:
    """Raise UserError if these are too few iterations for a profile."""
    if iterations < TIMED + TRACED:
        raise UserError(f"hardware.profile=true takes {TIMED + TRACED} iterations, and {iterations} are left of this run")


class Profiler:
    """Runs the iterations of a run, and makes a profile of some of them.

    Args:
        step: runs one iteration.
        done: number of iterations that the run has behind it.
        iterations: number of iterations of the whole run.
        folder: where the trace is written.
        device: the device of the run.
        report: receives the profile.

    Raises:
        UserError: if too few iterations are left.
    """

    def __init__(self, step: Step, done: int, iterations: int, folder: Path, device: torch.device, report: Report):
        left = iterations - done
        check_left(left)
        self.first = done + min(WARMUP, left - TIMED - TRACED) + 1
        self.step, self.folder, self.report = step, folder, report
        self.number, self.seconds, self.traced = done, 0.0, 0.0
        self.timer = Timer(device)
        self.cuda = device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.cuda else [])]
        self.profiler = torch.profiler.profile(activities=activities)

    def __call__(self) -> dict[str, float]:
        """Run one iteration."""
        self.number += 1
        traces = self.first + TIMED
        began = time.perf_counter()
        if self.first <= self.number < traces:
            with timing(self.timer), optimizer_steps(self.timer):
                logged = self.step()
            self.seconds += time.perf_counter() - began
        elif traces <= self.number < traces + TRACED:
            if self.number == traces:
                self.profiler.start()
            with timing(record_function), record_function("iteration"):
                logged = self.step()
            self.traced += time.perf_counter() - began
            if self.number == traces + TRACED - 1:
                self.profiler.stop()
                self._report()
        else:
            logged = self.step()
        return logged

    def _report(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / "trace.json"
            self.profiler.export_chrome_trace(str(written))
            content = written.read_bytes()
        write_whole(self.folder / TRACE, gzip.compress(content, 1))
        ran = "kernel" if self.cuda else "cpu_op"
        operators = costliest([event for event in json.loads(content)["traceEvents"] if event.get("cat") == ran])
        parts, seconds, traced = self.timer.parts(TIMED), self.seconds / TIMED, self.traced / TRACED
        self.report(Profile(self.first, seconds, parts, operators, traced, self.folder / TRACE))


def costliest(events: list[dict[str, Any]]) -> list[Part]:
    """Return the operators of a trace that cost most, per traced iteration, each without the operators within it.

    Args:
        events: of a Chrome trace; ``ts`` and ``dur`` in microseconds.
    """
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])  # calls and seconds
    open_events: dict[Any, list[dict[str, Any]]] = defaultdict(list)  # of each thread, from the outermost
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        around = open_events[event["tid"]]
        while around and around[-1]["ts"] + around[-1]["dur"] <= event["ts"]:
            around.pop()
        if around:
            totals[around[-1]["name"]][1] -= event["dur"] * 1e-6
        around.append(event)
        totals[event["name"]][0] += 1
        totals[event["name"]][1] += event["dur"] * 1e-6
    parts = [Part(name, 0, calls / TRACED, seconds / TRACED) for name, (calls, seconds) in totals.items()]
    return sorted(parts, key=lambda part: -part.seconds)[:OPERATORS]


@contextlib.contextmanager
def optimizer_steps(timer: Timer) -> Iterator[None]:
    """Time the steps of torch's optimisers within the block."""
    running: list[contextlib.AbstractContextManager[object]] = []

    def begin(optimizer: Optimizer, args: object, kwargs: object) -> None:
        running.append(timer("optimiser"))
        running[-1].__enter__()

    def end(optimizer: Optimizer, args: object, kwargs: object) -> None:
        running.pop().__exit__(None, None, None)

    hooks = register_optimizer_step_pre_hook(begin), register_optimizer_step_post_hook(end)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def tables(profile: Profile) -> list[Table]:
    """Return the tables that ``metarl train`` prints: the parts of an iteration, and torch's operators."""
    last = profile.first + TIMED - 1
    first = _table(
        f"{_ms(profile.seconds)} ms an iteration (mean of {profile.first} to {last})",
        "part",
        profile.parts,
        profile.seconds,
    )
    rest = profile.seconds - sum(part.seconds for part in profile.parts if part.depth == 0)
    first.add_row("everything else", "", _ms(rest), f"{rest / profile.seconds:.1%}", style="dim")
    text = f"{_ms(profile.traced)} ms an iteration while torch's profiler recorded"
    return [first, _table(text, "operator, without those it calls", profile.operators, profile.traced)]


def _table(title: str, heading: str, parts: list[Part], whole: float) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(heading, overflow="fold")
    for name in ("calls", "ms", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    for part in parts:
        name = part.name if len(part.name) <= WIDEST else f"{part.name[: WIDEST - 1]}…"  # compiled code has long ones
        table.add_row("  " * part.depth + name, f"{part.calls:,.4g}", _ms(part.seconds), f"{part.seconds / whole:.1%}")
    return table


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f}"
