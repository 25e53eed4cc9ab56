"""``metarl tune``: what a command line searches, the shipped ranges, and a search end to end."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml
from conftest import CONF, TINY, TINY_MAML, algorithms, compose_values, inherited, options, variants_slow
from omegaconf import open_dict

from metarl_cli.cli import compose, hydra, main, tune
from metarl_cli.cli.commands import commands
from metarl_cli.cli.ranges import check_ends, read_ranges, setting_of
from metarl_cli.config.messages import flatten
from metarl_cli.config.models import Job, TuneConfig
from metarl_cli.config.registry import validate
from metarl_cli.errors import UserError
from metarl_cli.runs.naming import leaves

SMALL = ["algo=maml_dqn", "env=navigation_2d", *TINY, *TINY_MAML]
LR = "algo.outer.lr=tag(log,interval(1e-3,1e-2))"


def searched(*words):
    """What a command line searches; composed, and not run."""
    command = commands()["tune"]
    words = hydra.open_keys(command, list(words))
    composer = compose.Composer("tune", None, command.open_groups)
    config = composer.settle(words)
    assert not composer.problems, composer.problems
    with open_dict(config):
        choices = compose.group_choices(config.pop("hydra"))
    return setting_of(validate(TuneConfig, compose.plain(config), choices), Job(choices, words))


# -- the command line


def test_ranges_of_the_algorithm_with_those_of_the_command_line():
    setting = searched("algo=maml_dqn", LR, "algo.inner.lr=0.2", "learner.network.activation=relu,silu", "trials=7")
    assert str(setting.ranges["algo.outer.lr"]) == "[0.001, 0.01] log", "another range in the place of the shipped one"
    assert "algo.inner.lr" not in setting.ranges, "a plain value takes a key out of the search"
    assert setting.ranges["learner.network.activation"].texts == ("relu", "silu")
    assert setting.fixed == ["algo=maml_dqn", "algo.inner.lr=0.2"]
    assert setting.defaults["algo.outer.lr"] == 0.002
    config, job = setting.compose({**setting.start(), "algo.outer.lr": "0.003"}, 5, CONF.parent / "x")
    assert (config.algo.config.outer.lr, config.algo.config.inner.lr, config.seed) == (0.003, 0.2, 5)
    assert job.overrides[:3] == ["algo=maml_dqn", "algo.inner.lr=0.2", "algo.outer.lr=0.003"]


def test_only_the_ranges_of_the_command_line_and_of_groups():
    setting = searched(
        "tune=none", "algo=evo_dqn", "algo/search=genetic,openai_es", LR.replace("algo.outer.lr", "learner.gamma")
    )
    assert list(setting.ranges) == ["algo/search", "learner.gamma"]
    assert setting.defaults["algo/search"] == "genetic"
    check = setting.compose({"algo/search": "openai_es", "learner.gamma": "0.002"}, 0, CONF)
    assert check[0].algo.config.search.name == "openai_es"


REFUSED = {
    ("algo=gittins", "env=bandit"): "nothing to search: tune=gittins brings no ranges; give one: 'KEY=interval(LOW,HIGH)'",
    ("tune=none",): "there is nothing to search: tune=none brings no ranges",
    ("run=outputs/x",): "study=FOLDER names the folder of all",
    ("algo.outer.lr=0.1", LR): "algo.outer.lr: is both given and searched",
    ("algo.outer.lrr=interval(0,1)",): "algo.outer.lrr=interval(0,1): no such key; did you mean algo.outer.lr?",
}


@pytest.mark.parametrize("words", REFUSED)
def test_refuses(words):
    with pytest.raises(UserError) as caught:
        searched(*words)
    assert REFUSED[words] in str(caught.value)


def test_the_ends_of_ranges_are_checked_before_the_first_trial():
    setting = searched("tune=none", "learner.gamma=interval(0.5,1.5)", "learner.network.hidden=[8],[0]")
    with pytest.raises(UserError) as caught:
        check_ends(setting)
    assert [problem.text.split(":")[0] for problem in caught.value.problems] == [
        "range of learner.gamma",
        "range of learner.network.hidden",
    ]


def test_options_must_not_change_what_trials_share():
    """An experiment names its environment and its iterations, too."""
    setting = searched("tune=none", "experiment=maml_dqn_navigation,maml_dqn_arm")
    with pytest.raises(UserError, match=r"range of experiment: .*gives other values to env\..*, which all trials must share"):
        check_ends(setting)


def test_no_sweep_of_searches(capsys):
    assert main.main(["tune", "-m", LR]) == 2
    assert "leave -m out" in capsys.readouterr().err


@pytest.mark.parametrize(("found", "said"), [(0, "needs Optuna 5 or newer: pip"), (2, "or newer; here is 2: pip")])
def test_without_optuna_it_says_how_to_install_it(found, said, monkeypatch):
    monkeypatch.setattr(tune, "_optuna", lambda: found)
    with pytest.raises(UserError) as caught:
        tune.run(None, None)
    assert said in str(caught.value)
    assert "pip install 'optuna>=5'" in str(caught.value)


# -- the ranges that are shipped


def test_every_algorithm_that_learns_has_ranges_and_nothing_else_has():
    assert options("tune") == sorted([*algorithms(), "none"])


@pytest.mark.parametrize("name", variants_slow(algorithms()))
def test_shipped_ranges_hold_the_defaults(name):
    values = compose_values("train", [f"algo={name}"])
    texts = {key: text for key, text in inherited("tune", name).items() if key != "defaults"}
    known = {**dict.fromkeys(flatten(values)), **dict(leaves(values))}
    ranges = read_ranges(texts, known, {}, set())
    assert 3 <= len(ranges) <= 8
    for key, each in ranges.items():
        assert each.has(known[key]), f"{key}: {known[key]} is not in {each}"


@pytest.mark.slow
@pytest.mark.proof
@pytest.mark.parametrize("name", algorithms())
def test_shipped_ranges_can_run_from_end_to_end(name):
    check_ends(searched(f"algo={name}", *(["env=pendulum_family"] if name == "pearl" else [])))


# -- a search


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A search of one key, made by the command, its words, and what they print when they are typed again."""
    pytest.importorskip("optuna")
    folder, shown = tmp_path_factory.mktemp("tune") / "study", io.StringIO()
    words = [*SMALL, "train.iterations=2", "tune=none", LR, "trials=2", "report_seeds=1", f"study={folder}"]
    assert main.main(["tune", *words]) == 0
    before = runs(folder)
    with contextlib.redirect_stdout(shown):
        assert main.main(["tune", *words]) == 0
    assert runs(folder) == before, "issued again it runs nothing"
    return folder, words, shown.getvalue()


def runs(folder):
    return {path.parent: path.stat().st_mtime_ns for path in folder.rglob("run.json")}


@pytest.mark.slow  # a search of several runs
def test_trials_and_the_report_are_run_folders(study):
    folder, _, _ = study
    found = {path: json.loads((path / "run.json").read_text()) for path in runs(folder)}
    places = {str(path.parent.relative_to(folder)) for path in found}
    assert {"trials/0000", "trials/0001", "report/default"} <= places
    assert {run["status"] for run in found.values()} == {"finished"}
    seeds = {(path.parent.parent.name, run["seed"]) for path, run in found.items()}
    assert seeds == {("trials", 0), ("report", 1000)}, "no seed of the search is one of the report"
    tested = {path.parent.parent.name for path in found if (path / "results" / "test.json").exists()}
    assert tested == {"report"}, "the search sees no test"


@pytest.mark.slow  # a search of several runs
def test_issued_again_it_tells_the_same(study):
    folder, _, shown = study
    assert "best of 2 trials" in " ".join(shown.split())
    assert re.search(r"^ *default +1 ", shown, re.MULTILINE), "one run"
    assert f"--config-dir {folder}/conf experiment=tuned" in shown


@pytest.mark.slow  # a search of several runs
def test_the_settings_on_file_are_those_of_the_command_line(study):
    folder, _, shown = study
    line = re.search(r"^  metarl train (algo=maml_dqn .*)$", shown, re.MULTILINE)[1]
    typed, _ = compose.compose_train([word.strip("'") for word in line.split()])
    on_file, _ = compose.compose_train(["--config-dir", str(folder / "conf"), "experiment=tuned"])
    assert on_file.model_dump() == typed.model_dump()
    assert yaml.safe_load((folder / "conf" / "experiment" / "tuned.yaml").read_text())["algo"]["outer"]["lr"] >= 1e-3


@pytest.mark.slow  # a search of several runs
def test_status_reads_a_study_and_the_comparison_is_on_file(study, capsys):
    folder, _, _ = study
    assert main.main(["status", str(folder)]) == 0
    assert re.search(r"\d runs: \d finished", capsys.readouterr().out)
    assert (folder / "study.png").read_bytes().startswith(b"\x89PNG")
    assert "default" in (folder / "report.md").read_text()


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_trials(tmp_path):
    """kill -9 of the process, wherever it stands: no trial is lost or run twice, and the scores are the same."""
    pytest.importorskip("optuna")
    words = [*SMALL, "tune=none", LR, "trials=4", "report_seeds=0"]
    assert main.main(["tune", *words, f"study={tmp_path / 'whole'}"]) == 0
    command = [sys.executable, "-m", "metarl_cli", "tune", *words, f"study={tmp_path / 'killed'}"]
    for wait in (5.0, 6.5):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            while not (tmp_path / "killed" / "trials").exists():
                time.sleep(0.05)
            time.sleep(wait - 5)
            os.kill(process.pid, signal.SIGKILL)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def trials(name):
        found = {}
        for path in sorted((tmp_path / name / "trials").rglob("run.json")):
            manifest = json.loads(path.read_text())
            found[path.parent.relative_to(tmp_path / name)] = (manifest["status"], manifest.get("score"))
        return found

    assert trials("killed") == trials("whole")
    assert len(trials("whole")) == 4
