"""What ``metarl tune`` shows of its trials, and of what came of them."""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import optuna
from rich import box
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from metarl_cli.cli.ranges import Setting, key_of, value_of
from metarl_cli.cli.report import drawn
from metarl_cli.cli.status import duration
from metarl_cli.cli.train import Bar, Terminal
from metarl_cli.comparison.report import write
from metarl_cli.config.base import result_values
from metarl_cli.config.models import SEEDS, TuneConfig
from metarl_cli.evaluation.pictures import png
from metarl_cli.evaluation.statistics import number
from metarl_cli.progress import PLAIN_WIDTH, Plain, listening, wide_console
from metarl_cli.runs.files import write_whole
from metarl_cli.runs.folder import RunFolder
from metarl_cli.runs.loop import Listener, Progress
from metarl_cli.runs.naming import default_name, file_name, leaves
from metarl_cli.tuning.results import compared, picture, write_settings
from metarl_cli.tuning.search import Contender, Screen, Watch, compare, search
from metarl_cli.tuning.study import Ended, Plan, Study, Trial

SHOWN = 5  # of the best trials, in the table
DEFAULT = "default"  # the name of the settings that the search began with


def open_study(config: TuneConfig, setting: Setting) -> Study:
    """Open the study of a search, in the folder that its configuration names.

    Raises:
        UserError: if the folder cannot be used, or holds something else.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    held = {key: value for key, value in leaves(result_values(setting.base)) if key not in setting.ranges}
    how = {
        "seeds": config.seeds,
        "sampler": config.sampler,
        **dict(leaves({"prune": config.prune and config.prune.model_dump()})),
    }
    values = json.loads(json.dumps({**held, **how}))
    content = json.dumps([values, {key: str(each) for key, each in setting.ranges.items()}], sort_keys=True)
    stem = default_name(setting.base, setting.job._replace(overrides=[])).rsplit("-", 2)[0]
    name = file_name(f"{stem}-{hashlib.sha256(content.encode()).hexdigest()[:8]}")
    steps = setting.base.train.iterations * config.seeds
    command = shlex.join(["metarl", "tune", *setting.flags, *setting.fixed])
    plan = Plan(setting.ranges, setting.defaults, values, config.sampler, config.prune, steps, command)
    return Study(Path(config.study or Path(config.outputs, "tune", name)), plan)


def conduct(config: TuneConfig, setting: Setting, study: Study) -> float:
    """Run the trials, compare the best with the defaults, and show it all; returns its score on validation tasks.

    Raises:
        UserError: if no trial finished.
    """
    console = wide_console()
    display = Display(console, study, config.trials)
    seeds = range(config.seed, config.seed + config.seeds)
    fresh = range(config.seed + SEEDS, config.seed + SEEDS + config.report_seeds)
    console.print(Text(f"study: {study.folder}"), soft_wrap=True)
    for key, each in setting.ranges.items():
        console.print(Text(f"  {key}: {each} (default {setting.defaults[key]})"), soft_wrap=True)
    best = search(study, config.trials, seeds, setting.compose, display)
    _tell_trials(console, study, best)
    contenders = [Contender(DEFAULT, {}), Contender(f"trial-{best.number:04d}", best.values)]
    if setting.changes_nothing(best.values):
        console.print(Text("the best trial is that of the defaults"))
        contenders.pop()
    failures = list(compare(study, contenders, fresh, setting.compose, display))
    if fresh:
        _tell_report(console, study, [each.name for each in contenders], failures)
    _tell_settings(console, study, setting, best)
    assert best.score is not None
    return best.score


class Quiet(Terminal):
    """A run of the search: what it prints goes into its ``console.log`` alone, and how far it is on the screen.

    Args:
        watch: is notified of it.
        screen: the console of the command.
    """

    def __init__(self, watch: Watch, screen: Plain):
        super().__init__(Plain(quiet=True, width=PLAIN_WIDTH))
        self.watch, self.screen = watch, screen

    @override
    def started(self, folder: RunFolder, iteration: int, iterations: int) -> None:
        super().started(folder, iteration, iterations)
        self.watch.started(folder, iteration, iterations)
        self.below = Bar(self.screen, iterations, iteration, label=self.watch.label)

    @contextmanager
    @override
    def training(self) -> Iterator[None]:
        def report(text: str) -> None:
            self.bar.report(text)
            self.below.report(text)

        with self.bar, self.below, listening(report):
            yield

    @override
    def interrupted(self, folder: RunFolder) -> None:
        super().interrupted(folder)
        self.screen.print(Text("saved; the same command goes on"))

    @override
    def progress(self, progress: Progress) -> None:
        super().progress(progress)
        self.below.update(progress)
        self.watch.progress(progress)


class Display(Screen):
    """A line for each trial of the study that this process runs.

    Args:
        console: where to.
        study: the study.
        trials: how many it shall have.
    """

    def __init__(self, console: Plain, study: Study, trials: int):
        self.console, self.study, self.trials = console, study, trials
        self.spent, self.ran, self.last_text = 0.0, 0, ""

    @override
    def began(self, trial: Trial) -> None:
        self.since = time.monotonic()
        if trial.resumed:
            self.console.print(Text(f"trial {trial.number} was stopped before its end: going on with it"))

    @override
    def ended(self, trial: Ended) -> None:
        spent = time.monotonic() - self.since
        self.spent, self.ran = self.spent + spent, self.ran + 1
        best, left = self.study.best(), self.trials - len(self.study.trials())
        came = trial.state if trial.score is None else f"score {number(trial.score)}"
        parts = [f"trial {trial.number} of {self.trials}: {came}, {duration(spent)}"]
        parts += [f"best {number(best.score or 0.0)} (trial {best.number})"] if best else []
        parts += [f"about {duration(self.spent / self.ran * left / max(self.study.running(), 1))} left"] if left > 0 else []
        self.console.print(Text("; ".join(parts)), soft_wrap=True)
        self.console.print(Text(f"  {_values(trial.values)}"), soft_wrap=True)
        if trial.reason:
            self.console.print(Text(f"  {trial.reason}"), soft_wrap=True)

    @override
    def waiting(self, text: str) -> None:
        if text != self.last_text:
            self.console.print(Text(text))
            self.last_text = text

    @contextmanager
    @override
    def listening(self, watch: Watch) -> Iterator[Listener]:
        with Quiet(watch, self.console) as terminal:
            yield terminal


def _values(values: Mapping[str, str]) -> str:
    return " ".join(f"{key.removeprefix('algo.')}={value}" for key, value in values.items())


def _tell_trials(console: Plain, study: Study, best: Ended) -> None:
    """Print the best trials, how many ended in which way, and which keys mattered."""
    trials = study.trials()
    table = Table(
        title=f"best of {len(trials)} trial{'s' * (len(trials) > 1)}, by the score on validation tasks",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for name in ("trial", "score", *(key.removeprefix("algo.") for key in study.plan.ranges)):
        table.add_column(name, justify="right", overflow="fold")
    scored = sorted((-each.score, each.number, each) for each in trials if each.score is not None)
    for loss, place, each in scored[:SHOWN]:
        table.add_row(*map(Text, (str(place), number(-loss), *(each.values[key] for key in study.plan.ranges))))
    console.print(table)
    counts = {state: sum(each.state == state for each in trials) for state in ("finished", "stopped early", "failed")}
    console.print(Text(", ".join(f"{num} {state}" for state, num in counts.items() if num)))
    if shares := study.importances():
        text = ", ".join(f"{key.removeprefix('algo.')} {share:.0%}" for key, share in shares.items())
        console.print(Text(f"what the scores of good trials depend on: {text}"), soft_wrap=True)
    for key, range_ in study.plan.ranges.items():
        if range_.at_end(best.values[key]):
            console.print(Text(f"{key}={best.values[key]} lies at the end of its range: a wider one may hold a better value"))
    path = study.folder / "study.png"
    write_whole(path, png(picture(trials, study.plan.ranges, best, study.folder.name)))
    console.print(Text(f"written: {path}"), soft_wrap=True)


def _tell_report(console: Plain, study: Study, names: list[str], failures: list[str]) -> None:
    """Print the table of the runs on fresh seeds, and write it beside them."""
    report = compared({name: study.folder / "report" / name for name in names}, DEFAULT)
    for table in report.tables:
        for part in drawn(table, console.width):
            console.print(part)
        for note in table.notes:
            console.print(Text(note, "table.caption"))
    for text in (*report.notes, *failures):
        console.print(Text(text), soft_wrap=True)
    written = write(
        report, study.folder, ["md", "csv"], f"{study.folder.name}: the best trial beside the defaults, on fresh seeds"
    )
    console.print(Text(f"written: {', '.join(map(str, written))}"), soft_wrap=True)


def _tell_settings(console: Plain, study: Study, setting: Setting, best: Ended) -> None:
    """Write the best settings as an experiment, and print how they are used."""
    words = setting.overrides(best.values)
    groups = setting.job.choices
    folder, name = study.folder / "conf", "tuned"
    plain = {key_of(word): value_of(word) for word in words if key_of(word) not in groups and word[0] not in "+~"}
    if all(word[0] not in "+~" and "@" not in word.partition("=")[0] for word in words):
        about = f"Trial {best.number} of {study.folder.name}: {best.score:.4g} on the validation tasks."
        write_settings(folder / "experiment" / f"{name}.yaml", groups.get("experiment"), words, list(groups), plain, about)
        flags = [flag for flag in setting.flags if "--config-dir" not in setting.flags]
        console.print(Text("use the best trial's settings:"))
        console.print(
            Text(f"  {shlex.join(['metarl', 'train', *flags, '--config-dir', str(folder), f'experiment={name}'])}"),
            soft_wrap=True,
        )
        console.print(Text("or, the same:"))
    else:
        console.print(Text("use the best trial's settings:"))
    console.print(Text(f"  {shlex.join(['metarl', 'train', *setting.flags, *words])}"), soft_wrap=True)
