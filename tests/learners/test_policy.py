"""The policy gradient against processes whose every outcome is enumerated, and numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
from conftest import compose_train, load

from metarl_cli.adaptation.gradient import loss_each, prepare_each
from metarl_cli.interfaces import Batch, Transitions
from metarl_cli.networks.stacked import stack
from metarl_cli.spaces import Continuous, Discrete, Spec

TWO = Spec(obs_shape=(3,), actions=Discrete(2), horizon=5)


def learner(*overrides, spec=TWO):
    module, config = load("learner", compose_train("algo=maml_pg", "learner.network.hidden=[4]", *overrides).learner)
    return module.Learner(config, spec)


def experience(obs, action, reward, weight=None):
    reward = torch.as_tensor(reward, dtype=torch.float64)
    none = torch.zeros_like(reward).bool()
    weight = torch.ones_like(reward) if weight is None else torch.as_tensor(weight, dtype=torch.float64)
    return Transitions(obs, torch.as_tensor(action), reward, obs, none, none, weight)


def every_episode():
    """Two steps of two actions by a uniform policy: each of four episodes once, with rewards that depend on all before."""
    action = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]])  # [T, N]
    obs = torch.zeros(2, 4, 3, dtype=torch.float64)
    obs[0, :, 0] = 1
    obs[1, torch.arange(4), 1 + action[0]] = 1  # the second step sees the first action
    reward = torch.tensor([[1.0, 1.0, -2.0, -2.0], [0.5, 3.0, -1.0, 4.0]], dtype=torch.float64)
    return experience(obs, action, reward)


def expected_return(policy, params, batch):
    """The mean reward of a step, of all episodes by their probability."""
    probability = policy.log_prob(params, batch).sum(0).exp()
    return (probability * batch.reward.sum(0)).sum() / 2


def uniform(policy):
    params = policy.init(torch.Generator().manual_seed(0))
    return {name: v.double() if "hidden" in name else torch.zeros_like(v).double() for name, v in params.items()}


def derivatives(function, params):
    """The gradient and the Hessian in the head's weights."""
    head = params["head.weight"].flatten()

    def of(flat):
        return function(params | {"head.weight": flat.view_as(params["head.weight"])})

    return torch.autograd.functional.jacobian(of, head), torch.autograd.functional.hessian(of, head)


@pytest.mark.parametrize(("estimator", "exact"), [("log", False), ("ratio", False), ("dice", True)])
def test_gradients_are_exact_and_the_second_derivatives_of_dice(estimator, exact, float64):
    policy, batch = learner(f"learner.estimator={estimator}"), every_episode()
    params = uniform(policy)
    to_come = batch.reward.flip(0).cumsum(0).flip(0)
    given = Batch(batch, {"advantage": to_come, "log_prob": policy.log_prob(params, batch)})
    truth = derivatives(lambda p: -expected_return(policy, p, batch), params)
    ours = derivatives(lambda p: policy.loss(p, given), params)
    assert torch.allclose(ours[0], truth[0], atol=1e-12)
    assert bool(torch.allclose(ours[1], truth[1], atol=1e-10)) == exact


def test_of_one_step_the_ratio_is_exact_too(float64):
    policy, batch = learner(), every_episode()
    batch = Transitions(*(x[:1] for x in batch))
    params = uniform(policy)
    given = Batch(batch, {"advantage": batch.reward, "log_prob": policy.log_prob(params, batch)})
    truth = derivatives(lambda p: -(policy.log_prob(p, batch).exp() * batch.reward).sum() / 2, params)
    for one, other in zip(derivatives(lambda p: policy.loss(p, given), params), truth, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def random_tasks(tasks, steps=7, envs=4, vector=False):
    rng = torch.Generator().manual_seed(1)
    obs = torch.randn(tasks, steps, envs, 3, generator=rng, dtype=torch.float64)
    reward = torch.randn(tasks, steps, envs, generator=rng, dtype=torch.float64)
    weight = torch.ones_like(reward)
    weight[:, 4:, 1] = 0
    action = torch.randn(*reward.shape, 2, generator=rng) if vector else torch.randint(2, reward.shape, generator=rng)
    none = torch.zeros_like(reward).bool()
    return Transitions(obs, action, reward, obs, none, none, weight)


def test_the_baseline_is_least_squares_per_task(float64):
    policy, batch = learner("learner.gamma=0.9"), random_tasks(2)
    value = policy.baseline(batch, 0.9)
    for task in range(2):
        obs, reward, weight = (x[task].numpy() for x in (batch.obs, batch.reward, batch.weight))
        returns = np.zeros_like(reward)
        for t in reversed(range(7)):
            returns[t] = weight[t] * (reward[t] + (0.9 * returns[t + 1] if t < 6 else 0))
        time = np.broadcast_to(np.arange(7)[:, None, None] / 100, (7, 4, 1))
        features = np.concatenate([obs, obs**2, time, time**2, time**3, np.ones_like(time)], -1).reshape(28, -1)
        inside = weight.reshape(-1) > 0
        rows = np.concatenate([features[inside], math.sqrt(1e-3) * np.eye(features.shape[1])])
        targets = np.concatenate([returns.reshape(-1)[inside], np.zeros(features.shape[1])])
        fitted, *_ = np.linalg.lstsq(rows, targets, rcond=None)
        assert np.allclose((features @ fitted).reshape(7, 4), value[task].numpy(), atol=1e-8)


def test_advantages_of_each_task_have_mean_0_and_deviation_1(float64):
    policy, batch = learner(), random_tasks(3)
    params = stack([policy.init(torch.Generator().manual_seed(i)) for i in range(3)])
    advantage = prepare_each(policy, params, params, batch, None, 0.97).signal["advantage"]
    assert (advantage[batch.weight == 0] == 0).all()
    for task in range(3):
        inside = advantage[task][batch.weight[task] > 0]
        assert float(inside.mean()) == pytest.approx(0, abs=1e-9)
        assert float(inside.std(unbiased=False)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("estimator", ["ratio", "log", "dice"])
def test_stacked_tasks_are_the_tasks_alone(vector, estimator, float64):
    spec = TWO._replace(actions=Continuous((-2.0, -1.0), (2.0, 1.0))) if vector else TWO
    policy, batch = learner(f"learner.estimator={estimator}", spec=spec), random_tasks(3, vector=vector)
    networks = [policy.init(torch.Generator().manual_seed(i)) for i in range(3)]
    moved = [{name: value + 0.1 for name, value in network.items()} for network in networks]
    together = prepare_each(policy, stack(networks), stack(networks), batch, torch.tensor([0.9, 0.5, 0.0]), 0.8)
    losses = loss_each(policy, stack(moved), together)
    for i, gamma in enumerate((0.9, 0.5, 0.0)):
        alone = policy.prepare(networks[i], networks[i], batch.rows(i), gamma, 0.8)
        for name, value in alone.signal.items():
            assert torch.allclose(together.signal[name][i], value, atol=1e-9)
        assert float(losses[i]) == pytest.approx(float(policy.loss(moved[i], alone)), abs=1e-9)


def test_a_gaussian_keeps_a_least_deviation():
    policy = learner("learner.least_std=0.2", spec=TWO._replace(actions=Continuous((-1.0,), (1.0,))))
    params = policy.init(torch.Generator().manual_seed(0)) | {"log_std": torch.full((1,), -9.0)}
    drawn = policy.policy(params, torch.zeros(4000, 3)).sample(torch.Generator().manual_seed(0))
    assert float(drawn.std()) == pytest.approx(0.2, rel=0.05)
