"""Cross-validation over tasks: folds share nothing, each task is tested once, and every algorithm learns from its own folds."""

import shutil

import numpy as np
import pytest
import torch
from conftest import algorithms, compose_train, fitting, tiny

import metarl_cli as metarl
from metarl_cli.config.registry import ConfigError
from metarl_cli.envs.folds import Folds, folded
from metarl_cli.errors import UserError
from metarl_cli.evaluation.held_out import held_out_tasks
from metarl_cli.evaluation.statistics import over_seeds
from metarl_cli.runs.build import build
from metarl_cli.seeding import numpy_rng

FOLDS = ["train.folds=3", "train.pool=12", "eval.tasks=4", "test.tasks=4"]


def rows(task):
    return {tuple(row) for row in torch.cat([value.reshape(len(value), -1) for value in task.values()], 1).tolist()}


def family(env="cartpole_family", fold=0, num=3, pool=12, seed=0):
    return folded(build(compose_train(f"env={env}")).family, Folds(num, fold, pool, seed))


@pytest.mark.parametrize("env", ["cartpole_family", "tabular_mdp", "classic_mix", "scrambled_cartpole"])
def test_every_task_of_the_pool_is_tested_in_one_fold(env):
    tested = [rows(held_out_tasks(family(env, fold), "test", 4, 0)) for fold in range(3)]
    assert len(set.union(*tested)) == 12
    for fold in range(3):
        ours = family(env, fold)
        train = rows(ours.sample_tasks(8, "train", numpy_rng(0, "tasks", "train")))
        validation = rows(held_out_tasks(ours, "validation", 4, 0))
        assert validation == tested[(fold + 1) % 3]
        assert train == tested[(fold + 2) % 3], "training draws from what is left, each task before any again"


def test_the_pool_depends_on_its_seed_alone():
    one, same, other = (rows(held_out_tasks(family(seed=seed), "test", 4, train)) for seed, train in ((0, 1), (0, 2), (1, 1)))
    assert one == same
    assert not one & other


@pytest.mark.parametrize("env", ["tabular_mdp", "cartpole_family"])
def test_named_tasks_stay_those_of_the_family(env):
    ours = family(env)
    name = next(iter(ours.parameters))
    assert rows(ours.named_task({name: 5.0})) == rows(ours.whole.named_task({name: 5.0}))


def test_messages_name_the_module_of_the_family():
    ours = family()
    assert ours.make(ours.sample_tasks(1, "train", numpy_rng(0)), 1, torch.Generator()).name == "env.module=cartpole"


def test_tasks_outside_the_ranges_stay_those_of_the_family():
    whole = build(compose_train("env=cartpole_family", *tiny("learned_loss_dqn"))).family
    drawn = [each.sample_tasks(5, "ood", numpy_rng(0, "tasks")) for each in (whole, family())]
    assert rows(drawn[0]) == rows(drawn[1])


@pytest.mark.parametrize("algo", algorithms())
def test_every_algorithm_trains_on_the_folds_that_are_left(algo):
    config = compose_train(f"algo={algo}", f"env={fitting(algo)}", *tiny(algo), *FOLDS)
    ours = build(config)
    left = rows(ours.family.sample_tasks(4, "train", numpy_rng(0, "tasks")))
    assert rows(ours.algorithm.task) <= left


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["train.folds=3", "train.pool=12", "eval.tasks=5", "test.tasks=4"], "eval.tasks=5: a fold has 4 tasks"),
        (["train.folds=3", "train.fold=3"], "fold must be below folds"),
        (["env=gridworld", "train.folds=3", "train.pool=90", "eval.tasks=4", "test.tasks=4"], "of these tasks are different"),
    ],
)
def test_folds_that_cannot_be_are_refused(overrides, text):
    with pytest.raises(ConfigError, match=text):
        build(compose_train(*tiny("learned_loss_dqn"), *overrides))


def test_more_held_out_tasks_than_a_fold_has_are_refused():
    with pytest.raises(UserError, match="a fold has 4 tasks, and 5 test tasks are asked for"):
        held_out_tasks(family(), "test", 5, 0)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folds")
    for algo in ("robust_dqn", "maml_dqn"):
        for fold in range(3):
            metarl.train(f"algo={algo}", "env=navigation_2d", *tiny(algo), *FOLDS, f"train.fold={fold}", f"outputs={folder}")
    return folder


@pytest.mark.slow
def test_a_report_has_one_table_of_all_folds(outputs):
    (table,) = metarl.report(outputs)["tables"]
    assert "4 held-out tasks (3 folds of 12 tasks)" in table["title"]
    assert any(note.startswith("A fold is a run: ") for note in table["notes"])
    assert [(row["algorithm"], row["runs"]) for row in table["rows"]] == [("maml_dqn", 3), ("robust_dqn", 3)]
    returns = {
        algo: [metarl.load(path).test()["adapted"]["task_returns"][-1] for path in sorted(outputs.glob(f"{algo}*"))]
        for algo in ("maml_dqn", "robust_dqn")
    }
    optimum = np.mean([metarl.load(path).test()["optimum"] for path in outputs.glob("maml_dqn*")])
    robust = np.mean(returns["robust_dqn"])
    maml = table["rows"][0]
    score = (maml["after"]["value"] - robust) / (optimum - robust)
    assert maml["normalised score"]["value"] == pytest.approx(score, rel=1e-3), (
        "between the optimum and the robust policy of all folds"
    )
    assert maml["after"]["value"] == pytest.approx(np.mean(returns["maml_dqn"]), rel=1e-4)
    shares = [np.mean((np.array(a) > b) + (np.array(a) == b) / 2) for a, b in zip(*returns.values(), strict=True)]
    means = [np.mean(each) for each in returns["maml_dqn"]]
    assert (maml["after"]["low"], maml["after"]["high"]) == pytest.approx(over_seeds(means)[1:], rel=1e-4), "over folds"
    with pytest.raises(UserError, match="intervals=stratified resamples"):
        metarl.report(outputs, intervals="stratified")
    assert maml["better"]["value"] == pytest.approx(np.mean(shares)), "on the tasks of the same fold"


@pytest.mark.slow
def test_seeds_of_a_fold_are_one_value_of_the_interval(outputs, tmp_path):
    """They share their tasks: as rows of their own they would make the interval too narrow."""
    shutil.copytree(outputs, tmp_path / "all")
    for fold in range(3):
        words = ["algo=robust_dqn", "env=navigation_2d", *tiny("robust_dqn"), *FOLDS, f"train.fold={fold}", "seed=1"]
        metarl.train(*words, f"outputs={tmp_path / 'all'}")
    (row,) = [row for row in metarl.report(tmp_path / "all")["tables"][0]["rows"] if row["algorithm"] == "robust_dqn"]
    found = [run for path in (tmp_path / "all").glob("*/run.json") if "robust" in str(run := metarl.load(path.parent))]
    returns = [(run.config.train.fold, np.mean(run.test()["adapted"]["task_returns"][-1])) for run in found]
    folds = [np.mean([value for number, value in returns if number == fold]) for fold in range(3)]
    assert row["runs"] == 6
    assert tuple(row["after"].values()) == pytest.approx(tuple(over_seeds(folds)), rel=1e-4)
