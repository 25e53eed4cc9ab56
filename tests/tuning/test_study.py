"""Studies, with a training of known scores: what is proposed, kept, gone on with, ended early, and refused."""

import contextlib
import gc
import json
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("optuna")

from metarl_cli.config.models import Job, Pruning
from metarl_cli.errors import DiskFault, UserError
from metarl_cli.runs.loop import Progress
from metarl_cli.tuning import search as searching
from metarl_cli.tuning.ranges import Options, numbers
from metarl_cli.tuning.search import Contender, Screen, compare, search
from metarl_cli.tuning.study import MOST_STARTS, Plan, Study

RANGES = {"lr": numbers(1e-4, 1e-1, True, 0.01), "kind": Options(("good", "bad"), ("good", "bad"))}
DEFAULTS = {"lr": 0.05, "kind": "bad"}
ITERATIONS = 4


def plan(ranges=None, defaults=None, values=None, prune=None, sampler="tpe", seeds=1):
    return Plan(
        ranges or RANGES,
        defaults or DEFAULTS,
        values or {"seed": 0, "x": 1.5},
        sampler,
        prune,
        ITERATIONS * seeds,
        "metarl tune",
    )


class Quiet(Screen):
    """Shows nothing, and tells a run's watch of it."""

    def __init__(self):
        self.lines = []

    def waiting(self, text):
        self.lines.append(text)

    @contextlib.contextmanager
    def listening(self, watch):
        yield SimpleNamespace(watch=watch)


class Training:
    """Stands for runs: a score of their values and seed, reached in even steps; and what was run."""

    def __init__(self, fails=lambda values, seed: None, score=None):
        self.fails, self.ran = fails, []
        self.score = score or (lambda values, seed: -((np.log10(float(values["lr"])) + 3) ** 2) - (values["kind"] == "bad"))

    def compose(self, values, seed, folder):
        return SimpleNamespace(
            values=dict(values), seed=seed, folder=folder, train=SimpleNamespace(iterations=ITERATIONS)
        ), Job({}, [])

    def __call__(self, config, job, listener, tested=True):
        self.ran.append((config.folder.name, config.seed))
        if error := self.fails(config.values, config.seed):
            raise error
        score = float(self.score(config.values, config.seed))
        for iteration in range(1, ITERATIONS + 1):
            value = score - (ITERATIONS - iteration)
            listener.watch.progress(Progress(iteration, ITERATIONS, iteration, {"eval/score": value, "test/score": 1e9}))
        return config.folder, score


@pytest.fixture
def training(monkeypatch):
    def make(*arguments, **options):
        made = Training(*arguments, **options)
        monkeypatch.setattr(searching, "train", made)
        return made

    return make


def run(folder, training, trials, seeds=(0,), **options):
    study = Study(folder, plan(seeds=len(seeds), **options))
    return study, search(study, trials, seeds, training.compose, Quiet())


def values_of(study):
    return [trial.values for trial in study.trials()]


def test_finds_the_best_and_begins_with_the_defaults(tmp_path, training):
    study, best = run(tmp_path / "s", training(), 25)
    assert values_of(study)[0] == {"lr": "0.05", "kind": "bad"}
    assert best.values["kind"] == "good"
    assert abs(np.log10(float(best.values["lr"])) + 3) < 0.2
    assert best.score == max(trial.score for trial in study.trials())
    assert study.importances().keys() == RANGES.keys()


def test_a_default_outside_its_range_is_no_trial(tmp_path, training):
    study, _ = run(tmp_path / "s", training(), 1, defaults={"lr": 1.0, "kind": "bad"})
    assert float(values_of(study)[0]["lr"]) <= 0.1


def test_the_same_command_again_runs_nothing_and_more_trials_run_only_those(tmp_path, training):
    fake = training()
    study, best = run(tmp_path / "s", fake, 4)
    again, same = run(tmp_path / "s", fake, 4)
    assert (same, values_of(again)) == (best, values_of(study))
    assert len(fake.ran) == 4
    run(tmp_path / "s", fake, 6)
    assert [name for name, _ in fake.ran] == ["0000", "0001", "0002", "0003", "0004", "0005"]


class Killed(BaseException):
    """The process ends where it stands."""


def test_killed_anywhere_it_goes_on_as_if_it_had_not_been(tmp_path, training):
    whole, _ = run(tmp_path / "whole", training(), 12)
    places = iter([Killed, None, None, Killed, Killed, None, Killed])
    killed = training(fails=lambda values, seed: next(places, None))
    for _ in range(5):
        with contextlib.suppress(Killed):
            study, _ = run(tmp_path / "killed", killed, 12)
            break
        gc.collect()  # lets go of the locks, as the end of a process does
    assert study.trials() == whole.trials()
    finished = [name for name, _ in killed.ran]
    assert len(finished) == 12 + 4, "each killed trial is begun once more, and no other one"


def test_a_trial_is_not_lost_by_whoever_dies_between_its_keys(tmp_path, training):
    study = Study(tmp_path / "s", plan())
    study.study.ask()  # and no word of its values
    again, _ = run(tmp_path / "s", training(), 3)
    assert [trial.number for trial in again.trials()] == [0, 1, 2]
    assert all(trial.values.keys() == RANGES.keys() for trial in again.trials())


def test_a_second_process_takes_other_trials_and_waits_for_the_first(tmp_path, training, monkeypatch):
    monkeypatch.setattr(searching, "WAIT", 0.01)
    fake, screen = training(), Quiet()
    first = Study(tmp_path / "s", plan())
    held = first.take(3)
    done = threading.Event()

    def work():
        search(Study(tmp_path / "s", plan()), 3, [0], fake.compose, screen)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not screen.lines:
        time.sleep(0.01)
    assert screen.lines[0] == "waiting for 1 trial of other processes"
    assert not done.is_set()
    held.finish(1.0)
    thread.join(10)
    assert done.is_set()
    assert [name for name, _ in fake.ran] == ["0001", "0002"]
    assert first.best().score == 1.0


def test_a_killed_process_lets_go_of_its_trial(tmp_path):
    study = Study(tmp_path / "s", plan())
    study.study.ask()
    code = (
        "import sys; from pathlib import Path; from metarl_cli.tuning.locks import Lock\n"
        "lock = Lock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "s" / "locks" / "trial-0000")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        assert study.take(1) is None
        assert study.running() == 1
        holder.kill()
    trial = study.take(1)
    assert (trial.number, trial.resumed) == (0, True)


def test_a_trial_that_kills_its_process_again_and_again_has_failed(tmp_path, training):
    fake = training(fails=lambda values, seed: Killed())
    for _ in range(MOST_STARTS):
        with pytest.raises(Killed):
            run(tmp_path / "s", fake, 2)
        gc.collect()
    fake.fails = lambda values, seed: None
    study, _ = run(tmp_path / "s", fake, 2)
    assert [trial.state for trial in study.trials()] == ["failed", "finished"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DiskFault("cannot write: no space")])
def test_what_stops_the_process_stops_no_trial(tmp_path, training, error):
    fake = training(fails=lambda values, seed: error)
    for _ in range(MOST_STARTS + 1):  # an interrupted trial is as good as new
        with pytest.raises(type(error)):
            run(tmp_path / "s", fake, 2)
    fake.fails = lambda values, seed: None
    study, _ = run(tmp_path / "s", fake, 2)
    assert [trial.state for trial in study.trials()] == ["finished", "finished"]


def test_failures_are_kept_with_their_reason_and_stop_nothing(tmp_path, training):
    errors = {"bad": UserError("training diverged; try lower learning rates"), "good": ValueError("a bug")}
    numbers_ = iter(range(100))
    fake = training(fails=lambda values, seed: errors[values["kind"]] if next(numbers_) < 2 else None)
    study, best = run(tmp_path / "s", fake, 5)
    reasons = [trial.reason for trial in study.trials()]
    assert reasons[0] == "training diverged; try lower learning rates"
    assert reasons[1] in ("ValueError: a bug", "training diverged; try lower learning rates")
    assert [trial.state for trial in study.trials()] == ["failed"] * 2 + ["finished"] * 3
    assert best.number >= 2


def test_where_all_fail_so_does_the_command(tmp_path, training):
    fake = training(fails=lambda values, seed: UserError("training diverged"))
    with pytest.raises(UserError, match=r"none of the 3 trials in .* finished; the first: training diverged") as caught:
        run(tmp_path / "s", fake, 3)
    assert caught.value.exit_code == 1


def test_a_score_that_is_no_number_is_a_failure(tmp_path, training):
    fake = training(score=lambda values, seed: np.nan if values["kind"] == "bad" else 1.0)
    study, best = run(tmp_path / "s", fake, 6)
    assert {trial.state for trial in study.trials() if trial.values["kind"] == "bad"} == {"failed"}
    assert best.score == 1.0


def test_the_score_is_the_mean_over_seeds(tmp_path, training):
    fake = training(score=lambda values, seed: seed)
    study, best = run(tmp_path / "s", fake, 1, seeds=(3, 4, 8))
    assert best.score == 5.0
    assert [seed for _, seed in fake.ran] == [3, 4, 8]
    reports = study.study.get_trials()[0].intermediate_values
    assert reports[4] == 3.0  # the end of the first run
    assert reports[5] == (3 + (4 - 3)) / 2  # the first iteration of the second
    assert reports[12] == 5.0


def test_a_trial_behind_the_median_ends_early_also_between_seeds(tmp_path, training):
    prune = Pruning(quantile=0.5, trials=2, warmup=0.5)
    order = iter([3.0, 3.0, 1.0, 1.0, -9.0, 5.0, 5.0])  # of two runs a trial, but for the third
    fake = training(score=lambda values, seed: next(order))
    study, best = run(tmp_path / "s", fake, 4, seeds=(0, 1), prune=prune, sampler="random")
    assert [trial.state for trial in study.trials()] == ["finished", "finished", "stopped early", "finished"]
    assert study.trials()[2].reason == (
        "after 4 of 8 iterations its best score, -9.00, is below 2.00, the 0.5 quantile of 2 trials there"
    )
    assert fake.ran[4:6] == [("0002", 0), ("0003", 0)], "its second seed was not run"
    assert best.number == 3


def test_nothing_ends_early_without_pruning(tmp_path, training):
    study, _ = run(tmp_path / "s", training(), 12, prune=None)
    assert {trial.state for trial in study.trials()} == {"finished"}


def test_the_same_values_are_not_run_twice(tmp_path, training):
    ranges = {"kind": RANGES["kind"]}
    fake = training(score=lambda values, seed: len(values["kind"]))
    study, _ = run(tmp_path / "s", fake, 6, ranges=ranges, defaults={"kind": "bad"})
    assert len(study.trials()) == 6
    assert len(fake.ran) <= 2


def test_contenders_run_on_every_fresh_seed_and_failures_are_told(tmp_path, training):
    fake = training(
        fails=lambda values, seed: UserError("diverged") if (values, seed) == ({"lr": "1"}, 11) else None, score=lambda *_: 0
    )
    study = Study(tmp_path / "s", plan())
    contenders = [Contender("default", {}), Contender("trial-0003", {"lr": "1"})]
    failures = list(compare(study, contenders, [10, 11], fake.compose, Quiet()))
    assert fake.ran == [("default", 10), ("trial-0003", 10), ("default", 11), ("trial-0003", 11)]
    assert failures == ["trial-0003, seed 11: diverged"]


def test_another_search_needs_another_folder(tmp_path, training):
    run(tmp_path / "s", training(), 1)
    other = {"lr": numbers(1e-3, 1e-1, True, 0.01), "kind": RANGES["kind"]}
    with pytest.raises(UserError) as caught:
        Study(tmp_path / "s", plan(ranges=other, values={"seed": 0, "x": 2.5}))
    assert "range of lr is [0.0001, 0.1] log in the study, [0.001, 0.1] log here" in str(caught.value)
    assert "x is 1.5 in the study, 2.5 here" in str(caught.value)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(UserError, match="not a study"):
        Study(tmp_path / "other", plan())


def test_a_folder_with_a_link_is_refused(tmp_path, training):
    run(tmp_path / "s", training(), 1)
    (tmp_path / "s" / "trials").symlink_to(tmp_path)
    with pytest.raises(UserError, match="link"):
        Study(tmp_path / "s", plan())


def changed(line, **changes):
    return json.dumps(json.loads(line) | changes)


def operations(text, code):
    return [place for place, line in enumerate(text) if json.loads(line)["op_code"] == code]


NEW = {"op_code": 4, "worker_id": "x", "study_id": 0, "datetime_start": None}  # a trial
HOSTILE = {
    "an unknown operation": lambda lines: [*lines, '{"op_code": 77, "worker_id": "x"}'],
    "a missing key": lambda lines: [*lines, '{"op_code": 5, "worker_id": "x"}'],
    "code in place of a distribution": lambda lines: [
        changed(line, distribution='{"name": "os.system", "attributes": {"command": "touch pwned"}}')
        if '"op_code": 5' in line
        else line
        for line in lines
    ],
    "a value out of range": lambda lines: [
        changed(line, param_value_internal=1e9) if '"lr"' in line and '"op_code": 5' in line else line for line in lines
    ],
    "another key": lambda lines: [line.replace('"param_name": "lr"', '"param_name": "hydra.run.dir"') for line in lines],
    "a score of infinity": lambda lines: [
        changed(line, values=[float("inf")]) if json.loads(line).get("state") == 1 else line for line in lines
    ],
    "a score of text": lambda lines: [
        changed(line, values=["x"]) if json.loads(line).get("state") == 1 else line for line in lines
    ],
    "reports at a text": lambda lines: [
        changed(line, step="x") if json.loads(line)["op_code"] == 7 else line for line in lines
    ],
    "a reason that is none": lambda lines: [*lines, json.dumps(NEW | {"user_attrs": {"reason": 3}})],
    "values that were asked for": lambda lines: [
        *lines,
        json.dumps(NEW | {"state": 4, "system_attrs": {"fixed_params": {"kind": "evil"}}}),
    ],
    "a direction": lambda lines: [
        changed(line, directions=[1]) if json.loads(line)["op_code"] == 0 else line for line in lines
    ],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_strangers_journal_is_refused_in_one_line(tmp_path, training, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "s", training(), 2)
    path = tmp_path / "s" / "journal.jsonl"
    path.write_text("\n".join([*HOSTILE[name](path.read_text().splitlines()), ""]))
    with pytest.raises(UserError, match="refused"):
        Study(tmp_path / "s", plan())
    assert [each.name for each in tmp_path.iterdir()] == ["s"]


def test_a_changed_description_is_refused(tmp_path, training):
    run(tmp_path / "s", training(), 1)
    path = tmp_path / "s" / "study.json"
    path.write_text(path.read_text().replace("1.5", "2.5"))
    with pytest.raises(UserError, match="changed by hand"):
        Study(tmp_path / "s", plan())
