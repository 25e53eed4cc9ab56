"""The rules as an algorithm: the support that they read, the policies before and after, and what is refused."""

import pytest
import torch
from conftest import compose_train

from metarl_cli.config.registry import ConfigError
from metarl_cli.envs.rules import Rule
from metarl_cli.experience.rollout import run_episodes
from metarl_cli.interfaces import Budget
from metarl_cli.runs.build import build
from metarl_cli.seeding import numpy_rng, torch_rng


def built(env, *overrides):
    return build(compose_train("algo=rule", f"env={env}", *overrides, "hardware=cpu"))


def test_a_rule_before_and_after_its_support():
    parts = built("cartpole_family")
    family, algorithm = parts.family, parts.algorithm
    task = family.sample_tasks(10, "test", numpy_rng(0, "tasks"))
    adapted = list(algorithm.adapt(task, Budget(2), torch_rng(0, "support")))
    assert [(a.step, a.gradient_steps, a.episodes) for a in adapted] == [(0, 0, None), (1, 0, None), (2, 0, None)]
    assert adapted[0].env_steps == 0
    assert 100 < adapted[1].env_steps <= 160
    assert adapted[2].env_steps > adapted[1].env_steps + 100

    def returns(policy):
        return run_episodes(family, task, policy, 2, torch_rng(0, "env"), torch_rng(0, "act"))[0][0].mean(1)

    before, after = returns(adapted[0].policy), returns(adapted[1].policy)
    reversed_ = task["force_mag"] < 0
    assert float(after.min()) == 500
    assert float(before[reversed_].max()) < 50, "one sign is taken for granted"
    assert float(before[~reversed_].min()) == 500
    assert algorithm.train_step() == algorithm.weights() == {}


def test_the_support_is_configured():
    parts = built("navigation_2d", "algo.support.rollouts=3", "algo.support.steps=5")
    task = parts.family.sample_tasks(2, "test", numpy_rng(0, "tasks"))
    *_, last = parts.algorithm.adapt(task, Budget(1), torch_rng(0, "support"))
    assert last.policy.state_dict()["support"]["reward"].shape == (2, 5, 3)
    *_, last = parts.algorithm.adapt(task, Budget(1, episodes=4), torch_rng(0, "support"))
    assert last.policy.state_dict()["support"]["reward"].shape == (2, 5, 4)


@pytest.mark.parametrize("env", ["pendulum_family", "two_link_arm"])
def test_a_saved_rule_acts_as_before(env):
    parts = built(env)
    task = parts.family.sample_tasks(3, "test", numpy_rng(0, "tasks"))
    for adapted in parts.algorithm.adapt(task, Budget(1), torch_rng(0, "support")):
        loaded = parts.algorithm.load_policy(adapted.policy.state_dict(), task)
        obs = parts.family.make(task, 4, torch_rng(0, "env")).obs
        actions = [p.act(p.start(4, torch_rng(0, "act")), obs)[0] for p in (adapted.policy, loaded)]
        assert torch.equal(*actions)
    other = parts.family.sample_tasks(2, "test", numpy_rng(0, "tasks"))
    with pytest.raises(ValueError, match="other tasks or of another family"):
        parts.algorithm.load_policy(adapted.policy.state_dict(), other)
    with pytest.raises(ValueError, match="other tasks or of another family"):
        built("navigation_2d").algorithm.load_policy(adapted.policy.state_dict(), task)


@pytest.mark.parametrize("env", ["scrambled_cartpole", "key_to_door", "classic_mix"])
def test_a_family_without_a_rule_is_named_in_one_line(env):
    with pytest.raises(ConfigError, match=r"algo\.module=rule: this family has no hand-written rule"):
        built(env)


def test_a_rule_keeps_nothing_of_an_episode():
    rule = Rule(lambda obs: obs.argmax(-1))
    state = rule.start(2, torch_rng(0, "act"))
    assert rule.act(state, torch.eye(3)[None])[0].tolist() == [[0, 1, 2]]
    assert not rule.state_dict()
