"""The mean over seeds while they train: which runs are a group, how far each has got, who writes, what it may cost."""

import fcntl
import json
import os
import shlex
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_report import copied, trained  # noqa: F401 a fixture

import metarl_cli as metarl
from metarl_cli.comparison import board
from metarl_cli.comparison.board import Current
from metarl_cli.comparison.saved import read_log
from metarl_cli.evaluation.statistics import over_seeds
from metarl_cli.runs.folder import RunFolder
from metarl_cli.runs.loop import Progress

GROUP = "0123abcd"


def seed(trained, folder, number, returns, group=GROUP, start=100):  # noqa: F811
    """A run of a group with these returns at its evaluations."""
    path = copied(trained, folder / f"maml_dqn-env-seed{number}-{number:08x}", number, group=group)
    rows = [
        {"step": start * (k + 1), "eval/return_after_mean": value, "eval/return_after": value + 1}
        for k, value in enumerate(returns)
    ]
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return RunFolder(path)


def scalars(folder, tag):
    events = EventAccumulator(str(folder)).Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


def test_each_point_is_the_mean_of_the_seeds_that_have_got_to_it(trained, tmp_path):  # noqa: F811
    seed(trained, tmp_path, 0, [-3.0, -2.0, -1.0])
    second = seed(trained, tmp_path, 1, [-5.0, -4.0], start=120)  # it has more steps by then, but is not as far
    seed(trained, tmp_path, 2, [5.0] * 3, "ffffffff")  # of another configuration
    again = copied(trained, tmp_path / "z-again", 1, group=GROUP)  # of the same seed
    (again / "metrics.jsonl").write_text('{"step": 100, "eval/return_after_mean": 50.0, "eval/return_after": 50.0}\n')
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.json").write_text("{")
    Current().finished(second, {})
    (folder,) = (tmp_path / "seeds").iterdir()
    assert folder.name == f"maml_dqn-env-{GROUP}"
    means = [over_seeds([-3.0, -5.0]), over_seeds([-2.0, -4.0]), over_seeds([-1.0])]
    for name, place in (("", 0), ("_low", 1), ("_high", 2)):
        truth = {step: each[place] for step, each in zip((100, 200, 300), means, strict=True) if place == 0 or step < 300}
        assert scalars(folder, f"seeds/return_after{name}") == pytest.approx(truth)
        moved = {step: value + 1 for step, value in truth.items()}
        assert scalars(folder, f"seeds/return_after_iqm{name}") == pytest.approx(moved)
    assert scalars(folder, "seeds/runs") == {100: 2, 200: 2, 300: 1}


def test_what_is_written_anew_takes_the_place_of_the_former(trained, tmp_path):  # noqa: F811
    first, second = (seed(trained, tmp_path, number, [-3.0]) for number in range(2))
    current = Current()
    current.finished(first, {})
    (folder,) = (tmp_path / "seeds").iterdir()
    before = sorted(folder.glob("events*"))
    with (second.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 200, "eval/return_after_mean": 7.0, "eval/return_after": 7.0}\n')
    current.finished(second, {})
    after = sorted(folder.glob("events*"))
    assert len(before) == len(after) == 1
    assert before[0].name < after[0].name, "TensorBoard reads in this order"
    assert scalars(folder, "seeds/return_after") == {100: -3, 200: 7}


def test_a_run_that_was_finished_before_changes_nothing(trained, tmp_path):  # noqa: F811
    """As in a sweep that is issued again; a group that is not there, or is behind, is written."""
    first, second = (seed(trained, tmp_path, number, [-3.0]) for number in range(2))
    time.sleep(0.02)  # times of files are so coarse
    Current().finished(first, None)
    (folder,) = (tmp_path / "seeds").iterdir()
    (before,) = folder.glob("events*")
    time.sleep(0.02)
    for run in (first, second):
        Current().finished(run, None)
    assert list(folder.glob("events*")) == [before]
    seed(trained, tmp_path, 2, [-6.0])
    Current().finished(second, None)
    assert scalars(folder, "seeds/return_after") == {100: -4}


@pytest.mark.parametrize("why", ["alone", "off", "held", "too soon"])
def test_nothing_is_written(why, trained, tmp_path, monkeypatch):  # noqa: F811
    run = seed(trained, tmp_path, 0, [-3.0])
    if why != "alone":
        seed(trained, tmp_path, 1, [-4.0])
    if why != "too soon":
        monkeypatch.setattr(board, "EVERY", 0.0)
        monkeypatch.setattr(board, "SHARE", 1e9)
    place = tmp_path / "seeds" / f"maml_dqn-env-{GROUP}"
    place.mkdir(parents=True)
    current = Current(why != "off")
    with (place / ".lock").open("w") as lock:
        if why == "held":
            fcntl.flock(lock, fcntl.LOCK_EX)
        current.started(run, 0, 4)
        current.progress(Progress(2, 4, 100, {"eval/return_after_mean": -3.0}))
        assert not list(place.glob("events*"))
    if why == "held":
        current.progress(Progress(3, 4, 100, {"loss/td": 1.0}))
        assert not list(place.glob("events*")), "it has not validated"
        current.progress(Progress(4, 4, 100, {"eval/return_after_mean": -3.0}))
        assert list(place.glob("events*"))


@pytest.mark.slow
def test_runs_of_the_library_are_a_group_too(trained, tmp_path):  # noqa: F811
    run = RunFolder(trained)
    assert run.manifest()["group"], "trained by this version"
    copied(trained, tmp_path / "maml_dqn-env-seed0-00000000")
    words = [word for word in shlex.split(run.manifest()["command"])[2:] if not word.startswith("run=")]
    made = metarl.train(*words, "seed=1", f"outputs={tmp_path}", "aggregate=true")
    assert RunFolder(made.path).manifest()["group"] == run.manifest()["group"]
    (folder,) = (tmp_path / "seeds").iterdir()
    assert set(scalars(folder, "seeds/runs").values()) == {2}
    assert not (made.path / "seeds").exists()


VALIDATED = Progress(2, 4, 100, {"eval/return_after_mean": -3.0})


def test_a_neighbour_that_cannot_be_read_is_left_out(trained, tmp_path, monkeypatch):  # noqa: F811
    first = seed(trained, tmp_path, 0, [-3.0])
    seed(trained, tmp_path, 1, [-5.0])
    (hostile := seed(trained, tmp_path, 2, [9.0]).path / "metrics.jsonl").unlink()
    hostile.symlink_to("/dev/zero")
    seed(trained, tmp_path, 3, [9.0])
    closed, exists = tmp_path / f"maml_dqn-env-seed3-{3:08x}" / "run.json", Path.exists

    def refused(path):
        if path == closed:
            raise PermissionError(13, "Permission denied")
        return exists(path)

    monkeypatch.setattr(Path, "exists", refused)
    Current().finished(first, {})
    (folder,) = (tmp_path / "seeds").iterdir()
    assert scalars(folder, "seeds/return_after") == {100: -4}
    assert scalars(folder, "seeds/runs") == {100: 2}


@pytest.mark.parametrize("error", [MemoryError, ValueError, OSError])
def test_no_run_fails_by_it(error, trained, tmp_path, monkeypatch):  # noqa: F811
    run = seed(trained, tmp_path, 0, [-3.0])
    seed(trained, tmp_path, 1, [-4.0])

    def fails(path):
        raise error

    monkeypatch.setattr(board, "read_log", fails)
    monkeypatch.setattr(board, "EVERY", 0.0)
    current = Current()
    current.started(run, 0, 4)
    current.progress(VALIDATED)
    current.finished(run, {})


def test_runs_in_training_share_the_work(trained, tmp_path):  # noqa: F811
    first, second = (seed(trained, tmp_path, number, [-3.0]) for number in range(2))
    Current().finished(first, {})
    (folder,) = (tmp_path / "seeds").iterdir()
    (written,) = folder.glob("events*")

    def events_after(age):
        os.utime(written, times=(time.time() - age,) * 2)
        current = Current()
        current.started(second, 0, 4)
        current.next = 0.0
        current.progress(VALIDATED)
        return list(folder.glob("events*"))

    assert events_after(board.EVERY / 2) == [written], "another run has just written it"
    assert events_after(-2 * board.EVERY) != [written], "the clock of another machine is wrong"


def test_a_slow_disk_is_asked_seldom(trained, tmp_path, monkeypatch):  # noqa: F811
    run, calls = seed(trained, tmp_path, 0, [-3.0]), list[float]()
    seed(trained, tmp_path, 1, [-4.0])
    monkeypatch.setattr(board, "EVERY", 0.0)

    def slow(*_):
        calls.append(time.monotonic())
        time.sleep(0.1)

    monkeypatch.setattr(board, "_write_group", slow)
    current = Current()
    current.started(run, 0, 4)
    current.progress(VALIDATED)
    current.progress(VALIDATED)
    assert len(calls) == 1
    assert current.next - calls[0] >= 0.1 / board.SHARE


def test_a_log_is_read_in_one_pass(tmp_path):
    """Twenty thousand evaluations with one clock, ahead of them all."""
    rows = [{"step": 0, "time/training_seconds": 7.0, "train/iteration": 1}]
    rows += [{"step": k, "eval/return_after_mean": float(k)} for k in range(20_000)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    began = time.process_time()
    curve, step, seconds = read_log(tmp_path / "metrics.jsonl")
    assert time.process_time() - began < 5, "it was a minute"
    assert set(curve["time/training_seconds"]) == {7.0}
    assert (len(curve["step"]), step, seconds) == (20_000, 19_999, 7.0)
