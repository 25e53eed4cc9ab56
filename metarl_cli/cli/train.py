"""``metarl train``: meta-train, select on validation tasks, test on held-out tasks.

Started again on the same folder it goes on from the last checkpoint, bit for bit; a finished run says so. Under ``torchrun``
several processes share one run.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from typing_extensions import override

from metarl_cli.cli.process import tune_process
from metarl_cli.cli.terminal import print_error
from metarl_cli.config.models import Job, TrainConfig
from metarl_cli.errors import ProcessLost, UserError
from metarl_cli.evaluation.curves import Report
from metarl_cli.evaluation.report import SHARED, table
from metarl_cli.processes import Watch, join
from metarl_cli.progress import PLAIN_EVERY, listening, status, wide_console
from metarl_cli.runs.folder import RunFolder
from metarl_cli.runs.loop import Listener, Progress, follow, train
from metarl_cli.runs.profile import Profile, tables

TITLES = {"test": "held-out tasks", "ood": "out-of-distribution tasks (wider ranges)"}


Config = TrainConfig


def run(config: TrainConfig, job: Job) -> float:
    """Train a new run, or go on with the one in the folder; returns its best score on the validation tasks.

    That is what a sweeper optimises: it never sees the test tasks.

    Started by ``torchrun``, the first process does; the others compute their share of every iteration, and return nan. A
    failure, whatever it is, ends them all, also within a sweep.

    Raises:
        SystemExit: where several processes share the run, for any error; it is printed.
    """
    tune_process(config.hardware)
    joined = join()
    try:
        with Watch(joined) as processes:
            if processes.rank == 0:
                return train(config, job, Terminal(wide_console()), processes)[1]
            with listening(_silent, _silent):
                follow(processes)
            return math.nan
    except Exception as error:  # SystemExit ends a sweep, too: the next job would wait for the others in vain
        if joined.size == 1:
            raise
        raise SystemExit(_tell(error, joined.rank)) from error


def _silent(text: str) -> None:
    """Report nothing: the first process does."""


def _tell(error: Exception, rank: int) -> int:
    """Print an error that ends this process of several; returns the exit code."""
    if not isinstance(error, UserError):
        traceback.print_exception(error)
        return 1
    where = f"process {rank}: " if rank and not isinstance(error, ProcessLost) else ""
    return print_error(error, where, own=True)


class Terminal(Listener):
    """Prints the events of a run.

    Args:
        console: where to.
    """

    def __init__(self, console: Console):
        self.console = console

    @override
    def started(self, folder: RunFolder, iteration: int, iterations: int) -> None:
        self.bar = Bar(self.console, iterations, iteration)
        text = f"going on from iteration {iteration} of {iterations}: {folder}" if iteration else f"new run folder: {folder}"
        self.console.print(text, soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(text, soft_wrap=True)

    @contextmanager
    @override
    def training(self) -> Iterator[None]:
        with self.bar, listening(self.bar.report, self.note):
            yield

    @override
    def progress(self, progress: Progress) -> None:
        self.bar.update(progress)

    @override
    def profiled(self, profile: Profile) -> None:
        for each in tables(profile):
            self.console.print(each)
        self.console.print(f"trace, for TensorBoard and https://ui.perfetto.dev: {profile.trace}", soft_wrap=True)

    @override
    def testing(self, split: str, tasks: int) -> AbstractContextManager[None]:
        return status(self.console, f"testing on {tasks} {split} tasks")

    @override
    def interrupted(self, folder: RunFolder) -> None:
        self.console.print(f"saved; go on with: metarl train run={folder}", soft_wrap=True)

    @override
    def failed(self, folder: RunFolder) -> None:
        self.console.print(f"the last checkpoint is {folder.last}; go on with: metarl train run={folder}", soft_wrap=True)

    @override
    def finished(self, folder: RunFolder, reports: dict[str, Report] | None) -> None:
        if reports is None:
            self.console.print(f"{folder} is finished already; test it again with: metarl test run={folder}", soft_wrap=True)
            return
        for split, report in reports.items():
            repeats, tasks = report.curve.returns.shape[1:]
            what = "trial" if report.total else "episode"
            each = f"{repeats} {what}{'s' if repeats != 1 else ''} each"
            self.console.print(table(report, f"{tasks} {TITLES[split]}{SHARED if report.shared else ''}, {each}"))
        if own := reports["test"].own_tasks:
            self.console.print(f"return on the training tasks, each learned on its own: {own}")
        self.console.print(f"run folder: {folder}", soft_wrap=True)
        self.console.print(f"look at it: tensorboard --logdir {folder.path.parent}", soft_wrap=True)


class Bar:
    """Progress with the numbers that matter: a bar on a terminal, a plain line now and then elsewhere."""

    NUMBERS = (("eval/return_before", "before"), ("eval/return_after", "after"), ("eval/return_learned", "learned"))
    OF_TRIALS = (("eval/return_before", "first"), ("eval/return_after", "last"), ("eval/trial_return", "trial"))

    def __init__(self, console: Console, total: int, done: int):
        self.console, self.total, self.first, self.done = console, total, done, done
        self.numbers: dict[str, float] = {}
        self.text = ""
        self.began, self.printed = time.monotonic(), -math.inf  # the first line is printed at once
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.progress = ProgressBar(
            *columns,
            TextColumn("{task.fields[numbers]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.task = self.progress.add_task("train", total=total, completed=done, numbers="")

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.progress.stop()

    def update(self, progress: Progress) -> None:
        """Show where training stands."""
        iteration, _, env_steps, metrics = progress
        names = self.OF_TRIALS if "eval/trial_return" in metrics else self.NUMBERS
        self.numbers |= {name: metrics[tag] for tag, name in names if tag in metrics}
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in self.numbers.items())
        self.text, self.done = f"{env_steps:,} env steps", iteration
        if self.numbers:
            self.text += f"  return on validation tasks: {numbers}"
        if "loss/query" in metrics:
            self.text += f"  loss {metrics['loss/query']:.3g}"
        self.progress.update(self.task, completed=iteration, numbers=self.text)
        left = self.total - iteration
        seconds = (time.monotonic() - self.began) / max(iteration - self.first, 1) * left
        self._plain(f"{self.text}  about {seconds:.0f} s left" if left else self.text, at_once=not left)

    def report(self, what: str) -> None:
        """Show how far the current iteration is."""
        self.progress.update(self.task, numbers=f"{self.text}  {what}")
        self._plain(f"{self.text}  {what}")

    def _plain(self, text: str, at_once: bool = False) -> None:
        moment = time.monotonic()
        if not self.console.is_terminal and (at_once or moment - self.printed >= PLAIN_EVERY):
            self.console.print(f"{self.done}/{self.total}  {text}", soft_wrap=True)
            self.printed = moment
