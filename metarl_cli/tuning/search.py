"""The search: trials until there are enough, then the best one and the defaults on fresh seeds."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metarl_cli.config.models import Job, TrainConfig
from metarl_cli.errors import DiskFault, UserError
from metarl_cli.runs.folder import RunFolder
from metarl_cli.runs.loop import Listener, Progress, train
from metarl_cli.tuning.study import MOST_STARTS, Ended, Pruned, Study, Trial

WAIT = 2.0  # [s] between two looks at what other processes do
SCORE = "eval/score"  # on validation tasks, which is all that the search sees
Compose = Callable[[Mapping[str, str], int, Path], tuple[TrainConfig, Job]]  # (values, seed, folder of the runs)


class Watch:
    """One run of the search, as its listener tells of it.

    Args:
        label: what the run is.
        trial: it belongs to; None: it is of the report.
        earlier: the scores of the trial's runs before this one.
        steps: their iterations.
    """

    def __init__(self, label: str, trial: Trial | None = None, earlier: Sequence[float] = (), steps: int = 0):
        self.label, self.trial, self.earlier, self.steps = label, trial, earlier, steps
        self.best, self.iterations = -math.inf, 0

    def started(self, folder: RunFolder, iteration: int, iterations: int) -> None:
        """The run starts, or goes on from an iteration above 0."""
        self.iterations = iterations
        if iteration and folder.best.exists():
            self.best = folder.validation_score()

    def progress(self, progress: Progress) -> None:
        """An iteration is over.

        Raises:
            Pruned: where the trial is behind.
        """
        if SCORE in progress.metrics:
            self.best = max(self.best, progress.metrics[SCORE])
            if self.trial:
                self.trial.report(self.steps + progress.iteration, float(np.mean([*self.earlier, self.best])))


class Screen(ABC):
    """What a search shows: the listener of its runs, and by default nothing else."""

    def began(self, trial: Trial) -> None:
        """A trial starts, or goes on."""
        return

    def ended(self, trial: Ended) -> None:
        """A trial has ended."""
        return

    def waiting(self, text: str) -> None:
        """Other processes are at work, and there is nothing else to do."""
        return

    @abstractmethod
    def listening(self, watch: Watch) -> AbstractContextManager[Listener]:
        """Return the listener of a run, which notifies ``watch``."""


class Contender(NamedTuple):
    """Settings that are run on fresh seeds."""

    name: str
    values: dict[str, str]


def search(study: Study, trials: int, seeds: Sequence[int], compose: Compose, screen: Screen) -> Ended:
    """Run trials until the study has as many as it shall, those of other processes included; returns the best.

    Args:
        study: the study.
        trials: how many.
        seeds: of the runs of a trial.
        compose: gives the configuration of a run.
        screen: is notified of what happens.

    Raises:
        UserError: if no trial has finished.
        DiskFault: if a disk is full; the trial goes on with the next process.
        KeyboardInterrupt: after a signal; so does it.
    """
    while True:
        if trial := study.take(trials):
            screen.began(trial)
            run_trial(trial, seeds, compose, screen)
            screen.ended(next(each for each in study.trials() if each.number == trial.number))
        elif running := study.running():
            screen.waiting(f"waiting for {running} trial{'s' * (running > 1)} of other processes")
            time.sleep(WAIT)
        else:
            break
    if best := study.best():
        return best
    first = next((each for each in study.trials() if each.reason), None)
    reason = f"; the first: {first.reason}" if first else ""
    raise UserError(f"none of the {len(study.trials())} trials in {study.folder} finished{reason}", exit_code=1)


def run_trial(trial: Trial, seeds: Sequence[int], compose: Compose, screen: Screen) -> None:
    """Run a trial to its end: finished, stopped early or failed."""
    if trial.starts > MOST_STARTS:
        trial.fail(f"its process was killed {MOST_STARTS} times before it came to a score")
        return
    if twin := trial.twin():
        assert twin.score is not None
        trial.finish(twin.score)
        return
    scores, steps = list[float](), 0
    try:
        trial.check()
        for seed in seeds:
            label = f"trial {trial.number}" + (f", seed {seed}" if len(seeds) > 1 else "")
            watch = Watch(label, trial, scores, steps)
            config, job = compose(trial.values, seed, trial.folder)
            with screen.listening(watch) as listener:
                scores.append(train(config, job._replace(number=trial.number), listener, tested=False)[1])
            steps += config.train.iterations
        score = float(np.mean(scores))
        if math.isfinite(score):
            trial.finish(score)
        else:
            trial.fail(f"its score is {score}")
    except Pruned as reason:
        trial.prune(str(reason))
    except (DiskFault, KeyboardInterrupt):
        trial.leave()
        raise
    except UserError as error:
        trial.fail(error.problems[0].text if error.problems else str(error))
    except Exception as error:
        trial.fail(f"{type(error).__name__}: {error}")


def compare(
    study: Study, contenders: Sequence[Contender], seeds: Sequence[int], compose: Compose, screen: Screen
) -> Iterator[str]:
    """Run contenders on fresh seeds, other processes being free to take some; yields a line on each run that fails."""
    left = [(each, seed) for seed in seeds for each in contenders]
    while left:
        held = []
        for contender, seed in left:
            lock = study.lock(f"report-{contender.name}-{seed}")
            if lock is None:
                held.append((contender, seed))
                continue
            try:
                config, job = compose(contender.values, seed, study.folder / "report" / contender.name)
                with screen.listening(Watch(f"{contender.name}, seed {seed}")) as listener:
                    train(config, job, listener)
            except DiskFault:
                raise
            except Exception as error:
                yield f"{contender.name}, seed {seed}: {error}"
            finally:
                lock.release()
        if left := held:
            screen.waiting(f"waiting for {len(left)} run{'s' * (len(left) > 1)} of other processes")
            time.sleep(WAIT)
