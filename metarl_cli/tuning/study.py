"""A study on disk, which several processes share.

    study.json        what is searched, and on what
    journal.jsonl     Optuna's record of the trials
    trials/0007/RUN   the runs of a trial, ordinary run folders
    report/NAME/RUN   those of the best trial and of the defaults on fresh seeds
    locks/            a file for each trial that a process holds: the lock ends with the process, even a killed one

A trial that nobody holds and that has not ended was killed: the next process that looks for work goes on with it.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ConfigDict

from metarl_cli.config.models import Pruning
from metarl_cli.errors import UserError
from metarl_cli.runs.files import read_json, refuse_links, write_json
from metarl_cli.runs.loop import Stopped
from metarl_cli.tuning.journal import Journal
from metarl_cli.tuning.locks import Lock
from metarl_cli.tuning.ranges import Range

FORMAT = 1
NAME = "metarl"  # of the study in its journal
MOST_STARTS = 5  # of a trial whose process is killed each time before it reports
LONGEST_REASON = 300  # [characters]
ENDED = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "stopped early", TrialState.FAIL: "failed"}


class Saved(BaseModel):
    """The form of study.json."""

    model_config = ConfigDict(strict=True)

    format: Literal[1]
    command: str
    ranges: dict[str, str]
    values: dict[str, Any]


class Plan(NamedTuple):
    """What a study searches."""

    ranges: dict[str, Range]
    defaults: dict[str, Any]  # of these keys
    values: dict[str, Any]  # by dotted key, all that can change a score but what is searched
    sampler: str
    prune: Pruning | None
    steps: int  # iterations of a trial, over all its runs
    command: str


class Pruned(Stopped):
    """A trial ends early; the text says why."""


class Ended(NamedTuple):
    """A trial that has ended."""

    number: int
    state: str  # one of ENDED
    values: dict[str, str]  # as they stand on the command line
    score: float | None  # of a finished trial
    reason: str  # why it did not finish
    steps: int  # iterations that it reported last


class Study:
    """A study, new or gone on with.

    Args:
        folder: its folder.
        plan: what it searches.

    Raises:
        UserError: if the folder cannot be used, holds something else or another study, or is damaged.
    """

    def __init__(self, folder: Path, plan: Plan):
        self.folder, self.plan = folder, plan
        try:
            folder.mkdir(parents=True, exist_ok=True)
            foreign = sorted(path.name for path in folder.iterdir())
            if foreign and not {"study.json", ".lock"} & {*foreign}:
                raise UserError(f"{folder} is not empty and not a study (it holds {foreign[0]}); choose another folder")
            refuse_links(folder)
        except OSError as error:
            raise UserError(f"cannot write in {folder}: {error.strerror}") from error
        with self._alone():
            (folder / "locks").mkdir(exist_ok=True)
            path, ranges = folder / "study.json", {key: str(each) for key, each in plan.ranges.items()}
            if path.exists():
                self._check(read_json(path, Saved), ranges)
            else:
                saved = {"format": FORMAT, "command": plan.command, "ranges": ranges, "values": plan.values}
                write_json(path, saved, Saved)
            self.study = self._load()

    def _check(self, saved: Mapping[str, Any], ranges: Mapping[str, str]) -> None:
        """Raises UserError where the folder holds another study."""
        wrong = []
        for what, then, now in (("range of ", saved["ranges"], ranges), ("", saved["values"], self.plan.values)):
            keys = [key for key in dict.fromkeys((*then, *now)) if then.get(key) != now.get(key)]
            wrong += [
                f"{what}{key} is {then.get(key, 'not there')} in the study, {now.get(key, 'not there')} here" for key in keys
            ]
        if wrong:
            more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise UserError(f"{self.folder} searches something else; {'; '.join(wrong[:3])}{more}; choose another folder")

    def _load(self) -> optuna.Study:
        try:
            backend: Any = Journal(self.folder / "journal.jsonl")
            self.storage = optuna.storages.JournalStorage(backend)
            study = optuna.create_study(storage=self.storage, study_name=NAME, direction="maximize", load_if_exists=True)
            for trial in study.get_trials(deepcopy=False):
                self._check_trial(trial)
            if [each.name for each in study.directions] != ["MAXIMIZE"]:
                raise ValueError("it has another direction")
        except (UserError, OSError):
            raise
        except Exception as error:  # whatever a damaged journal makes Optuna raise
            raise UserError(
                f"refused {self.folder / 'journal.jsonl'}: it is damaged ({type(error).__name__}: {error})"
            ) from error
        return study

    def _check_trial(self, trial: FrozenTrial) -> None:
        """Raises ValueError for a trial that this study cannot have made."""
        for key, value in (*trial.params.items(), *trial.system_attrs.get("fixed_params", {}).items()):
            range_ = self.plan.ranges[key]
            if not range_.tries(value) or trial.distributions.get(key, range_.distribution()) != range_.distribution():
                raise ValueError(f"trial {trial.number} has {key}={value!r}")
        numbers = [*(trial.values or []), *trial.intermediate_values.values()]
        if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
            raise ValueError(f"trial {trial.number} has a score that is no number")
        if trial.state == TrialState.COMPLETE and (len(trial.values) != 1 or trial.params.keys() != self.plan.ranges.keys()):
            raise ValueError(f"trial {trial.number} is not complete")
        if not all(type(step) is int and 0 <= step < 2**40 for step in trial.intermediate_values):
            raise ValueError(f"trial {trial.number} has a score at no iteration")
        if not isinstance(trial.user_attrs.get("reason", ""), str) or type(trial.user_attrs.get("starts", 0)) is not int:
            raise ValueError(f"trial {trial.number} has other notes")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from the study within the block."""
        lock = Lock(self.folder / ".lock", wait=True)
        try:
            yield
        finally:
            lock.release()

    def lock(self, name: str) -> Lock | None:
        """Return a lock of the study; None where another process holds it."""
        try:
            return Lock(self.folder / "locks" / name)
        except BlockingIOError:
            return None

    def take(self, limit: int) -> Trial | None:
        """Return a trial to run: one whose process was killed, else a new one if there are fewer than ``limit``; else None."""
        with self._alone():
            made = self.study.get_trials(deepcopy=False, states=None)
            for trial in made:
                if trial.state == TrialState.RUNNING and (lock := self.lock(f"trial-{trial.number:04d}")):
                    return self._started(trial.number, lock, resumed=True)
            if sum(trial.state != TrialState.WAITING for trial in made) >= limit:
                return None
            if not made:
                held = {
                    key: each.start(self.plan.defaults[key]) for key, each in self.plan.ranges.items() if self._defaulted(key)
                }
                if held.keys() == self.plan.ranges.keys():
                    self.study.enqueue_trial(held)
            self._seed(len(made))
            number = self.study.ask().number
            lock = self.lock(f"trial-{number:04d}")
            assert lock, "nobody knows of this trial yet"
            return self._started(number, lock)

    def _defaulted(self, key: str) -> bool:
        return self.plan.ranges[key].has(self.plan.defaults[key])

    def _seed(self, number: int) -> None:
        """Give the trial of a number its random stream: a study that was killed proposes what it would have proposed."""
        seed = int(np.random.SeedSequence([int(self.plan.values["seed"]), number]).generate_state(1)[0])
        samplers = optuna.samplers
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study.sampler = (
                samplers.TPESampler(seed=seed) if self.plan.sampler == "tpe" else samplers.RandomSampler(seed=seed)
            )

    def _started(self, number: int, lock: Lock, resumed: bool = False) -> Trial:
        self._seed(number)
        identity = self.storage.get_trial_id_from_study_id_trial_number(self.storage.get_study_id_from_name(NAME), number)
        return Trial(self, identity, lock, resumed)

    def trials(self) -> list[Ended]:
        """Return the trials that have ended."""
        states = tuple(ENDED)
        return [self._ended(trial) for trial in self.study.get_trials(deepcopy=False, states=states)]

    def _ended(self, trial: FrozenTrial) -> Ended:
        values = {key: self.plan.ranges[key].written(value) for key, value in trial.params.items()}
        score = trial.values[0] if trial.state == TrialState.COMPLETE and trial.values else None
        steps = max(trial.intermediate_values, default=0)
        return Ended(trial.number, ENDED[trial.state], values, score, trial.user_attrs.get("reason", ""), steps)

    def best(self) -> Ended | None:
        """Return the finished trial of the highest score, of several the first; None: there is none."""
        finished = [trial for trial in self.trials() if trial.score is not None]
        return max(finished, key=lambda trial: (trial.score, -trial.number), default=None)

    def running(self) -> int:
        """Return how many trials have begun and not ended."""
        return len(self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))

    def importances(self) -> dict[str, float]:
        """Return the share of the scores' variance among good trials that each key explains (Watanabe 2023, arXiv:2304.10255).

        None are returned of fewer than ten finished trials, or of one key.
        """
        finished = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(finished) < 10 or len(self.plan.ranges) < 2:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            return dict(optuna.importance.get_param_importances(self.study, evaluator=evaluator))


class Trial:
    """A trial that this process runs.

    Args:
        study: it belongs to.
        identity: of the trial in Optuna's storage.
        lock: that keeps it to this process.
        resumed: whether it has begun before.
    """

    def __init__(self, study: Study, identity: int, lock: Lock, resumed: bool = False):
        self.study, self.identity, self.lock, self.resumed = study, identity, lock, resumed
        self.trial = trial = optuna.Trial(study.study, identity)
        self.number = trial.number
        self.folder = study.folder / "trials" / f"{self.number:04d}"
        self.starts = trial.user_attrs.get("starts", 0) + 1
        self._count(self.starts)
        self.reported = set(self._frozen().intermediate_values)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.values = {key: each.written(each.suggest(trial, key)) for key, each in study.plan.ranges.items()}

    def _frozen(self) -> FrozenTrial:
        return self.study.storage.get_trial(self.identity)

    def _count(self, starts: int) -> None:
        if starts != self.trial.user_attrs.get("starts", 0):
            self.trial.set_user_attr("starts", starts)

    def leave(self) -> None:
        """Let another process go on with the trial."""
        self._count(self.starts - 1)
        self.lock.release()

    def twin(self) -> Ended | None:
        """Return an earlier finished trial of the same values; None: there is none."""
        return next((each for each in self.study.trials() if each.values == self.values and each.score is not None), None)

    def report(self, step: int, score: float) -> None:
        """Note the score so far after an iteration, and end the trial early where it is behind.

        Args:
            step: iterations of the trial so far, over all its runs.
            score: the best so far, a mean over runs.

        Raises:
            Pruned: where it is behind.
        """
        if step not in self.reported and math.isfinite(score):
            self.reported.add(step)
            self.trial.report(score, step)
            self._count(0)
            self.check()

    def check(self) -> None:
        """End the trial early where its last report is behind.

        Raises:
            Pruned: where it is.
        """
        prune, trial = self.study.plan.prune, self._frozen()
        if prune is None or trial.last_step is None or trial.last_step >= self.study.plan.steps:
            return
        warmup = math.ceil(prune.warmup * self.study.plan.steps)
        pruner = optuna.pruners.PercentilePruner(100 * (1 - prune.quantile), prune.trials, warmup)
        if pruner.prune(self.study.study, trial):
            finished = self.study.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            others = [
                each.intermediate_values[trial.last_step] for each in finished if trial.last_step in each.intermediate_values
            ]
            limit, score = float(np.quantile(others, prune.quantile)), max(trial.intermediate_values.values())
            raise Pruned(
                f"after {trial.last_step} of {self.study.plan.steps} iterations its best score, {score:.2f}, is below "
                f"{limit:.2f}, the {prune.quantile:g} quantile of {len(others)} trials there"
            )

    def finish(self, score: float) -> None:
        """End the trial with its score."""
        self.study.study.tell(self.number, score)
        self.lock.release()

    def prune(self, reason: str) -> None:
        """End the trial early."""
        self._end(TrialState.PRUNED, reason)

    def fail(self, reason: str) -> None:
        """End the trial that failed."""
        self._end(TrialState.FAIL, reason)

    def _end(self, state: TrialState, reason: str) -> None:
        self.trial.set_user_attr("reason", reason[:LONGEST_REASON])
        self.study.study.tell(self.number, state=state)
        self.lock.release()
