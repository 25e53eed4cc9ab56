"""Long work says how far it is."""

import contextlib
import io
import logging
import re

import pytest
from conftest import compose_train, tiny
from rich.console import Console

from metarl_cli import progress
from metarl_cli.cli import train
from metarl_cli.cli.terminal import waiting
from metarl_cli.errors import UserError
from metarl_cli.evaluation.evaluator import Evaluator
from metarl_cli.interfaces import Budget
from metarl_cli.progress import listening, note, status, track
from metarl_cli.runs.build import build
from metarl_cli.runs.loop import Progress
from metarl_cli.seeding import numpy_rng


def test_what_is_counted_is_told_to_whoever_listens():
    first, second = [], []
    assert list(track("ab", 2, "letter")) == ["a", "b"]
    with listening(first.append):
        for _ in track("ab", 2, "letter"):
            with listening(second.append):
                list(track([0], 1, "number"))
    list(track("c", 1, "letter"))
    assert first == ["letter 1/2", "letter 2/2"]
    assert second == ["number 1/1"] * 2


@pytest.mark.parametrize("terminal", [True, False])
def test_work_is_shown(terminal, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.0)
    shown = io.StringIO()
    with status(Console(file=shown, force_terminal=terminal, width=80), "testing on 4 tasks"):
        list(track("abc", 3, "letter"))
    assert "testing on 4 tasks" in shown.getvalue()
    assert "letter 3/3" in shown.getvalue()


def test_lines_are_seconds_apart():
    shown = io.StringIO()
    with status(Console(file=shown), "testing"):
        list(track(range(1000), 1000, "step"))
    assert not shown.getvalue()


def test_a_long_iteration_is_shown_beside_the_numbers_before(monkeypatch):
    monkeypatch.setattr(train, "PLAIN_EVERY", 0.0)
    shown = io.StringIO()
    with train.Bar(Console(file=shown, width=200), 2, 0) as bar, listening(bar.report):
        bar.update(Progress(1, 2, 100, {}))
        list(track([0], 1, "candidate"))
        bar.update(Progress(2, 2, 200, {"eval/return_before": 1.0, "eval/return_after": 2.0}))
    first, second, third = shown.getvalue().splitlines()
    assert first.startswith("1/2  100 env steps  about ")
    assert second == "1/2  100 env steps  candidate 1/1"
    assert third == "2/2  200 env steps  return on validation tasks: before 1  after 2"


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_bar_count_and_time_left_stay_on_any_terminal(width):
    """The numbers of a long run, on lines of their own."""
    shown = Console(file=io.StringIO(), force_terminal=True, width=width)
    with train.Bar(shown, 2000, 0) as bar:
        metrics = {"eval/return_before": 46.72, "eval/return_after": 468.8, "loss/query": 0.00107}
        bar.update(Progress(1200, 2000, 25_401_230, metrics))
        bar.report("adaptation, point 1/5")
        plain = Console(file=io.StringIO(), width=width)
        plain.print(bar.progress.get_renderable())
    first, *rest = plain.file.getvalue().splitlines()
    assert re.match(r"training ━+ +1200/2000 \d:\d\d:\d\d [-\d]:[-\d]{2}:[-\d]{2} *$", first)
    assert len(first.rstrip()) <= width
    told = " ".join(" ".join(rest).split())
    assert told == (
        "25,401,230 env steps return on validation tasks: before 46.72 after 468.8 loss 0.00107 adaptation, point 1/5"
    )


@pytest.mark.parametrize(("algo", "said"), [("maml_dqn", "adaptation, point 3/3"), ("rl2", "step of the trials 1/")])
def test_testing_is_counted(algo, said):
    parts, heard = build(compose_train(f"algo={algo}", *tiny(algo))), []
    task = parts.family.sample_tasks(2, "test", numpy_rng(0, "tasks"))
    with listening(heard.append):
        Evaluator(parts.family, task, 1, 0, "test").report(parts.algorithm, Budget(2))
    assert any(text.startswith(said) for text in heard)
    assert ("from scratch, point 3/3" in heard) == (algo == "maml_dqn")


def test_candidates_are_counted():
    config = compose_train("algo=adrl", *tiny("adrl"), "algo.validation.candidates=2")
    algorithm, heard = build(config).algorithm, []
    with listening(heard.append):
        for _ in range(4):
            algorithm.train_step()
    assert heard[-1].endswith("candidates learn 2 validation tasks, step 4/4")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_sign_of_life_is_gone_before_anything_else_is_shown(terminal, monkeypatch):
    shown = io.StringIO()
    shown.isatty = lambda: terminal
    monkeypatch.setattr("sys.stderr", shown)
    with waiting("loading ..."):
        assert shown.getvalue() == ("loading ..." if terminal else "")
    assert shown.getvalue().endswith("\r\x1b[2K") == terminal


def test_a_note_begins_on_a_line_of_its_own(monkeypatch, caplog):
    shown = io.StringIO()
    shown.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setattr(logging, "raiseExceptions", False)  # of handlers that other tests left
    with waiting("loading ..."):
        note("a\x1bb")
        assert shown.getvalue().endswith("\r\x1b[2K")
    note("c")
    assert [record.getMessage() for record in caplog.records] == ["a\\x1bb", "c"]
    assert shown.getvalue().count("\x1b") == 2


@pytest.mark.parametrize("terminal", [True, False])
def test_notes_stay_beside_the_work_that_is_shown(terminal):
    shown = io.StringIO()
    with status(progress.Plain(file=shown, force_terminal=terminal, width=80), "testing"):
        note("a name: \x1b]0;title\x07")
    assert "a name: \\x1b]0;title\\x07\n" in shown.getvalue()


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (UserError("refused a\x1b[31m\nfor \udcff"), "metarl: error: refused a\\x1b[31m for \\udcff\n"),
        (ValueError("a\x1b[31m\nb"), "ValueError: a\\x1b[31m\nb\n"),
        (KeyboardInterrupt(), ""),
    ],
)
def test_errors_are_kept_as_they_are_printed(error, kept, tmp_path):
    with contextlib.suppress(type(error)), train.Terminal(Console(file=io.StringIO())) as terminal:
        terminal.log = progress.log_console(tmp_path / "console.log")
        terminal.log.print("begun")
        raise error
    text = (tmp_path / "console.log").read_text()
    assert text.endswith(kept)
    assert ("Traceback" in text) == isinstance(error, ValueError)
    assert "\x1b" not in text


def test_what_a_console_prints_is_kept_in_a_file(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=40)
    console.push_render_hook(progress.LogCopy(progress.log_console(tmp_path / "console.log")))
    console.print("a path that is longer than the terminal is wide: /a/b/c", soft_wrap=True)
    with status(console, "testing"):
        list(track("abc", 3, "letter"))
    console.print("the end")
    assert (tmp_path / "console.log").read_text().splitlines() == [
        "a path that is longer than the terminal is wide: /a/b/c",
        "the end",
    ]
    (tmp_path / "console.log").unlink()
    (tmp_path / "console.log").mkdir()
    console.print("cannot be kept")  # and does no harm
