"""MAML over policy gradients: the meta-gradient, what ends the outer steps, and that a bandit's arm is learned."""

import copy
import math

import pytest
import torch
from conftest import compose_train

from metarl_cli.adaptation.gradient import loss_gradients
from metarl_cli.algos.on_policy import rows
from metarl_cli.interfaces import Batch, Budget, Transitions
from metarl_cli.networks.stacked import detached, expand
from metarl_cli.networks.trust_region import flat, split
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
    assert found.differentiate(batches)[0] == pytest.approx(float(loss.detach()), abs=1e-9), "in chunks"


def test_steps_that_move_the_policies_too_far_are_shortened(float64):
    found, beyond = (
        algorithm(f"algo.outer.stop_kl={bound}", "algo.outer.lr=0.1", "algo.outer.epochs=2") for bound in (0.01, 9)
    )
    batches, _ = found.collect()
    assert found.ppo(batches)["train/epochs"] == 1
    assert float(found.loss(found.learned, batches)[1].detach()) == pytest.approx(0.01, rel=0.3)
    start = [weight.detach().clone() for weight in beyond.tensors]
    beyond.outer = beyond.outer.model_copy(update={"epochs": 1})
    beyond.ppo(batches)
    way = [(weight - first).detach() for weight, first in zip(beyond.tensors, start, strict=True)]
    shorter = [(weight - first).detach() for weight, first in zip(found.tensors, start, strict=True)]
    share = torch.cat([x.flatten() for x in shorter]) / torch.cat([x.flatten() for x in way])
    assert share == pytest.approx(float(share[0]), rel=1e-6), "on the way that the steps took"
    assert 0 < share[0] < 0.9


def test_steps_that_diverge_leave_their_numbers_to_the_message():
    """Training stops at metrics that are not finite; until then nothing is hidden or repeated."""
    found = algorithm("algo.outer.epochs=5")
    batches, _ = found.collect()
    with torch.no_grad():
        found.tensors[0].fill_(float("nan"))
    metrics = found.ppo(batches)
    assert math.isnan(metrics["train/kl"])
    assert metrics["train/epochs"] == 1


def test_the_rate_falls_where_the_divergence_is_twice_the_bound_and_rises_again_up_to_its_own():
    overrides = ("algo.outer.lr=0.3", "algo.outer.final_lr=1", "algo.outer.stop_kl=0.01")
    far, again = algorithm(*overrides), algorithm(*overrides)
    assert [far.train_step()["train/lr"] for _ in range(3)] == pytest.approx([0.3, 0.3 / 1.5, 0.3 / 1.5**2])
    again.load_state_dict(far.state_dict())
    again.outer = again.outer.model_copy(update={"stop_kl": 1e9})
    rates = [again.train_step()["train/lr"] for _ in range(5)]
    assert rates == pytest.approx([0.3 / 1.5**3, 0.3 / 1.5**2, 0.3 / 1.5, 0.3, 0.3])


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


def test_the_loss_of_every_step_is_the_mean_of_those_of_one_step_two_and_three(float64):
    """The support of a step is what the policy before it did, so that it is a query of that policy."""
    three = algorithm("algo.inner.steps=3", "algo.outer.every_step=true")
    batches, _ = three.collect()
    learned = algorithm("algo.inner.steps=3", "seed=1").learned  # other policies than those that acted: the loss is not 0
    losses = [algorithm(f"algo.inner.steps={k}").loss(learned, batches[: k + 1])[0] for k in (1, 2, 3)]
    assert torch.allclose(three.loss(learned, batches)[0], sum(losses) / 3, atol=1e-12)
    assert not torch.allclose(losses[0], losses[2], atol=1e-3)


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


# -- the outer rules


@pytest.mark.parametrize("algo", ["maml_trpo", "robust_pg"])
def test_a_step_of_trpo_stays_within_its_bound_and_lowers_the_loss(algo, float64):
    words = SMALL if algo == "maml_trpo" else [word for word in SMALL if "query" not in word and "inner" not in word]
    more = ["algo.outer.rule=trpo", "algo.outer.trust.kl=0.02"]
    found = build(compose_train(f"algo={algo}", "env=navigation_2d_continuous", *words, *more)).algorithm
    batches, _ = found.collect()
    before = float(found.loss(found.learned, batches)[0].detach())
    metrics = found.trpo(batches)
    loss, divergence = (float(value.detach()) for value in found.loss(found.learned, batches))
    assert metrics["loss/query"] == pytest.approx(before, abs=1e-9)
    assert metrics["train/kl"] == pytest.approx(divergence, abs=1e-9)
    assert metrics["train/accepted_trial"] >= 1
    assert loss < before
    assert 0.02 * 0.3 < divergence <= 0.02, "not far below the bound"


def test_the_curvature_is_the_second_derivative_of_the_divergence(float64):
    """By differences of the gradient of the divergence over all actions, through the inner step."""
    found = algorithm("learner.network.hidden=[4]", algo="maml_trpo")
    batches, _ = found.collect()
    weights = list(found.learned["init"].values())
    acted = detached(found.query_policies(found.learned, batches))
    vector = torch.randn(sum(w.numel() for w in weights), generator=torch.Generator().manual_seed(0))
    product = found._product(found.learned, batches, vector)
    gradients = []
    for move in (1e-6, -2e-6):
        with torch.no_grad():
            for weight, part in zip(weights, split(vector, weights), strict=True):
                weight += move * part
        moved = found.learner.divergence(found.query_policies(found.learned, batches), acted, batches[-1].experience).mean()
        gradients.append(flat(torch.autograd.grad(moved, weights)))
    assert torch.allclose((gradients[0] - gradients[1]) / 2e-6, product, rtol=1e-4, atol=1e-6)
    found.outer = found.outer.model_copy(update={"chunk": 3})
    whole = found._product(found.learned, batches, vector)
    parts = found._mean(lambda part: [found._product(found.learned, part, vector)], batches)[0]
    assert torch.allclose(parts, whole, atol=1e-12), "in chunks"


def test_reptile_moves_to_the_mean_of_the_adapted_weights():
    found = algorithm("algo.outer.lr=1e-9", algo="reptile_pg")
    batches, _ = found.collect()
    gradients = dict(zip(found.learned["init"], found._gradient(found.learned, batches)[2], strict=True))
    params = {name: value.detach().expand(4, *value.shape) for name, value in found.learned["init"].items()}
    for batch in batches:
        steps, _ = loss_gradients(found.learner, params, list(params), batch)
        params = {name: value - 0.1 * steps[name] for name, value in params.items()}
    for name, value in found.learned["init"].items():
        assert torch.allclose(gradients[name], value.detach() - params[name].mean(0), atol=1e-6)


ARMS = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)


def every_support(pulls):
    """Each series of pulls of three arms once, as the experience of a task: equally likely under a uniform policy."""
    action = torch.cartesian_prod(*[torch.arange(3)] * pulls)[:, None]  # [3^pulls, 1, N]
    return pulled(action)


def pulled(action):
    reward = ARMS[action]
    none, obs = torch.zeros_like(reward).bool(), torch.zeros(*action.shape, 1, dtype=torch.float64)
    return Transitions(obs, action, reward, obs, none, none, torch.ones_like(reward))


@pytest.mark.parametrize(
    ("estimator", "credit", "exact"), [("log", True, True), ("log", False, False), ("ratio", False, False)]
)
def test_the_meta_gradient_of_an_enumerated_bandit(estimator, credit, exact, float64):
    """Four pulls by a uniform policy, one step, then the mean reward: all 81 supports by their probability.

    The truth is the derivative of the sum of p(support) J(adapted weights); that of the score function is part of it.
    """
    words = [
        "algo=emaml_pg" if credit else "algo=maml_pg",
        "env=bandit",
        "env.arms=3",
        "env.horizon=1",
        "algo.inner.rates=fixed",
    ]
    words += [
        "learner.network.hidden=[2]",
        f"learner.estimator={estimator}",
        "algo.inner.lr=0.5",
        "hardware=cpu",
        "algo.tasks=81",
    ]
    found = build(compose_train(*words)).algorithm
    with torch.no_grad():
        for value in found.learned["init"].values():
            value.zero_()
    init, support = found.learned["init"], every_support(4)
    params = expand(detached(init), 81)
    given = found._prepared(params, support)
    arms = torch.arange(3).expand(81, 1, 3)

    def adapted(weights):
        return found._step(1, expand(weights, 81), found.learned | {"init": weights}, given)

    def value(weights):
        """The mean reward of the adapted policies ``[81]``, and the probability of the supports."""
        after = found.learner.log_prob(adapted(weights), pulled(arms)).exp()
        likely = found.learner.log_prob(expand(weights, 81), support).sum((1, 2)).exp()
        return (after * ARMS).sum((1, 2)), likely

    after, likely = value(init)
    of_value, of_likelihood = (
        torch.autograd.grad(-part.sum(), init["head.bias"], retain_graph=True)[0]
        for part in (after * likely.detach(), after.detach() * likely)
    )
    # each support is there once, and its return is compared with those of the 80 others: their mean is no constant
    truth = of_value + of_likelihood * 81 / 80
    assert float(of_likelihood.norm()) > 0.01
    with torch.no_grad():
        acting = adapted(detached(init))
        query, old = pulled(arms), found.learner.log_prob(acting, pulled(arms))
        query = query._replace(reward=3 * old.exp() * query.reward)  # whose mean is that of the policy's own pulls
        signal = {"advantage": query.reward, "log_prob": old, "deviation": torch.ones(81)}
        batches = [given, found._credited(Batch(query, signal))]
    found.outer = found.outer.model_copy(update={"ratio_clip": 1e9})
    ours = torch.autograd.grad(found.loss(found.learned, batches)[0], init["head.bias"])[0]
    assert bool(torch.allclose(ours, truth, atol=1e-10)) == exact


def test_the_credit_is_of_the_return_of_an_episode_and_finite_without_rewards():
    """Each step of a CartPole is worth the same: longer episodes are better; and no reward at all is no division by zero."""
    found = algorithm("env.horizon=60", "algo.inner.support.steps=60", algo="emaml_pg", env="cartpole_family")
    batches, _ = found.collect()
    query = batches[-1]
    lengths = query.experience.weight.sum((1, 2))
    assert lengths.argmax() == query.signal["credit"].argmax()
    assert float(query.signal["credit"].abs().max()) > 0
    sparse = algorithm("algo.tasks=8", algo="emaml_pg", env="key_to_door")
    for _ in range(5):
        credit = sparse.collect()[0][-1].signal["credit"]
        assert bool(credit.isfinite().all())
        assert float(credit.abs().max()) < 100


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["learner=dqn"], "a policy is learned here: learner=policy"),
        (["algo.inner.support.epsilon=0.5"], "a policy gradient learns from its own actions"),
        (["algo.inner.support.fresh=false"], "inner.support.fresh=true"),
        (["algo.outer.rule=reptile"], "outer.rule=reptile moves to the adapted weights"),
        (["algo.outer.every_step=true", "algo.outer.rule=trpo"], "outer.every_step=true needs outer.rule=ppo"),
        (
            ["algo.outer.every_step=true", "algo.outer.credit=true", "algo.outer.epochs=1", "learner.estimator=log"],
            "outer.every_step=true needs .* outer.credit=false",
        ),
        (["algo.outer.credit=true"], "needs tasks above 1, and outer.rule=trpo or outer.epochs=1"),
        (["algo.outer.credit=true", "algo.outer.rule=trpo", "algo.tasks=1"], "needs tasks above 1"),
        (
            ["algo.outer.credit=true", "algo.outer.epochs=1"],
            "count twice what the loss of learner.estimator=ratio holds; use log",
        ),
        (["algo.outer.credit=true", "learner.estimator=log", "algo.inner.order=1"], "outer.credit is part of MAML's gradient"),
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
