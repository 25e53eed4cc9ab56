"""How runs stand: what is running, silent, failed and done, and how long it takes."""

import fcntl
import json
import os
import time

import pytest
from test_report import copied, trained  # noqa: F401 a fixture

from metarl_cli.cli.main import main
from metarl_cli.comparison import standing
from metarl_cli.comparison.standing import standings


def log(folder, *lines):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def old(folder):
    """As if nobody had written for a day."""
    for path in folder.iterdir():
        os.utime(path, (time.time() - 86400,) * 2)


@pytest.fixture
def sweep(trained, tmp_path):  # noqa: F811
    """A run of each kind."""
    copied(trained, tmp_path / "done")
    copied(trained, tmp_path / "failed", 1, status="failed", error="training diverged", score=None)
    copied(trained, tmp_path / "killed", 2, status="running", score=None)
    copied(trained, tmp_path / "running", 3, status="running", score=None)
    for name in ("killed", "running"):
        log(
            tmp_path / name,
            {"step": 5, "time/training_seconds": 30.0, "train/iteration": 1},
            {"step": 5, "eval/score": -3.0},
            {"step": 9, "time/training_seconds": 90.0, "train/iteration": 3},
            {"step": 9, "eval/score": -4.0},
        )
    old(tmp_path / "killed")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.json").write_text("{")
    return tmp_path


def test_a_file_that_is_gone_before_it_is_looked_at_is_no_error(tmp_path, monkeypatch):
    """A temporary file of a run on another machine, say."""
    gone = tmp_path / ".last.pt.1.tmp"
    gone.touch()
    kept = tmp_path / "metrics.jsonl"
    kept.touch()
    monkeypatch.setattr(type(tmp_path), "is_file", lambda path: bool(path.unlink() if path == gone else 1) or True)
    assert standing._alive(tmp_path)
    kept.unlink()
    assert not standing._alive(tmp_path)


def test_each_run_with_its_status_progress_and_time_left(sweep):
    found = {each.path.name: each for each in standings([sweep])}
    statuses = {name: each.status for name, each in found.items()}
    assert statuses == {
        "running": "running", "killed": "silent", "failed": "failed", "done": "finished", "torn": "unreadable",
    }  # fmt: skip
    running = found["running"]
    assert (running.iteration, running.iterations, running.seconds, running.best) == (3, 4, 90.0, -3.0)
    assert running.left == 30
    assert found["done"].left is None
    assert found["done"].score is not None
    assert found["failed"].error == "training diverged"


@pytest.mark.skipif(not standing.LOCKS.exists(), reason="this system does not list its locks")
def test_a_run_that_is_held_is_alive_however_long_it_is_silent(sweep):
    held = (sweep / "killed" / ".lock").open("w")
    fcntl.flock(held, fcntl.LOCK_EX)
    old(sweep / "killed")
    assert {each.path.name: each.status for each in standings([sweep])}["killed"] == "running"
    held.close()
    assert {each.path.name: each.status for each in standings([sweep])}["killed"] == "silent"


def test_the_command_shows_them_and_their_errors(sweep, capsys):
    assert main(["status", str(sweep)]) == 0
    out = capsys.readouterr().out
    assert "5 runs: 1 running, 1 silent, 1 failed, 1 finished, 1 unreadable; those that train end in about 30 s" in out
    assert f"{sweep / 'failed'}: training diverged" in out
    assert "cannot read" in out
    assert main(["status", str(sweep), "watch=true"]) == 0, "no terminal: once"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["watch=5"], "watch=5: metarl status takes folders and watch=true"),
        (["--watch"], "--watch: metarl status takes folders"),
        (["nowhere"], "nowhere: no such file or folder"),
        (["."], "there is no run in ."),
    ],
)
def test_bad_words_are_one_line(words, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["status", *words]) == 2
    assert line in capsys.readouterr().err
