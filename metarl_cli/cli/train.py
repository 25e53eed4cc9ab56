"""``metarl train``: meta-train, select on validation tasks, test on held-out tasks.

Started again on the same folder it goes on from the last checkpoint, bit for bit; a finished run says so. Under ``torchrun``
several processes share one run.
"""

from __future__ import annotations

import math
import shlex
import time
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.text import Text
from typing_extensions import override

from metarl_cli.cli.process import tune_process
from metarl_cli.cli.terminal import error_lines, print_error, write_line
from metarl_cli.comparison.board import Current
from metarl_cli.config.compatibility import memory_errors
from metarl_cli.config.models import Job, TrainConfig
from metarl_cli.errors import PeerLost, ProcessLost, UserError, visible
from metarl_cli.evaluation.curves import Report
from metarl_cli.evaluation.report import SHARED, table
from metarl_cli.evaluation.statistics import Interval
from metarl_cli.processes import Watch, join
from metarl_cli.progress import PLAIN_EVERY, LogCopy, listening, log_console, status, wide_console
from metarl_cli.runs.folder import RunFolder
from metarl_cli.runs.loop import Listener, Progress, follow, train
from metarl_cli.runs.naming import default_path
from metarl_cli.runs.profile import Profile, tables
from metarl_cli.runs.results import read_result

BESIDE_BAR = 40  # [characters] for a word, the count, and two times
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
    try:
        joined = join(config.hardware.patience)
    except ProcessLost as error:
        raise SystemExit(print_error(error, own=True)) from error
    try:
        with Watch(joined, config.hardware.patience) as processes, memory_errors():
            if processes.rank == 0:
                with Terminal(wide_console(), Current(config.aggregate)) as terminal:
                    return train(config, job, terminal, processes)[1]
            with listening(_silent, _silent):
                follow(processes)
            return math.nan
    except (Exception, PeerLost) as error:  # SystemExit ends a sweep, too: the next job would wait for the others in vain
        if joined.size == 1:
            raise
        raise SystemExit(_tell(error, joined.rank)) from error


def folder(config: TrainConfig, job: Job) -> Path:
    """Return where the run of a job lies, or will lie."""
    return Path(config.run or default_path(config, job))


def outcome(config: TrainConfig, job: Job) -> dict[str, str]:
    """Return the return on the test tasks before and after adaptation, for the table of a sweep."""
    path = RunFolder(folder(config, job)).results / "test.json"
    if not path.exists():  # this process is one of several, or its result was removed
        return {}
    curve = read_result(path)["adapted"]
    points = [Interval(**point) for point in curve.get("iqm") or curve["mean"]]
    return {"before": str(points[0]), "after": str(points[-1])}


def _silent(text: str) -> None:
    """Report nothing: the first process does."""


def _tell(error: Exception | PeerLost, rank: int) -> int:
    """Print an error that ends this process of several; returns the exit code."""
    if isinstance(error, PeerLost):  # before the run began
        error = ProcessLost(str(error))
    if not isinstance(error, UserError):
        traceback.print_exception(error)
        return 1
    where = f"process {rank}: " if rank and not isinstance(error, ProcessLost) else ""
    return print_error(error, where, own=True)


class Terminal(Listener):
    """Prints the events of a run, and keeps what it prints in ``console.log`` of the run folder, errors included.

    Args:
        console: where to.
        beside: receives the events, too.
    """

    def __init__(self, console: Console, beside: Listener | None = None):
        self.console, self.beside = console, beside or Listener()
        self.log: Console | None = None
        self.listening = listening(_silent, self.note)

    def __enter__(self) -> Terminal:
        self.listening.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *trace: object) -> None:
        self.listening.__exit__(None, None, None)
        if self.log and isinstance(error, Exception):
            self.log.file.writelines(f"{line}\n" for line in error_lines(error))

    @override
    def started(self, folder: RunFolder, iteration: int, iterations: int) -> None:
        self.beside.started(folder, iteration, iterations)
        self.log = log_console(folder.path / "console.log")
        self.console.push_render_hook(LogCopy(self.log))
        self.bar = Bar(self.console, iterations, iteration, self.log)
        text = f"going on from iteration {iteration} of {iterations}: {folder}" if iteration else f"new run folder: {folder}"
        self.console.print(text, soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(text, soft_wrap=True)

    @contextmanager
    @override
    def training(self) -> Iterator[None]:
        with self.bar, listening(self.bar.report):
            yield

    @override
    def progress(self, progress: Progress) -> None:
        self.bar.update(progress)
        self.beside.progress(progress)

    @override
    def profiled(self, profile: Profile) -> None:
        for each in tables(profile):
            self.console.print(each)
        self.console.print(f"trace, for TensorBoard and https://ui.perfetto.dev: {profile.trace}", soft_wrap=True)

    @override
    def testing(self, split: str, tasks: int) -> AbstractContextManager[None]:
        return status(self.console, f"testing on {tasks} {split} tasks")

    @override
    def stopping(self) -> None:
        write_line("saving after this iteration; again to stop at once")

    @override
    def interrupted(self, folder: RunFolder) -> None:
        self.console.print(f"saved; go on with: {folder.command('train')}", soft_wrap=True)

    @override
    def failed(self, folder: RunFolder) -> None:
        self.console.print(f"the last checkpoint is {folder.last}; go on with: {folder.command('train')}", soft_wrap=True)

    @override
    def finished(self, folder: RunFolder, reports: dict[str, Report] | None) -> None:
        self.beside.finished(folder, reports)
        if reports is None:
            self.console.print(f"{folder} is finished already; test it again with: {folder.command('test')}", soft_wrap=True)
            return
        for split, report in reports.items():
            repeats, tasks = report.curve.returns.shape[1:]
            what = "trial" if report.total else "episode"
            each = f"{repeats} {what}{'s' if repeats != 1 else ''} each"
            self.console.print(table(report, f"{tasks} {TITLES[split]}{SHARED if report.shared else ''}, {each}"))
        if "test" in reports and (own := reports["test"].own_tasks):
            self.console.print(f"return on the training tasks, each learned on its own: {own}")
        self.console.print(f"run folder: {folder}", soft_wrap=True)
        self.console.print(f"look at it: tensorboard --logdir {shlex.quote(str(folder.path.parent))}", soft_wrap=True)


class Lines(ProgressBar):
    """A progress bar with text below it, which a narrow terminal folds: neither takes room from the other."""

    below = Text()

    @override
    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        yield self.below


class Bar:
    """Progress with the numbers that matter: a bar on a terminal, a plain line now and then elsewhere.

    Args:
        console: where to.
        total: iterations.
        done: iterations that were made before.
        log: where plain lines go beside a terminal.
        label: what is trained, of a run among others: its end is told elsewhere.
    """

    NUMBERS = (("eval/return_before", "before"), ("eval/return_after", "after"), ("eval/return_learned", "learned"))
    ALONE = (("eval/return_after", "IQM"),)  # of a policy that does not adapt
    OF_TRIALS = (("eval/return_before", "first"), ("eval/return_after", "last"), ("eval/trial_return", "trial"))

    def __init__(self, console: Console, total: int, done: int, log: Console | None = None, label: str = ""):
        self.total, self.first, self.done, self.label = total, done, done, label
        self.plain = log if console.is_terminal else console
        self.numbers: dict[str, float] = {}
        self.text = ""
        self.began = time.monotonic()
        self.printed = self.began if label else -math.inf  # the first line is printed at once
        self.progress = Lines(
            TextColumn(label or "training"),
            BarColumn(max(10, min(40, console.width - BESIDE_BAR - len(label)))),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.task = self.progress.add_task("train", total=total, completed=done)

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.progress.stop()

    def update(self, progress: Progress) -> None:
        """Show where training stands."""
        iteration, _, env_steps, metrics = progress
        alone = "eval/return_step_0" in metrics and "eval/return_step_1" not in metrics
        names = self.OF_TRIALS if "eval/trial_return" in metrics else self.ALONE if alone else self.NUMBERS
        self.numbers |= {name: metrics[tag] for tag, name in names if tag in metrics}
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in self.numbers.items())
        self.text, self.done = f"{env_steps:,} env steps", iteration
        if self.numbers:
            self.text += f"  return on validation tasks: {numbers}"
        if "loss/query" in metrics:
            self.text += f"  loss {metrics['loss/query']:.3g}"
        self.progress.below = Text(self.text)
        self.progress.update(self.task, completed=iteration)
        left = self.total - iteration
        seconds = (time.monotonic() - self.began) / max(iteration - self.first, 1) * left
        self._plain(f"{self.text}  about {seconds:.0f} s left" if left else self.text, at_once=not left and not self.label)

    def report(self, what: str) -> None:
        """Show how far the current iteration is."""
        text = visible(f"{self.text}  {what}".lstrip())
        self.progress.below = Text(text)
        self._plain(text)

    def _plain(self, text: str, at_once: bool = False) -> None:
        moment = time.monotonic()
        if self.plain and (at_once or moment - self.printed >= PLAIN_EVERY):
            self.plain.print(f"{self.label}  {self.done}/{self.total}  {text}".lstrip(), soft_wrap=True)
            self.printed = moment
