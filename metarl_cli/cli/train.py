"""``metarl train``: meta-train, select on validation tasks, test on held-out tasks.

Started again on the same folder it goes on from the last checkpoint, bit for bit; a finished run says so. Under ``torchrun``
the individuals of an evolution are spread over the processes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from metarl_cli.cli.process import tune_process
from metarl_cli.config.models import Job, TrainConfig
from metarl_cli.config.registry import validate
from metarl_cli.errors import UserError
from metarl_cli.evaluation.curves import Report, metrics, reference_metrics
from metarl_cli.evaluation.evaluator import Evaluator
from metarl_cli.evaluation.held_out import held_out_tasks
from metarl_cli.evaluation.report import table
from metarl_cli.interfaces import Portrait, Portrayed, Sharded
from metarl_cli.processes import Ranks
from metarl_cli.progress import PLAIN_EVERY, told, working
from metarl_cli.runs import checkpoint
from metarl_cli.runs.build import Components, build
from metarl_cli.runs.folder import RunFolder, default_name
from metarl_cli.runs.provenance import now
from metarl_cli.runs.results import load_weights, measure
from metarl_cli.runs.tracking import Tracker, png, wide_console

Config = TrainConfig


def run(config: TrainConfig, job: Job) -> float:
    """Train a new run, or go on with the one in the folder; returns its score on the test tasks.

    Started by ``torchrun``, the first process does; the others evaluate their part of every population, and return nan.
    """
    tune_process(config.hardware)
    ranks = Ranks()
    if ranks.rank > 0:
        follow(ranks)
        return math.nan
    console = wide_console()
    folder = RunFolder(config.run or os.path.join(config.outputs, default_name(config, job.choices)))
    if config.run and folder.exists:
        config = folder.continued(config, job.overrides)
    if folder.exists and folder.manifest().get("status") == "finished":
        console.print(f"{folder} is finished already; test it again with: metarl test run={folder}", soft_wrap=True)
        ranks.tell()  # nothing to do
        return float(folder.manifest()["score"])
    parts = build(config)
    if ranks.size > 1 and not isinstance(parts.algorithm, Sharded):
        raise UserError(f"algo.module={config.algo.name} runs in one process, not in {ranks.size}: start it without torchrun")
    folder.lock()
    if folder.exists:
        folder.check_tasks(config, parts.family)
        _same_device(folder, parts)
    else:
        folder.create(config, job, parts)
    try:
        training = Training(config, folder, parts, console)
        ranks.tell(json.dumps(config.model_dump()).encode())
        ranks.tell(folder.last.read_bytes() if folder.last.exists() else b"")
        return training.run(ranks)
    except BaseException as error:
        with contextlib.suppress(UserError):  # the disk may be full: the error itself matters more
            if folder.manifest().get("status") == "running":
                status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
                folder.note(status=status, error=f"{type(error).__name__}: {error}"[:500], ended=now())
        if isinstance(error, OSError):
            raise UserError(f"{folder}: {error.strerror or error}; go on with: metarl train run={folder}") from error
        if folder.last.exists() and not isinstance(error, UserError | KeyboardInterrupt):
            console.print(f"the last checkpoint is {folder.last}; go on with: metarl train run={folder}", soft_wrap=True)
        raise


def follow(ranks: Ranks) -> None:
    """Train along with rank 0, whatever it trains and from wherever it goes on, until it says that it is over."""
    content = ranks.tell()
    if not content:
        return
    config = validate(TrainConfig, json.loads(content))
    algorithm = build(config).algorithm
    if state := ranks.tell():
        algorithm.load_state_dict(checkpoint.decode(state, "the checkpoint of rank 0")["algorithm"])
    with Interrupt():  # rank 0 stops for all
        while ranks.agree():
            algorithm.train_step()


def _same_device(folder: RunFolder, parts: Components) -> None:
    """Raises UserError where a run would go on with other random streams than it has saved."""
    made = str(folder.manifest().get("device"))
    if made != str(parts.device):
        raise UserError(f"{folder} was made on {made} and cannot go on on {parts.device}; use hardware={made}")


class Interrupt:
    """Notes SIGTERM, SIGUSR2 and Ctrl-C, so that the loop can save; then hands the signal to whoever had it before."""

    def __enter__(self) -> Interrupt:
        self.received: int | None = None
        self.before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number

    def __exit__(self, *exc: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def hand_on(self) -> None:
        """Send the noted signal again; call after the handlers are back."""
        if self.received is not None:
            os.kill(os.getpid(), self.received)


class Training:
    """The training loop of one run and its state: the algorithm, and the best validation score so far."""

    def __init__(self, config: TrainConfig, folder: RunFolder, parts: Components, console: Console):
        self.config, self.folder, self.parts, self.console = config, folder, parts, console
        self.algorithm = parts.algorithm
        self.iteration, self.best, self.seconds = 0, -float("inf"), 0.0
        resume_step = None
        if folder.last.exists():
            self._restore()
            resume_step = self.algorithm.env_steps
            console.print(f"going on from iteration {self.iteration} of {config.train.iterations}: {folder}", soft_wrap=True)
        else:
            console.print(f"new run folder: {folder}", soft_wrap=True)
            folder.best.unlink(missing_ok=True)
        self.tracker = Tracker(folder.path, config.model_dump(exclude={"run", "outputs"}), resume_step)
        validation = held_out_tasks(parts.family, config, "validation", config.eval.tasks)
        self.evaluator = Evaluator(parts.family, validation, config.eval.episodes, config.seed, "validation")

    def run(self, ranks: Ranks) -> float:
        """Train to the end, test, print the table; returns the score on the test tasks, ``score`` in run.json.

        The score is the IQM after adaptation, on the tasks learned from scratch where there are such, and for trials the mean
        return of an episode over the whole trial.
        """
        self.folder.note(status="running", started=now(), error=None)
        try:
            self._train(ranks)
            score = self._test()
        except BaseException:
            self.tracker.close(finished=False)
            raise
        self.tracker.close(finished=True)
        self.folder.note(status="finished", ended=now(), score=score)
        return score

    def _train(self, ranks: Ranks) -> None:
        loop = self.config.train
        iterations = loop.iterations if self.algorithm.learns else 1
        saved = time.monotonic()
        display = Display(self.console, iterations, self.iteration)
        with Interrupt() as interrupt, display, told(display.tell):
            while ranks.agree(self.iteration < iterations and interrupt.received is None):
                began, env_steps = time.monotonic(), self.algorithm.env_steps
                found = self.algorithm.train_step()
                self.iteration += 1
                if not all(math.isfinite(value) for value in found.values()):
                    raise UserError(f"training diverged at iteration {self.iteration}: {found}; try lower learning rates")
                spent = time.monotonic() - began
                self.seconds += spent
                if self.iteration % loop.log_every == 0 or self.iteration == 1:
                    found["time/env_steps_per_second"] = (self.algorithm.env_steps - env_steps) / max(spent, 1e-9)
                    found["time/training_seconds"] = self.seconds
                    found["train/iteration"] = self.iteration
                    self.tracker.log(found, self.algorithm.env_steps)
                if self.iteration % loop.eval_every == 0 or self.iteration == iterations:
                    found |= self._validate()
                display.update(self.iteration, self.algorithm.env_steps, found)
                if time.monotonic() - saved >= loop.checkpoint_every or self.iteration == iterations:
                    self._save()
                    saved = time.monotonic()
            if interrupt.received is not None:
                self._save()
        if interrupt.received is not None:
            self.folder.note(status="interrupted", ended=now())
            self.tracker.flush()
            self.console.print(f"saved; go on with: metarl train run={self.folder}", soft_wrap=True)
            interrupt.hand_on()
            raise KeyboardInterrupt  # the signal had an owner (a job scheduler's) that came back

    def _validate(self) -> dict[str, float]:
        """Adaptation curves on validation tasks; the best weights are kept."""
        curve = self.evaluator.curve(self.algorithm, self.config.eval.steps or 0)
        found, score = metrics(curve, "eval"), curve.score
        learned = self.evaluator.learned(self.algorithm)
        if learned is not None:  # each task from scratch: its own tasks are what it is for
            found["eval/return_learned"] = score = learned.value
        self.tracker.log(found, self.algorithm.env_steps)
        if isinstance(self.algorithm, Portrayed):
            self.tracker.portrait(self.algorithm.portrait(), self.algorithm.env_steps)
        if score > self.best:
            self.best = score
            weights = {"algorithm": {"weights": self.algorithm.weights()}}
            checkpoint.save(self.folder.best, {**weights, "env_steps": self.algorithm.env_steps, "score": score})
        return found

    def _test(self) -> float:
        """The best weights on test tasks, and on out-of-distribution ones where the family has them."""
        config, step = self.config, self.algorithm.env_steps
        load_weights(self.folder, self.parts, "best")
        reports: dict[str, tuple[Report, bytes]] = {}
        for split in ("test", "ood") if "ood" in self.parts.family.splits else ("test",):
            tasks = held_out_tasks(self.parts.family, config, split, config.test.tasks)
            with working(self.console, f"testing on {config.test.tasks} {split} tasks"):
                reports[split] = measure(self.folder, self.parts, split, tasks, config.test, config.seed, split)
        if isinstance(self.algorithm, Portrayed):
            self._keep(self.algorithm.portrait())
        self.algorithm.env_steps = step
        for split, (report, shown) in reports.items():
            self.tracker.log(metrics(report.curve, split) | reference_metrics(report, split), step)
            self.tracker.image(f"{split}/adaptation", shown, step)
        titles = {"test": "held-out tasks", "ood": "out-of-distribution tasks (wider ranges)"}
        for split, (report, _) in reports.items():
            repeats = "trials" if report.total else "episodes"
            self.console.print(table(report, f"{config.test.tasks} {titles[split]}, {config.test.episodes} {repeats} each"))
        tested = reports["test"][0]
        if tested.learned:
            self.console.print(f"return on the {config.algo.config.tasks} tasks learned from scratch: {tested.learned}")
        self.console.print(f"run folder: {self.folder}", soft_wrap=True)
        self.console.print(f"look at it: tensorboard --logdir {self.folder.path.parent}", soft_wrap=True)
        return tested.learned.value if tested.learned else tested.curve.score

    def _keep(self, shown: Portrait) -> None:
        """What the algorithm shows of itself, as files beside the results."""
        for name, text in shown.texts.items():
            checkpoint.write_whole(self.folder.results / f"{name.split('/')[-1]}.md", f"{text}\n".encode())
        for name, drawn in shown.figures.items():
            checkpoint.write_whole(self.folder.results / f"{name.split('/')[-1]}.png", png(drawn))

    # -- saving

    def _save(self) -> None:
        state = {
            "algorithm": self.algorithm.state_dict(),
            "env_steps": self.algorithm.env_steps,
            "iteration": self.iteration,
            "best": self.best,
            "seconds": self.seconds,
        }
        self.tracker.flush()
        checkpoint.save(self.folder.last, state)

    def _restore(self) -> None:
        state = checkpoint.load(self.folder.last)
        try:
            self.algorithm.load_state_dict(state["algorithm"])
            self.iteration, self.best = int(state["iteration"]), float(state["best"])
            self.seconds = float(state["seconds"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(f"refused {self.folder.last}: it does not fit the run's configuration ({error})") from error


class Display:
    """Progress with the numbers that matter: a bar on a terminal, a plain line now and then elsewhere."""

    SHOWN = (("eval/return_before", "before"), ("eval/return_after", "after"), ("eval/return_learned", "learned"))
    OF_TRIALS = (("eval/return_before", "first"), ("eval/return_after", "last"), ("eval/trial_return", "trial"))

    def __init__(self, console: Console, total: int, done: int):
        self.console, self.total, self.first, self.done = console, total, done, done
        self.numbers: dict[str, float] = {}
        self.text = ""
        self.began = self.printed = time.monotonic()
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.progress = Progress(
            *columns,
            TextColumn("{task.fields[numbers]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.task = self.progress.add_task("train", total=total, completed=done, numbers="")

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.progress.stop()

    def update(self, iteration: int, env_steps: int, found: dict[str, float]) -> None:
        """Show where training stands."""
        shown = self.OF_TRIALS if "eval/trial_return" in found else self.SHOWN
        self.numbers |= {name: found[tag] for tag, name in shown if tag in found}
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in self.numbers.items())
        self.text, self.done = f"{env_steps:,} env steps", iteration
        if self.numbers:
            self.text += f"  return on validation tasks: {numbers}"
        if "loss/query" in found:
            self.text += f"  loss {found['loss/query']:.3g}"
        self.progress.update(self.task, completed=iteration, numbers=self.text)
        left = self.total - iteration
        seconds = (time.monotonic() - self.began) / max(iteration - self.first, 1) * left
        self._plain(f"{self.text}  about {seconds:.0f} s left" if left else self.text, at_once=not left)

    def tell(self, what: str) -> None:
        """Show how far the iteration that runs now is."""
        self.progress.update(self.task, numbers=f"{self.text}  {what}")
        self._plain(f"{self.text}  {what}")

    def _plain(self, text: str, at_once: bool = False) -> None:
        moment = time.monotonic()
        if not self.console.is_terminal and (at_once or moment - self.printed >= PLAIN_EVERY):
            self.console.print(f"{self.done}/{self.total}  {text}", soft_wrap=True)
            self.printed = moment
