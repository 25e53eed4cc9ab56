"""LinUCB and Thompson sampling: the regression and the indices against numpy, and what they are worth."""

import numpy as np
import pytest
import torch
from conftest import compose_train

from metarl_cli.config.registry import ConfigError
from metarl_cli.experience.rollout import run_episodes
from metarl_cli.interfaces import Budget, Step
from metarl_cli.runs.build import build
from metarl_cli.seeding import numpy_rng, torch_rng


def built(algo, *overrides):
    parts = build(compose_train(f"algo={algo}", "env=recommendation", *overrides, "hardware=cpu"))
    return parts.family, parts.algorithm


def adapted_to(algorithm, task):
    return next(algorithm.adapt(task, Budget(), torch_rng(0, "support")))


def seen(family, policy, task, shown=(3, 7, 3)):
    """The state of one trial after these items, the observation then, and the rows and rewards of the regression."""
    env, state = family.make(task, 1, torch_rng(0, "env")), policy.start(1, torch_rng(0, "policy"))
    rows, rewards = [], []
    for item in shown:
        action = torch.full((1, 1), item)
        rows.append([*family.items[item].tolist(), float(env.obs[0, 0, item]), 1.0])
        obs, step = env.obs, env.step(action)
        rewards.append(float(step.reward))
        state = policy.observe(state, obs, action, Step(*step))
    return state, env.obs, np.array(rows), np.array(rewards)


def test_linucb_by_hand():
    family, algorithm = built("linucb", "algo.prior=2.0", "algo.bonus=0.3")
    task = family.sample_tasks(1, "test", numpy_rng(0, "tasks"))
    policy = adapted_to(algorithm, task).policy
    state, obs, rows, rewards = seen(family, policy, task)
    inverse = np.linalg.inv(2 * np.eye(6) + rows.T @ rows)
    theta = inverse @ rows.T @ rewards
    expected = []
    for item in range(10):
        x = np.array([*family.items[item].tolist(), float(obs[0, 0, item]), 1.0])
        expected.append(x @ theta + 0.3 * np.sqrt(x @ inverse @ x))
    assert policy.index(state, obs)[0, 0].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert int(policy.act(state, obs)[0]) == int(np.argmax(expected))


def test_thompson_samples_the_posterior():
    """Mean and covariance of many samples of the indices, against the posterior's."""
    family, algorithm = built("linear_thompson", "algo.spread=0.5")
    task = family.sample_tasks(1, "test", numpy_rng(0, "tasks"))
    policy = adapted_to(algorithm, task).policy
    state, obs, rows, rewards = seen(family, policy, task)
    num = 20_000
    many = {**state, "precision": state["precision"].expand(1, num, 6, 6), "moment": state["moment"].expand(1, num, 6)}
    samples = policy.index(many, obs.expand(1, num, 10))[0].double().numpy()
    inverse = np.linalg.inv(np.eye(6) + rows.T @ rows)
    x = policy.features(obs)[0, 0].double().numpy()
    assert samples.mean(0) == pytest.approx(x @ inverse @ rows.T @ rewards, abs=0.02)
    assert np.cov(samples.T) == pytest.approx(0.25 * x @ inverse @ x.T, abs=0.02)


@pytest.mark.parametrize("algo", ["linucb", "linear_thompson"])
def test_they_find_what_is_clicked(algo):
    """More than random items, and more in the second episode than in the first; less than who knows the user."""
    family, algorithm = built(algo)
    task = family.sample_tasks(20, "validation", numpy_rng(0, "tasks"))
    adapted = adapted_to(algorithm, task)
    found, _ = run_episodes(family, task, adapted.policy, 5, torch_rng(0, "env"), torch_rng(0, "act"), adapted.episodes)
    first, second = found.mean((1, 2)).tolist()
    assert 20 < first < second < float(family.optimum(task).mean())


def test_other_families_are_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"this algorithm is for items with features \(env=recommendation\)"):
        build(compose_train("algo=linucb", "env=bandit", "hardware=cpu"))
