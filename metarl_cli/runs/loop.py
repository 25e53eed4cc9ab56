"""The training loop: meta-train, select on validation tasks, test on held-out tasks.

Started again on the same folder it goes on from the last checkpoint, bit for bit; a finished run is left as it is. Several
processes that ``torchrun`` started share one run. The loop prints nothing: a :class:`Listener` receives its events.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import shlex
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

from metarl_cli import progress
from metarl_cli.config.footprint import first_line, out_of_memory
from metarl_cli.config.models import Job, TrainConfig
from metarl_cli.config.registry import validate
from metarl_cli.errors import DiskFault, EnvironmentFault, PeerLost, ProcessLost, UserError
from metarl_cli.evaluation.curves import Levels, Report, metrics, reference_metrics
from metarl_cli.evaluation.evaluator import Evaluator
from metarl_cli.evaluation.held_out import held_out_tasks
from metarl_cli.evaluation.pictures import png
from metarl_cli.interfaces import Budget, Diagnostics
from metarl_cli.processes import ALONE, Processes, gpu_number
from metarl_cli.runs import checkpoint
from metarl_cli.runs.build import Components, build, check_training_memory, using
from metarl_cli.runs.demonstrator import keep_demonstrator
from metarl_cli.runs.files import memory, read, write_whole
from metarl_cli.runs.folder import RunFolder
from metarl_cli.runs.interrupt import Interrupt
from metarl_cli.runs.levels import find_levels
from metarl_cli.runs.naming import default_path
from metarl_cli.runs.peak import largest
from metarl_cli.runs.profile import Profile, Profiler, check_left
from metarl_cli.runs.provenance import now
from metarl_cli.runs.results import Measured, load_weights, measure
from metarl_cli.runs.shipped import entries, is_shipped
from metarl_cli.runs.tracking import Tracker


class Progress(NamedTuple):
    """The state of a run after an iteration."""

    iteration: int
    iterations: int
    env_steps: int
    metrics: dict[str, float]  # of this iteration; with ``eval/...`` where it validated


class Stopped(Exception):
    """Raised by a listener to end a run early, which has not failed; the text says why."""


class Listener:
    """Receives the events of a run; does nothing with them."""

    def started(self, folder: RunFolder, iteration: int, iterations: int) -> None:
        """A run starts in ``folder``, or goes on from an ``iteration`` above 0."""

    def progress(self, progress: Progress) -> None:
        """An iteration is over."""

    def profiled(self, profile: Profile) -> None:
        """The profile of some iterations is made."""

    def training(self) -> AbstractContextManager[object]:
        """The loop runs within this block."""
        return contextlib.nullcontext()

    def testing(self, split: str, tasks: int) -> AbstractContextManager[object]:
        """A test runs within this block."""
        return contextlib.nullcontext()

    def stopping(self) -> None:
        """A signal asks the run to stop: it saves after this iteration. Called within a signal handler."""

    def interrupted(self, folder: RunFolder) -> None:
        """A signal stopped the run, which is saved."""

    def failed(self, folder: RunFolder) -> None:
        """An error, or a second signal, stopped the run, which has a checkpoint."""

    def finished(self, folder: RunFolder, reports: dict[str, Report] | None) -> None:
        """The run is finished; ``reports`` are None where it was before."""


def train(
    config: TrainConfig, job: Job, listener: Listener, processes: Processes = ALONE, tested: bool = True
) -> tuple[RunFolder, float]:
    """Train a new run, or go on with the one in the folder; returns the folder and the best score on the validation tasks.

    Args:
        config: of the run.
        job: how it was composed.
        listener: receives the events.
        processes: those that share the run; this one is of rank 0, and the others :func:`follow`.
        tested: whether a new run ends with the test on held-out tasks.

    Raises:
        UserError: if the folder cannot be used, or training diverged.
        ProcessLost: if another process has ended.
        KeyboardInterrupt: after a signal, once the run is saved.
    """
    folder = RunFolder(config.run or default_path(config, job))
    begun, longer = folder.exists, False
    if begun:
        config = folder.continued(config, job.overrides) if config.run else folder.prolonged(config)
        longer = config.run is not None and config.train.iterations > folder.config().train.iterations
        if folder.finished and not longer:
            processes.broadcast()  # nothing to do
            listener.finished(folder, None)
            return folder, folder.validation_score()
    elif config.run:
        folder.refuse_mistyped(config, job.overrides)
    components = build(config, gpu_number(job.number), processes)
    if processes.size > (most := components.algorithm.shares):
        raise UserError(
            f"algo.module={config.algo.name} shares its work among at most {most} process{'es' if most > 1 else ''} here, "
            f"not {processes.size}{'' if most > 1 else ': start it without torchrun'}"
        )
    check_training_memory(config, components)
    if config.hardware.profile and not begun:
        check_left(config.train.iterations)
    folder.lock()
    try:
        with _noting_failures(folder, listener):
            if folder.exists:
                folder.check_tasks(config, components.family)
                _same_device(folder, components)
                _check_saved(folder)
            else:
                if config.demonstrator:
                    keep_demonstrator(config.demonstrator, folder.path)
                folder.create(config, job, components)
            if processes.watch:
                processes.watch.last_words = functools.partial(_lost, folder)
            training = Training(config, folder, components, listener, tested)
            if longer:
                folder.note(status="interrupted", iterations=config.train.iterations)
            if processes.size > 1:  # for follow
                processes.broadcast(
                    json.dumps({"config": config.model_dump(), "folder": str(folder), "job": job.number}).encode()
                )
                processes.broadcast(read(folder.last, memory()) if folder.last.exists() else b"")
            with using(config.hardware):
                training.run(processes)
                return folder, training.best
    finally:
        folder.unlock()


@contextlib.contextmanager
def _noting_failures(folder: RunFolder, listener: Listener) -> Iterator[None]:
    """Note in the manifest why the block has failed, and tell the user what there is to go on from.

    Raises:
        ProcessLost: if another process has ended.
        UserError: if memory has run out, or the system refuses a file; any other error as it is.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, ProcessLost | PeerLost):
            raise _lost(folder, error) from error
        _note_failure(folder, error)
        if out_of_memory(error):
            raise UserError(f"out of memory: {first_line(error)}; {_how_to_go_on(folder)}") from error
        if isinstance(error, OSError):
            raise UserError(f"{folder}: {error.strerror or error}; go on with: {folder.command('train')}") from error
        reported = isinstance(error, UserError | KeyboardInterrupt | Stopped) and not isinstance(
            error, EnvironmentFault | DiskFault
        )
        if folder.last.exists() and not reported:
            listener.failed(folder)
        raise


LONGEST_ERROR = 500  # [characters] of an error that the manifest keeps


def _note_failure(folder: RunFolder, error: BaseException) -> None:
    """Note in the manifest of a run that was running why it is not any more."""
    with contextlib.suppress(UserError):  # the disk may be full: the error itself matters more
        if folder.manifest().get("status") == "running":
            folder.free_reserve()
            status = "interrupted" if isinstance(error, KeyboardInterrupt | Stopped) else "failed"
            said = f"{type(error).__name__}: {error}"[:LONGEST_ERROR]
            folder.note(status=status, error=said, ended=now(), **largest(folder.manifest()))


def _how_to_go_on(folder: RunFolder) -> str:
    saved = f"the last checkpoint is {folder.last}" if folder.last.exists() else "there is no checkpoint yet"
    return f"{saved}; go on with: {folder.command('train')}"


def _lost(folder: RunFolder, error: ProcessLost | PeerLost) -> ProcessLost:
    """Note in the manifest that a process is lost, and return the error with what there is to go on from."""
    _note_failure(folder, error)
    return ProcessLost(f"{error}; {_how_to_go_on(folder)}")


def follow(processes: Processes) -> None:
    """Train along with rank 0, whatever it trains and from wherever it goes on, until it has finished.

    Raises:
        ProcessLost: if rank 0 has ended; rank 1 speaks in its place.
    """
    content = processes.broadcast()
    if not content:
        processes.wait()
        return
    started = json.loads(content)
    config, folder = validate(TrainConfig, started["config"]), RunFolder(started["folder"])
    try:
        algorithm = build(config, gpu_number(started["job"]), processes).algorithm
        if state := processes.broadcast():
            algorithm.load_state_dict(checkpoint.decode(state, "the checkpoint of rank 0")["algorithm"])
        with using(config.hardware):
            while processes.broadcast_flag():
                algorithm.train_step()
        processes.wait()
    except PeerLost as error:
        if processes.rank > 1:
            raise ProcessLost from error
        raise _lost(folder, error) from error


def _same_device(folder: RunFolder, components: Components) -> None:
    """Raise UserError where a run would go on with other random streams than it has saved."""
    made, kind = str(folder.manifest().get("device")).partition(":")[0], components.device.type
    if made != kind:
        raise UserError(f"{folder} was made on {made} and cannot go on on {kind}; use hardware={made}")


def _check_saved(folder: RunFolder) -> None:
    """Raise UserError where a run would begin again over what it has written."""
    if folder.manifest().get("saved") and not folder.last.exists():
        if is_shipped(folder.path, name := folder.path.name):
            own = shlex.join(["metarl", "train", *entries()[name].train])
            raise UserError(
                f"zoo:{name} comes with its best weights alone, from which training cannot go on; train your own: {own}"
            )
        rest = f"; its best weights are left: {folder.command('test')}" if folder.best.exists() else ""
        missing = f"{folder} cannot go on, for {folder.last.name} is gone"
        raise UserError(f"{missing}: put it back, or choose another folder to train from the start{rest}")


class Training:
    """A run and its state: the algorithm, and the best validation score so far.

    Args:
        config: of the run.
        folder: where it lies, locked.
        components: the objects of the configuration.
        listener: receives the events.
        tested: whether it ends with the test.
    """

    def __init__(self, config: TrainConfig, folder: RunFolder, components: Components, listener: Listener, tested: bool = True):
        self.config, self.folder, self.components, self.listener = config, folder, components, listener
        self.algorithm = components.algorithm
        self.iteration, self.best, self.seconds = 0, -float("inf"), 0.0
        self.iterations = config.train.iterations
        self.saved = False  # whether the manifest says that there is a checkpoint
        resume_step, logged = None, None
        if folder.last.exists():
            logged = self._restore()
            resume_step = self.algorithm.env_steps
        else:  # it has not come to its first checkpoint
            folder.best.unlink(missing_ok=True)
        self.train_step = self.algorithm.train_step
        if config.hardware.profile:
            done, device = self.iteration, components.device
            self.train_step = Profiler(self.train_step, done, self.iterations, folder.path, device, listener.profiled)
        listener.started(folder, self.iteration, self.iterations)
        splits: list[str] = [split for split in ("test", "ood") if tested and split in components.family.splits]
        self.levels = {split: self._levels(split) for split in splits}
        self.tracker = Tracker(folder.path, folder.hparams(config), folder.texts(), resume_step, logged)
        self.evaluator = self._evaluator("validation", config.eval.tasks, config.eval.episodes)

    def _evaluator(self, split: str, tasks: int, episodes: int) -> Evaluator:
        family, config = self.components.family, self.config
        return Evaluator(family, held_out_tasks(family, split, tasks, config.tasks_seed), episodes, config.seed, split)

    def _levels(self, split: str) -> Levels:
        """Return the references of a test; found before training, so that a mistake is told before the work."""
        test = self.config.test
        evaluator = self._evaluator(split, test.tasks, test.episodes)
        return find_levels(self.config, evaluator, self.config.robust, self.config.oracle)

    def run(self, processes: Processes) -> None:
        """Train to the end and test, if it is tested; the score on the test tasks is ``score`` in run.json.

        The score is the mean after adaptation, on the training tasks where each is learned on its own, and for trials the mean
        return of an episode over the whole trial.
        """
        self.folder.note(status="running", started=now(), error=None)
        interrupt = Interrupt(self.listener.stopping)
        try:
            with interrupt:
                with self.listener.training():
                    for state in self.iterate(processes, interrupt):
                        self.listener.progress(state)
                interrupt.saved = True
                if interrupt.received is not None:
                    raise KeyboardInterrupt
                if not self.folder.best.exists():  # it went on without, and had no iteration left to choose it in
                    self.validate()
                    self.save()
                reports = self.test()
                self.tracker.close(finished=True)
                taken = largest(self.folder.manifest())
                score = reports["test"].score if reports else None
                self.folder.note(status="finished", ended=now(), score=score, tested=bool(reports), **taken)
        except BaseException as error:
            self.tracker.close(finished=False)
            if isinstance(error, KeyboardInterrupt) and interrupt.received is not None:
                self._interrupted(interrupt)
            raise
        self.listener.finished(self.folder, reports)

    def iterate(self, processes: Processes, interrupt: Interrupt) -> Iterator[Progress]:
        """Train, log, validate and save until the end or a signal; yields after every iteration."""
        loop, algorithm = self.config.train, self.algorithm
        saved = time.monotonic()
        while processes.broadcast_flag(self.iteration < self.iterations and interrupt.received is None):
            started, env_steps = time.monotonic(), algorithm.env_steps
            logged = self.train_step()
            self.iteration += 1
            if wrong := {name: value for name, value in logged.items() if not math.isfinite(value)}:
                names = ", ".join(f"{name}={value}" for name, value in wrong.items())
                raise UserError(f"training diverged at iteration {self.iteration}: {names}; try lower learning rates")
            spent = time.monotonic() - started
            self.seconds += spent
            if self.iteration % loop.log_every == 0 or self.iteration == 1:
                logged["time/env_steps_per_second"] = (algorithm.env_steps - env_steps) / max(spent, 1e-9)
                logged["time/training_seconds"] = self.seconds
                logged["train/iteration"] = self.iteration
                self.tracker.log(logged, algorithm.env_steps)
            last = self.iteration == self.iterations
            if self.iteration % loop.eval_every == 0 or last:
                logged |= self.validate()
            if last:  # what comes is the test, which needs none of the experience
                algorithm.drop_replay()
            if time.monotonic() - saved >= loop.checkpoint_every or last:
                self.save()
                saved = time.monotonic()
            yield Progress(self.iteration, self.iterations, algorithm.env_steps, logged)
        if interrupt.received is not None:
            self.save()
            interrupt.saved = True

    def _interrupted(self, interrupt: Interrupt) -> None:
        """Say what is saved, and let the signal take its course; returns if a job scheduler's handler does."""
        self.folder.note(status="interrupted", ended=now(), **largest(self.folder.manifest()))
        if interrupt.saved:
            self.listener.interrupted(self.folder)
        elif self.folder.last.exists():
            self.listener.failed(self.folder)
        interrupt.hand_on()

    def validate(self) -> dict[str, float]:
        """Measure adaptation on validation tasks, and keep the best weights."""
        algorithm = self.algorithm
        curve = self.evaluator.curve(algorithm, Budget(self.config.eval.steps or 0))
        values, score = metrics(curve, "eval"), curve.score
        own = self.evaluator.own_tasks(algorithm)
        if own is not None:  # they are what the algorithm is for
            values["eval/return_learned"] = score = own.value
        values["eval/score"] = score
        self.tracker.log(values, algorithm.env_steps)
        self.tracker.diagnostics(algorithm.diagnostics(), algorithm.env_steps)
        if score > self.best:
            self.best = score
            weights = {"algorithm": {"weights": algorithm.weights()}}
            checkpoint.save(self.folder.best, {**weights, "env_steps": algorithm.env_steps, "score": score})
        return values

    def test(self) -> dict[str, Report]:
        """Measure the best weights on test tasks, and on out-of-distribution ones where the family has them."""
        test, step = self.config.test, self.algorithm.env_steps
        env_steps = load_weights(self.folder, self.algorithm, "best")
        measured: dict[str, Measured] = {}
        for split, levels in self.levels.items():
            with self.listener.testing(split, test.tasks):
                evaluator = self._evaluator(split, test.tasks, test.episodes)
                budget = Budget(test.steps or 0)
                measured[split] = measure(self.folder, evaluator, self.algorithm, budget, env_steps, split, levels)
        self._keep(self.algorithm.diagnostics())
        for split, (report, picture) in measured.items():
            self.tracker.log(metrics(report.curve, split) | reference_metrics(report, split), step)
            self.tracker.image(f"{split}/adaptation", picture, step)
        return {split: report for split, (report, _) in measured.items()}

    def _keep(self, diagnostics: Diagnostics) -> None:
        """Keep the algorithm's diagnostics as files beside the results."""
        for name, text in diagnostics.texts.items():
            write_whole(self.folder.results / f"{name.split('/')[-1]}.md", f"{text}\n".encode())
        for name, drawn in diagnostics.figures.items():
            write_whole(self.folder.results / f"{name.split('/')[-1]}.png", png(drawn))

    # -- saving

    def save(self) -> None:
        """Write the checkpoint that training goes on from."""
        state = {
            "algorithm": self.algorithm.state_dict(),
            "env_steps": self.algorithm.env_steps,
            "iteration": self.iteration,
            "best": self.best,
            "seconds": self.seconds,
            "logged": self.tracker.state,
        }
        self.tracker.flush()
        checkpoint.save(self.folder.last, state)
        if not self.saved:
            self.folder.note(saved=True)
            self.saved = True

    def _restore(self) -> tuple[int, str]:
        """Take over the last checkpoint; returns the state of the tracker then."""
        state = checkpoint.load(self.folder.last)
        with checkpoint.fitting(self.folder.last):
            self.algorithm.load_state_dict(state["algorithm"])
            for name in self.algorithm.counters:
                checkpoint.count(getattr(self.algorithm, name))
            self.iteration, self.best = checkpoint.count(state["iteration"]), float(state["best"])
            self.seconds = float(state["seconds"])
            if self.iteration > self.iterations:
                raise ValueError(f"{self.iteration} of {self.iterations} iterations")
            lines, digest = state["logged"]
            logged = checkpoint.count(lines), str(digest)
        if self.best > -math.inf and not self.folder.best.exists():
            progress.note(f"{self.folder.best} is gone: the best weights are chosen anew, from here on")
            self.best = -math.inf
        return logged
