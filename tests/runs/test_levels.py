"""The normalised score of a run between references: other runs, levels measured before, and the family's optimum."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import compose_train, compose_values, tiny
from pydantic import ValidationError

from metarl_cli.cli import test as retest
from metarl_cli.config.models import Job
from metarl_cli.config.registry import validate
from metarl_cli.envs.cartpole import CartPole
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
        shutil.copytree(run, path, ignore=shutil.ignore_patterns("test-*", "probe-*", "events*", "*.png"))
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


def found(run, robust=None, oracle=None, tasks=4, split="test", config=None):
    """The levels of the run's tasks."""
    saved = Run(run)
    _, evaluator, _ = saved.prepared(split, tasks, None, None, None)
    return levels.find_levels(config or saved.config, evaluator, robust, oracle)


def as_lists(known):
    return [level and (level.source, level.returns.tolist()) for level in known]


def expected(result, robust=5.0, oracle=25.0):
    return [(np.mean(row) - robust) / (oracle - robust) for row in result["adapted"]["task_returns"]]


@pytest.mark.parametrize("tasks", [4, 2])
def test_references_are_runs_that_were_tested_on_the_same_tasks(run, references, tasks):
    robust, oracle = references
    known = as_lists(found(run, robust, oracle, tasks))
    assert known == [("A", [5.0] * tasks), ("B", [25.0] * tasks)], "before adaptation, and after it; the first tasks"
    assert found(run) == (None, None)
    other = copied(run, robust.parent / "A1", [[9.0, 5.0, 5.0, 5.0], [0.0] * 4])
    several = as_lists(found(run, [robust, other], tasks=tasks))
    assert several == [("the mean of A, A1", [7.0, *[5.0] * (tasks - 1)]), None], "by task"


def test_the_command_prints_references_score_and_probe(run, references, capsys, pictures):
    keys = [f"run={run}", f"robust={references[0]}", f"oracle=[{references[1]}]", "hardware=cpu"]
    retest.run(validate(retest.Config, compose_values("test", keys)), Job({}, []))
    shown = capsys.readouterr().out
    for text in ("robust", "5.00", "oracle", "25.00", "normalised, before", "normalised, after"):
        assert text in shown
    assert "Normalised score: (mean - robust) / (oracle - robust), of means over tasks." in shown
    (result,) = (result for name, result in Run(run).results.items() if name.startswith("test-best-tasks4"))
    assert [score["value"] for score in result["normalised_score"]] == pytest.approx(expected(result))
    assert result["robust"] == {"source": "A", "task_returns": [5.0] * 4}

    assert retest.run(validate(retest.Config, compose_values("test", [*keys, "probe=support"])), Job({}, [])) is None
    shown = capsys.readouterr().out
    assert "another force_mag, other sign" in shown
    assert "range from the robust policy to the oracle is 20.00" in shown
    (path,) = (run / "results").glob("probe-*.json")
    saved = json.loads(path.read_text())
    assert len(saved["tasks"]["each"]) == len(saved["effects"][0]["task_returns"]) == 4
    assert path.with_suffix(".png").stat().st_size > 1000
    assert path.stem not in Run(run).results, "it is none of the curves"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"tasks": 5}, "has no result on these 5 test tasks; make it with: metarl test run=.*A split=test tasks=5"),
        ({"split": "validation"}, "on these 4 validation tasks; make it with: metarl test run=.*A split=validation tasks=4"),
        ({"config": ["tasks_seed=1"]}, None),
        ({"config": ["env.horizon=10"]}, "it was trained on another environment: env.horizon=20, not 10"),
    ],
)
def test_a_reference_of_other_tasks_is_refused_and_says_how_to_make_them(run, references, asked, said):
    asked = {**asked, "config": compose_train(*SMALL, *asked.get("config", []))}
    if said is None:  # the tasks are those of the saved run, and so are known
        assert found(run, references[0], **asked).robust is not None
        asked, said = {**asked, "tasks": 5}, "its own are those of tasks_seed=0, not of 1"
    with pytest.raises(UserError, match=f"^robust=.*{said}"):
        found(run, references[0], **asked)


def test_a_reference_of_an_earlier_version_is_tested_again(run, tmp_path):
    old = json.loads((run / "results" / "test.json").read_text())["tasks"]
    del old["each"]
    path = copied(run, tmp_path / "old", [[5.0] * 4, [5.0] * 4], tasks=old)
    with pytest.raises(UserError, match="make it with: metarl test"):
        found(run, path)


def test_a_damaged_reference_is_refused(run, references):
    path = references[0] / "results" / "test.json"
    path.write_text(path.read_text().replace("5.0", "6.0", 1))
    with pytest.raises(UserError, match="checksum"):
        found(run, references[0])
    with pytest.raises(ValidationError, match="other tasks than it names"):
        copied(run, references[1], [[5.0] * 4, [5.0] * 4], tasks={"hash": "a", "each": ["b"]})
    none = {key: [] for key in ("iqm", "steps", "gradient_steps", "env_steps", "task_returns")}
    with pytest.raises(ValidationError, match="no points"):
        copied(run, references[1], [], adapted=none)
    with pytest.raises(UserError, match="not a run folder"):
        found(run, "/nowhere/at/all")


def test_the_result_of_the_latest_weights_counts(run, references):
    path = references[0] / "results" / "test.json"
    result = json.loads(path.read_text())
    older = {**result, "env_steps": result["env_steps"] - 1, "episodes": result["episodes"] + 1}
    older["adapted"] = {**result["adapted"], "task_returns": [[3.0] * 4, [0.0] * 4]}
    write_json(path.with_name("test-best-tasks4.json"), older, Result)
    assert as_lists(found(run, references[0])) == [("A", [5.0] * 4), None], "though the older one has more episodes"


def test_levels_that_were_measured_are_found_by_task(run, references, shipped):
    path = levels.write_levels(*references)
    assert path.parent == shipped
    known = "measured before, 1 run"
    assert as_lists(found(run)) == [(known, [5.0] * 4), (known, [25.0] * 4)]
    assert as_lists(found(run, tasks=2)) == [(known, [5.0] * 2), (known, [25.0] * 2)], "of any of the tasks"
    assert found(run, tasks=5) == (None, None), "one of them was not measured"
    assert found(run, split="ood").robust, "all results of the runs are in it"
    assert found(run, config=compose_train(*SMALL, "env.horizon=10")) == (None, None)
    assert as_lists(found(run, references[1])) == [("B", [0.0] * 4), (known, [25.0] * 4)], "a run comes before them"
    path.write_text(path.read_text().replace("25.0", "26.0", 1))
    with pytest.raises(UserError, match="checksum"):
        found(run)
    with pytest.raises(UserError, match="no run"):
        levels.write_levels(None, [])


def test_the_optimum_comes_before_a_measured_oracle(run, references, shipped, monkeypatch):
    levels.write_levels(*references)
    monkeypatch.setattr(CartPole, "optimum", lambda self, task: torch.full((4,), 20.0))
    assert as_lists(found(run)) == [("measured before, 1 run", [5.0] * 4), None]
    assert found(run, oracle=references[1]).oracle.source == "B", "but not before a run"


@pytest.mark.slow
def test_levels_of_two_environments_are_not_written_together(run, references, shipped, tmp_path):
    other = trained(tmp_path / "other", "env.horizon=10")
    with pytest.raises(UserError, match=r"another environment than .*A: env.horizon=10, not 20"):
        levels.write_levels(references[0], other)


def test_references_are_no_part_of_what_a_run_is(references):
    keys = [f"robust={references[0]}", f"oracle=[{references[1]}]"]
    plain, more = compose_train(*SMALL), compose_train(*SMALL, *keys)
    assert default_name(plain, Job({}, SMALL)) == default_name(more, Job({}, [*SMALL, *keys]))


@pytest.mark.slow
def test_training_takes_references(references, shipped, tmp_path):
    keys = [f"robust={references[0]}", f"oracle=[{references[1]}]"]
    with pytest.raises(UserError, match="is not a run folder"):
        trained(tmp_path / "run", *keys, f"oracle={tmp_path}/nowhere")
    assert not (tmp_path / "run" / "last.pt").exists(), "it is told before the training"
    result = Run(trained(tmp_path / "run", *keys)).results["test"]
    assert [score["value"] for score in result["normalised_score"]] == pytest.approx(expected(result))
    assert str(tmp_path) not in (tmp_path / "run" / "config.yaml").read_text()
    logged = {}
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        logged |= json.loads(line)
    last = result["normalised_score"][-1]["value"]
    tags = ("normalised_score", "normalised_score_step_1", "return_robust", "return_oracle")
    assert [logged[f"test/{tag}"] for tag in tags] == [last, last, 5.0, 25.0]
    assert logged["test/normalised_score_before"] == logged["test/normalised_score_step_0"]
