"""One network for all tasks: each reference reaches on the buttons what it can know, and no more."""

import pytest
import torch
from conftest import compose_train, tiny
from probes import Buttons
from test_probes import parts

from metarl_cli.errors import UserError
from metarl_cli.evaluation.evaluator import Evaluator
from metarl_cli.interfaces import Budget
from metarl_cli.runs.build import build
from metarl_cli.seeding import numpy_rng, torch_rng

TRAINED = [
    "learner.gamma=0.5",
    "learner.reward_scale=1",
    "algo.tasks=32",
    "algo.steps=4",
    "algo.epsilon=[1.0,0.2]",
    "algo.epsilon_iterations=10",
    "algo.updates=10",
    "algo.update_tasks=16",
    "algo.lr=0.005",
    "algo.polyak=0.1",
]
SUPPORT = ["algo.support.rollouts=4", "algo.support.steps=4"]
OWN = {
    "oracle_dqn": [],
    "stacked_dqn": ["algo.history=1"],
    "robust_dqn": [],
    "osi_dqn": [*SUPPORT, "algo.estimator.hidden=[16]", "algo.estimator.lr=0.01"],
    "pearl_dqn": [*SUPPORT, "algo.latent.hidden=[16]", "algo.latent.size=2"],
    "dream_dqn": [*SUPPORT, "algo.explorer.hidden=[16]", "algo.explorer.tasks=64", "algo.explorer.rollouts=8"],
}
# The return of four presses before and after a support, mean over tasks: the right button from the start on is 4, from the
# second press on 3, and one button always 0.
REACHES = {"oracle_dqn": [4], "stacked_dqn": [3], "robust_dqn": [0], "osi_dqn": [0, 4], "pearl_dqn": [0, 4]} | {
    "dream_dqn": [0, 4]
}


@pytest.mark.parametrize("algo", list(OWN))
def test_what_each_knows_is_what_it_gets(algo):
    family = Buttons()
    algorithm = parts(algo, family, *TRAINED, *OWN[algo], iterations=15)
    tasks = family.sample_tasks(40, "test", numpy_rng(0, "tasks", "test"))
    found = Evaluator(family, tasks, 1, 0, "test").curve(algorithm, Budget(len(REACHES[algo]) - 1)).returns.mean(axis=(1, 2))
    for reached, known in zip(found, REACHES[algo], strict=True):
        assert reached == pytest.approx(known, abs=0.6 if known else 1.5), "as many of 40 tasks may have the one as the other"


def test_tasks_count_by_the_length_of_their_episodes():
    """Half of all transitions are of episodes that end in one step, half of ones of twenty."""
    overrides = ["algo.weighting=1", "algo.tasks=2", "algo.update_tasks=2", "env.horizon=20"]
    algorithm = build(compose_train("algo=robust_dqn", *tiny("robust_dqn"), *overrides)).algorithm
    algorithm.train_step()
    algorithm.replay.data.ended[0], algorithm.replay.data.ended[1] = True, False
    assert algorithm._shares().tolist() == [1, 20], "at most the horizon"


def test_what_a_reference_cannot_be_given_is_told():
    with pytest.raises(UserError, match="no numbers that describe a task"):
        build(compose_train("algo=oracle_dqn", "env=cartpole_v1", *(o for o in tiny("oracle_dqn") if "env." not in o)))
    algorithm, family = parts("oracle_dqn", Buttons(), *TRAINED, iterations=0), Buttons(horizon=2)
    family.knowledge = lambda task: None
    with pytest.raises(UserError, match="no numbers that describe a task"):
        next(algorithm.adapt(family.sample_tasks(2, "test", numpy_rng(0)), Budget(), torch_rng(0), family))


def test_a_task_beyond_the_training_tasks_is_told_as_the_nearest_of_them():
    algorithm, family = parts("oracle_dqn", Buttons(), *TRAINED, "algo.extrapolate=false", iterations=0), Buttons()
    task = family.named_task({"side": 5.0})
    (beyond,) = algorithm.adapt(task, Budget(), torch_rng(0))
    assert torch.equal(beyond.policy.given, algorithm.facts.amax(0, keepdim=True))
    (exact,) = parts("oracle_dqn", Buttons(), *TRAINED, iterations=0).adapt(task, Budget(), torch_rng(0))
    assert torch.equal(exact.policy.given, family.knowledge(task))


@pytest.mark.parametrize("algo", ["oracle_dqn", "oracle_pg"])
def test_a_saved_policy_that_is_given_other_numbers_is_refused(algo):
    config = compose_train(f"algo={algo}", "env=cartpole_family", *tiny(algo))
    family, algorithm, _ = build(config)
    task = family.sample_tasks(2, "test", numpy_rng(0, "tasks"))
    given = family.knowledge(task)
    saved = {"given": given, "spread": None}
    assert torch.equal(algorithm.load_policy(saved, task).given, given)
    for wrong in (given[:, 1:], given[:1]):  # of another algorithm, and of other tasks
        with pytest.raises(ValueError, match="numbers of this network"):
            algorithm.load_policy(saved | {"given": wrong}, task)
