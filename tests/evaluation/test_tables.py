"""What the printed tables, the saved results and the metrics say of known returns."""

import json

import numpy as np
import pytest
from conftest import TINY_REFERENCE, compose_train, compose_values, options, short, tiny

from metarl_cli.cli import test as retest
from metarl_cli.cli import train as trains
from metarl_cli.config.models import Job
from metarl_cli.config.registry import validate
from metarl_cli.evaluation.curves import Level, Levels, metrics, reference_metrics
from metarl_cli.evaluation.evaluator import Evaluator
from metarl_cli.evaluation.report import ORACLE, ROBUST, as_json, figure, notes, table
from metarl_cli.evaluation.statistics import iqm, worst_tenth
from metarl_cli.interfaces import Budget, num_tasks
from metarl_cli.progress import wide_console
from metarl_cli.runs.build import build
from metarl_cli.runs.folder import RunFolder
from metarl_cli.seeding import numpy_rng


def text(shown, width=120):
    console = wide_console()
    console.width = width
    with console.capture() as captured:
        console.print(shown)
    return captured.get()


def report(env, algo="maml_dqn", tasks=12, steps=2, episodes=2, *overrides):
    small = (
        TINY_REFERENCE if algo in ("oracle", "thompson") else [o for o in tiny(algo) if env != "classic_mix" or "env." not in o]
    )
    parts = build(compose_train(f"env={env}", f"algo={algo}", *small, *overrides))
    task = parts.family.sample_tasks(tasks, "test", numpy_rng(0, "tasks"))
    budget = Budget(steps if parts.algorithm.adapts_by in ("gradient", "inference", "demonstrations") else 0)
    return Evaluator(parts.family, task, episodes, 0, "test").report(parts.algorithm, budget), task


def test_every_aggregate_is_over_the_means_of_the_tasks():
    found, task = report("cartpole_family")
    saved = json.loads(json.dumps(as_json(found, task, {})))["adapted"]
    scalars = metrics(found.curve, "test")
    for k, point in enumerate(found.curve.points):
        means = found.curve.returns[k].mean(0)
        assert point.value == saved["iqm"][k]["value"] == scalars[f"test/return_step_{k}"] == pytest.approx(float(iqm(means)))
        assert saved["task_returns"][k] == pytest.approx(means.tolist())
        assert saved["beside"][k]["mean"] == pytest.approx(means.mean())
        assert saved["beside"][k]["worst_tenth"] == pytest.approx(float(worst_tenth(means)))
        assert saved["beside"][k]["solved"] == np.mean(means >= 0.95 * 20), "of 20 steps"
    assert scalars["test/return_after_mean"] == saved["beside"][-1]["mean"]
    assert scalars["test/return_after_worst_tenth"] == saved["beside"][-1]["worst_tenth"]
    assert scalars["test/solved_after"] == saved["beside"][-1]["solved"]
    assert found.curve.score == found.curve.summaries[-1].mean, "the IQM does not see the tasks that fail"
    assert saved["over"] == "tasks"


@pytest.mark.parametrize(
    ("env", "algo", "tasks", "heading"),
    [
        ("cartpole_family", "maml_dqn", 3, ["return: IQM", "[95 % over tasks]", "mean", "worst", "tenth", "solved"]),
        ("navigation_2d", "maml_dqn", 3, ["return: IQM", "[95 % over tasks]", "mean", "worst", "tenth"]),
        ("gridworld", "rl2", 3, ["return: mean", "[95 % over tasks]", "worst", "tenth"]),
        ("navigation_2d", "maml_dqn", 1, ["return: mean", "[95 % over episodes]"]),
    ],
)
def test_a_table_says_what_its_intervals_are_over(env, algo, tasks, heading):
    found, _ = report(env, algo, tasks)
    shown = text(table(found, "title"))
    assert all(part in shown for part in heading)
    known = {"return: IQM", "return: mean", "[95 % over tasks]", "[95 % over episodes]", "worst", "solved"}
    assert not any(part in shown for part in known - set(heading))


def test_a_table_says_that_steps_are_reused_and_beyond_training():
    more, _ = report("cartpole_family", steps=3)
    assert notes(more) == [
        "Every gradient step learns from the same env steps.",
        "It was trained for 1 step of adaptation; further ones are beyond its training.",
    ]
    shown = " ".join(text(table(more, "title")).split())  # a note folds at the table's width
    assert all(line in shown for line in notes(more))
    one, _ = report("cartpole_family", steps=1)
    assert notes(one) == []
    fresh, _ = report("cartpole_family", "maml_dqn", 3, 2, 1, "algo.inner.support.fresh=true", "algo.inner.steps=2")
    assert notes(fresh) == [], "each step collects its own"
    tuned, _ = report("cartpole_family", "pretrain_dqn", steps=3)
    assert notes(tuned) == ["Every gradient step learns from the same env steps."]


def test_numbers_are_whole_at_80_columns():
    found, _ = report("cartpole_family")
    lines = text(table(found, "12 held-out tasks, 2 episodes each"), 80).splitlines()
    assert max(map(len, lines)) <= 80
    for point, summary in zip(found.curve.points, found.curve.summaries, strict=True):
        assert any(str(point) in line and f"{summary.worst_tenth:.2f}" in line for line in lines)


@pytest.mark.parametrize("name", options("env"))
def test_families_say_from_which_return_a_task_is_solved(name):
    """For each task, within what an episode of it can have; or they say nothing."""
    family = short(name, native=False)
    task = family.sample_tasks(3, "train", numpy_rng(0, "tasks"))
    solved, best = family.solved(task), family.optimum(task)
    if solved is None:
        return
    assert solved.shape == (num_tasks(task),)
    assert bool(solved.isfinite().all())
    if best is not None:
        assert bool((solved <= best).all())


@pytest.mark.parametrize(
    ("name", "solved"),
    [("cartpole_family", 475), ("cartpole_v1", 475), ("mountain_car_v0", -110), ("acrobot_family", -100), ("key_to_door", 2)],
)
def test_solved_is_what_gymnasium_says(name, solved):
    family = short(name, native=False)
    assert family.solved(family.sample_tasks(2, "test", numpy_rng(0, "tasks"))).tolist() == pytest.approx([solved] * 2)


def test_a_mix_asks_its_families():
    mix = short("classic_mix", native=False)
    task = mix.sample_tasks(4, "test", numpy_rng(0, "tasks"))
    assert mix.solved(task).tolist() == pytest.approx([475, -110, 475, -110])
    assert mix.solved({name: value[::2] for name, value in task.items()}).tolist() == pytest.approx([475, 475])
    short_mix = short("classic_mix")
    assert short_mix.solved(task) is None, "no car can fail within 20 steps"


@pytest.mark.parametrize("algo", ["oracle", "thompson", "rl2"])
def test_regret_and_optimum_are_in_one_unit(algo):
    """Per episode: the optimum less the return."""
    found, task = report("bandit", algo, 40, 0, 2)
    saved = as_json(found, task, {})
    per_episode = found.total.mean / found.total.episodes
    assert found.regret == pytest.approx(np.mean(saved["optimum"]) - per_episode, abs=1e-6)
    scalars = reference_metrics(found, "test")
    assert scalars["test/return_optimum"] == pytest.approx(np.mean(saved["optimum"]))
    assert scalars["test/regret"] == saved["regret"] == found.regret
    assert scalars["test/regret_after"] == pytest.approx(scalars["test/return_optimum"] - found.curve.summaries[-1].mean)
    assert "regret per episode (optimum minus return)" in text(table(found, "t"))


def test_regret_after_gradient_steps():
    found, _ = report("navigation_2d_continuous", "maml_dqn", 5, 1, 1, "learner=dqn")
    assert found.regret == pytest.approx(float((found.optimum.returns[0, 0] - found.curve.returns[-1, 0]).mean()))


@pytest.mark.parametrize(("env", "shared"), [pytest.param("gridworld", True, marks=pytest.mark.slow), ("bandit", False)])
def test_tables_over_shared_tasks_say_so(env, shared, tmp_path, capsys):
    overrides = [f"run={tmp_path / 'run'}", "algo=rl2", f"env={env}", *[o for o in tiny("rl2") if not o.startswith("env.")]]
    trains.run(compose_train(*overrides), Job({"algo": "rl2", "env": env}, []))
    assert ("4 held-out tasks, training tasks among them, 2 trials each" in capsys.readouterr().out) == shared
    result = json.loads((RunFolder(tmp_path / "run").results / "test.json").read_text())
    assert result["tasks"]["training_tasks_among_them"] == shared
    values = compose_values("test", [f"run={tmp_path / 'run'}", "hardware=cpu"])
    retest.run(validate(retest.Config, values), Job({}, []))
    assert ("test tasks, training tasks among them" in capsys.readouterr().out) == shared


def test_the_references_and_the_normalised_score_are_in_the_table_the_metrics_and_the_result():
    """Between a robust policy at the return before adaptation, and an oracle at the return after it, the score is 0 and 1."""
    parts = build(compose_train("env=cartpole_family", "algo=maml_dqn", *tiny("maml_dqn")))
    task = parts.family.sample_tasks(12, "test", numpy_rng(0, "tasks"))
    evaluator = Evaluator(parts.family, task, 2, 0, "test")
    before, after = (evaluator.curve(parts.algorithm, Budget(1)).returns[k].mean(0) for k in (0, 1))
    low, high = (before, after) if before.mean() < after.mean() else (after, before)
    first = [0.0, 1.0] if low is before else [1.0, 0.0]
    found = evaluator.report(parts.algorithm, Budget(1), levels=Levels(Level(low, "run A"), Level(high, "run B")))
    assert [score.value for score in found.normalised] == pytest.approx(first)
    scalars = reference_metrics(found, "test")
    assert scalars["test/normalised_score"] == pytest.approx(first[1])
    assert scalars["test/return_robust"] == pytest.approx(float(iqm(low))), "as the other returns of the table"
    saved = json.loads(json.dumps(as_json(found, task, {})))
    assert saved["normalised_score"][0]["value"] == pytest.approx(first[0])
    assert saved["oracle"] == {"source": "run B", "task_returns": high.tolist()}
    lines = text(table(found, "12 held-out tasks, 2 episodes each"), 80).splitlines()
    assert max(map(len, lines)) <= 80
    for point in (found.robust.points[0], found.oracle.points[0], *found.normalised):
        assert any(str(point) in line for line in lines)
    drawn = figure(found, "title")
    legend = [each.get_text() for each in drawn.legends[0].get_texts()]
    assert legend == ["adapted", "from scratch", "random policy", ROBUST, ORACLE]
    none = evaluator.report(parts.algorithm, Budget(1), levels=Levels(Level(high, "run A"), Level(low, "run B")))
    assert none.normalised is None
    assert "The oracle's mean is not above the robust policy's: there is no normalised score." in notes(none)
