"""The normalised score of a run between references: other runs, levels measured before, and the family's optimum."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import compose_train, compose_values, tiny
from pydantic import ValidationError

from metarl_cli.cli import test as retest
from metarl_cli.config.models import Job
from metarl_cli.config.registry import validate
from metarl_cli.errors import UserError
from metarl_cli.runs import levels
from metarl_cli.runs.files import write_json
from metarl_cli.runs.loop import Listener, train
from metarl_cli.runs.naming import default_name
from metarl_cli.runs.results import Result
from metarl_cli.runs.run import Run

SMALL = ["algo=maml_dqn", *tiny("maml_dqn"), "train.iterations=1", "train.eval_every=1", "test.steps=1"]


def trained(path, *overrides):
    train(compose_train(f"run={path}", *SMALL, *overrides), Job({}, []), Listener())
    return path


def copied(run, path, returns, split="test", **changes):
    """A run whose result has returned ``returns [P, M]`` in place of its own."""
    if not path.exists():
        shutil.copytree(run, path, ignore=shutil.ignore_patterns("test-*", "probe-*"))
    result = json.loads((run / "results" / f"{split}.json").read_text())
    adapted = {**result["adapted"], "task_returns": returns}
    write_json(path / "results" / f"{split}.json", {**result, "adapted": adapted, **changes}, Result)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("levels") / "run")


@pytest.fixture
def references(run, tmp_path):
    """A run that always returns 5 before adaptation, and one that always returns 25 after it."""
    return copied(run, tmp_path / "A", [[5.0] * 4, [0.0] * 4]), copied(run, tmp_path / "B", [[0.0] * 4, [25.0] * 4])


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    monkeypatch.setattr(levels, "SHIPPED", tmp_path / "levels")
    return tmp_path / "levels"


def expected(result, robust=5.0, oracle=25.0):
    return [(np.mean(row) - robust) / (oracle - robust) for row in result["adapted"]["task_returns"]]


@pytest.mark.parametrize("tasks", [4, 2])
def test_references_are_runs_that_were_tested_on_the_same_tasks(run, references, tasks):
    robust, oracle = references
    found = Run(run).test(tasks=tasks, robust=robust, oracle=oracle)
    assert [score["value"] for score in found["normalised_score"]] == pytest.approx(expected(found))
    assert found["robust"] == {"source": "A", "task_returns": [5.0] * tasks}, "before adaptation, on the first ones"
    assert found["oracle"] == {"source": "B", "task_returns": [25.0] * tasks}, "after adaptation"
    assert Run(run).test(tasks=tasks)["normalised_score"] is None, "without references there is none"


def test_several_seeds_are_averaged_by_task(run, references, tmp_path):
    other = copied(run, tmp_path / "A1", [[9.0, 5.0, 5.0, 5.0], [0.0] * 4])
    found = Run(run).test(robust=[references[0], other], oracle=references[1])
    assert found["robust"] == {"source": "the mean of A, A1", "task_returns": [7.0, 5.0, 5.0, 5.0]}


def test_the_command_prints_references_and_score(run, references, capsys):
    values = compose_values("test", [f"run={run}", f"robust={references[0]}", f"oracle=[{references[1]}]", "hardware=cpu"])
    retest.run(validate(retest.Config, values), Job({}, []))
    shown = capsys.readouterr().out
    for text in (
        "robust (trained)",
        "5.00",
        "oracle (trained)",
        "25.00",
        "normalised score, before",
        "normalised score, after",
    ):
        assert text in shown
    assert "Normalised score: (mean - robust) / (oracle - robust), of means over tasks." in shown


def test_a_probe_prints_shares_of_the_range_and_is_no_test_result(run, references, capsys):
    keys = [f"run={run}", f"robust={references[0]}", f"oracle={references[1]}", "probe=support", "hardware=cpu"]
    assert retest.run(validate(retest.Config, compose_values("test", keys)), Job({}, [])) is None
    shown = capsys.readouterr().out
    assert "another force_mag, other sign" in shown
    assert "range from the robust policy to the oracle is 20.00" in shown
    (path,) = (run / "results").glob("probe-*.json")
    saved = json.loads(path.read_text())
    assert len(saved["tasks"]["each"]) == len(saved["effects"][0]["task_returns"]) == 4
    assert path.with_suffix(".png").stat().st_size > 1000
    assert path.stem not in Run(run).results


def test_without_a_range_it_says_so(run, references, capsys):
    found = Run(run).test(robust=references[1], oracle=references[1])
    assert found["normalised_score"] is None or found["robust"]["task_returns"] != found["oracle"]["task_returns"]
    values = compose_values("test", [f"run={run}", f"robust={references[0]}", f"oracle={references[0]}", "hardware=cpu"])
    retest.run(validate(retest.Config, values), Job({}, []))
    assert "The oracle's mean is not above the robust policy's" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"tasks": 5}, "has no result on these 5 test tasks; make it with: metarl test run=.*A split=test tasks=5"),
        ({"split": "validation"}, "on these 3 validation tasks; make it with: metarl test run=.*A split=validation tasks=3"),
    ],
)
def test_a_reference_without_these_tasks_says_how_to_make_them(run, references, asked, said):
    with pytest.raises(UserError, match=f"^robust=.*{said}"):
        Run(run).test(robust=references[0], **asked)


def test_a_reference_of_an_earlier_version_is_tested_again(run, tmp_path):
    old = json.loads((run / "results" / "test.json").read_text())["tasks"]
    del old["each"]
    path = copied(run, tmp_path / "old", [[5.0] * 4, [5.0] * 4], tasks=old)
    with pytest.raises(UserError, match="make it with: metarl test"):
        Run(run).test(robust=path)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("tasks_seed=1", "oracle=.*: its own are those of tasks_seed=1, not of 0"),
        ("env.horizon=10", "oracle=.*it was trained on another environment: env.horizon=10, not 20"),
    ],
)
def test_a_reference_of_other_tasks_is_refused(run, override, said, tmp_path):
    other = trained(tmp_path / "other", override)
    with pytest.raises(UserError, match=said):
        Run(run).test(oracle=other)


def test_a_damaged_reference_is_refused(run, references):
    path = references[0] / "results" / "test.json"
    path.write_text(path.read_text().replace("5.0", "6.0", 1))
    with pytest.raises(UserError, match="checksum"):
        Run(run).test(robust=references[0])
    with pytest.raises(ValidationError, match="other tasks than it names"):
        copied(run, references[1], [[5.0] * 4, [5.0] * 4], tasks={"hash": "a", "each": ["b"]})


def test_levels_that_were_measured_are_found_by_task(run, references, shipped):
    path = levels.write_levels(*references)
    assert path.parent == shipped
    found = Run(run).test()
    assert [score["value"] for score in found["normalised_score"]] == pytest.approx(expected(found))
    assert found["robust"]["source"] == "measured before, 1 run"
    assert Run(run).test(tasks=2)["normalised_score"], "of any of the tasks"
    assert Run(run).test(tasks=5)["normalised_score"] is None, "one of them was not measured"
    assert Run(run).test(split="ood")["normalised_score"], "all results of the runs are in it"
    named = Run(run).test(robust=references[1], oracle=references[1])
    assert (named["robust"]["source"], named["robust"]["task_returns"]) == ("B", [0.0] * 4), "a run comes before them"
    path.write_text(path.read_text().replace("25.0", "26.0", 1))
    with pytest.raises(UserError, match="checksum"):
        Run(run).test()


def test_levels_of_two_environments_are_not_written_together(run, references, shipped, tmp_path):
    other = trained(tmp_path / "other", "env.horizon=10")
    with pytest.raises(UserError, match=r"another environment than .*A: env.horizon=10, not 20"):
        levels.write_levels(references[0], other)
    with pytest.raises(UserError, match="no run"):
        levels.write_levels(None, [])


def test_training_takes_references_and_is_the_same_run(references, shipped, tmp_path):
    keys = [f"robust={references[0]}", f"oracle=[{references[1]}]"]
    plain, more = compose_train(*SMALL), compose_train(*SMALL, *keys)
    assert default_name(plain, Job({}, SMALL)) == default_name(more, Job({}, [*SMALL, *keys]))
    found = Run(trained(tmp_path / "run", *keys)).results["test"]
    assert [score["value"] for score in found["normalised_score"]] == pytest.approx(expected(found))
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][-2]
    both = {**logged, **json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])}
    last = found["normalised_score"][-1]["value"]
    assert (both["test/normalised_score"], both["test/return_robust"], both["test/return_oracle"]) == (last, 5.0, 25.0)
    assert both["test/normalised_score_before"] == both["test/normalised_score_step_0"]
    with pytest.raises(UserError, match="cannot read"):
        trained(tmp_path / "none", "robust=/nowhere/at/all")


def test_the_optimum_is_the_oracle_where_none_is_named(tmp_path, shipped):
    path = trained(tmp_path / "run", "env=navigation_2d_continuous")
    worse = copied(path, tmp_path / "worse", [[-90.0] * 4] * 2)
    levels.write_levels(worse, worse)
    found = Run(path).test()
    assert found["oracle"] is None, "what was measured is not better than what is known"
    assert [s["value"] for s in found["normalised_score"]] == pytest.approx(expected(found, -90, np.mean(found["optimum"])))
