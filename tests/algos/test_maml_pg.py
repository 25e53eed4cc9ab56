"""MAML over policy gradients: the meta-gradient, what ends the outer steps, and that a bandit's arm is learned."""

import copy

import pytest
import torch
from conftest import compose_train

from metarl_cli.algos.on_policy import rows
from metarl_cli.interfaces import Budget
from metarl_cli.runs.build import build
from metarl_cli.seeding import numpy_rng, torch_rng

SMALL = [
    *("algo.tasks=4", "algo.query=3", "algo.inner.support.rollouts=3", "algo.inner.support.steps=8", "env.horizon=12"),
    *("learner.network.hidden=[8,8]", "hardware=cpu", "train.iterations=20"),
]


def algorithm(*overrides, algo="maml_pg", env="navigation_2d_continuous"):
    return build(compose_train(f"algo={algo}", f"env={env}", *SMALL, *overrides)).algorithm


@pytest.mark.parametrize("algo", ["maml_pg", "promp", "anil_pg"])
@pytest.mark.parametrize("env", ["navigation_2d_continuous", "cartpole_family"])
def test_the_meta_gradient_is_the_mean_of_those_of_tasks_alone(algo, env, float64):
    found = algorithm("algo.inner.steps=2", algo=algo, env=env)
    batches, _ = found.collect()
    loss, divergence, gradients = found._gradient(found.learned, batches)
    parts = [found._gradient(found.learned, [rows(b, slice(i, i + 1)) for b in batches]) for i in range(4)]
    assert torch.allclose(loss, sum(part[0] for part in parts) / 4, atol=1e-9)
    assert float(divergence.detach()) == pytest.approx(0, abs=1e-9), "the policies that acted have not moved"
    for i, gradient in enumerate(gradients):
        assert torch.allclose(gradient, sum(part[2][i] for part in parts) / 4, atol=1e-9)
    found.outer = found.outer.model_copy(update={"chunk": 3})
    assert found.update(batches)[0] == pytest.approx(float(loss.detach()), abs=1e-9), "in chunks"


def test_the_meta_gradient_by_differences(float64):
    """On the same experience, through the inner step: the derivative of second order."""
    found = algorithm("learner.network.hidden=[4]")
    batches, _ = found.collect()
    gradients = dict(zip(found.learned["init"], found._gradient(found.learned, batches)[2], strict=False))
    for name, place in (("head.weight", (0, 1)), ("hidden.0.weight", (2, 0)), ("log_std", (1,))):
        weight, values = found.learned["init"][name], []
        for move in (1e-6, -2e-6):
            with torch.no_grad():
                weight[place] += move
            values.append(float(found.loss(found.learned, batches)[0].detach()))
        with torch.no_grad():
            weight[place] += 1e-6
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(float(gradients[name][place]), rel=1e-4, abs=1e-7)


def test_second_order_differs_from_first(float64):
    second, first = algorithm(), algorithm(algo="fomaml_pg")
    batches, _ = second.collect()
    one, other = (each._gradient(second.learned, batches)[2] for each in (second, first))
    assert not all(torch.allclose(a, b, atol=1e-6) for a, b in zip(one, other, strict=True))


def test_the_outer_steps_end_where_the_policies_have_moved():
    far = algorithm("algo.outer.lr=0.1", "algo.outer.stop_kl=0.001", "algo.outer.epochs=50").train_step()
    assert far["train/epochs"] < 50
    assert far["train/kl"] > 0.001
    assert algorithm("algo.outer.epochs=3", "algo.outer.stop_kl=9").train_step()["train/epochs"] == 3


def test_tasks_of_each_iteration_are_drawn_anew_and_again_after_a_checkpoint():
    found = algorithm()
    found.train_step()
    state = copy.deepcopy(found.state_dict())
    first = found.task
    metrics = found.train_step()
    assert any(not torch.equal(first[name], found.task[name]) for name in first)
    other = algorithm()
    other.load_state_dict(state)
    assert other.train_step() == metrics


def test_fine_tuning_takes_the_rule_that_it_is_given():
    after = []
    for rule in ("sgd", "adam"):
        found = algorithm(f"algo.inner.rule={rule}", "algo.inner.lr=0.01", algo="pretrain_pg")
        task = found.family.sample_tasks(2, "test", numpy_rng(0, "tasks", "test"))
        *_, last = found.adapt(task, Budget(1), torch_rng(0, "support"))
        after.append(last.policy.params["head.weight"] - found.learned["init"]["head.weight"].detach())
    assert torch.allclose(after[1].abs(), torch.full_like(after[1], 0.01), rtol=1e-2), "Adam's first step is the rate"
    assert not torch.allclose(after[0].abs(), torch.full_like(after[0], 0.01), rtol=1e-2)


def test_an_arm_of_a_bandit_is_learned_from_its_pulls():
    """After one step from 20 pulls, the policy pulls the better arm far more often than before."""
    more = [
        "env.arms=2",
        "env.horizon=1",
        "algo.tasks=40",
        "algo.query=20",
        "algo.inner.support.rollouts=20",
        "algo.outer.lr=0.01",
    ]
    found = algorithm(*more, "algo.inner.support.steps=1", "algo.outer.epochs=5", "train.iterations=30", env="bandit")
    for _ in range(20):
        metrics = found.train_step()
    assert metrics["train/return_after"] > metrics["train/return_before"] + 0.05
    task = found.family.sample_tasks(200, "test", numpy_rng(0, "tasks", "test"))
    better = task["mean"].argmax(-1)
    shares = []
    for adapted in found.adapt(task, Budget(1), torch_rng(0, "support")):
        env = found.family.make(task, 50, torch_rng(0, "env"))
        policy = adapted.policy
        action, _ = policy.act(policy.start(50, torch_rng(0, "act"), greedy=False), env.obs)
        shares.append(float((action == better[:, None]).double().mean()))
    assert shares[0] == pytest.approx(0.5, abs=0.1)
    assert shares[1] > 0.65


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["learner=dqn"], "a policy is learned here: learner=policy"),
        (["algo.inner.support.epsilon=0.5"], "a policy gradient learns from its own actions"),
        (["algo.inner.support.fresh=false"], "inner.support.fresh=true"),
        (["algo.inner.loss.learned=true", "algo.inner.scope=context", "algo.inner.returns.lambda=0"], "is for Q-networks"),
    ],
)
def test_what_does_not_fit_is_one_line(overrides, message):
    with pytest.raises(Exception, match=message):
        algorithm(*overrides)


# -- the references


@pytest.mark.parametrize("algo", ["robust_pg", "oracle_pg"])
def test_a_policy_that_is_given_the_task_does_what_the_task_asks(algo):
    """On a bandit whose better arm is known to the oracle alone."""
    more = ["env.arms=2", "env.horizon=1", "algo.rollouts=20", "algo.steps=1", "algo.outer.epochs=5", "algo.outer.lr=0.01"]
    words = [f"algo={algo}", "env=bandit", "algo.tasks=60", *more, "hardware=cpu", "train.iterations=30"]
    found = build(compose_train(*words, "learner.network.hidden=[16]")).algorithm
    for _ in range(30):
        found.train_step()
    task = found.family.sample_tasks(200, "test", numpy_rng(0, "tasks", "test"))
    (adapted,) = found.adapt(task, Budget(), torch_rng(0, "support"))
    env = found.family.make(task, 1, torch_rng(0, "env"))
    action, _ = adapted.policy.act(adapted.policy.start(1, torch_rng(0, "act")), env.obs)
    share = float((action[:, 0] == task["mean"].argmax(-1)).double().mean())
    assert share > 0.9 if algo == "oracle_pg" else share == pytest.approx(0.5, abs=0.12)
