"""PEMIRL against known answers: the optimum of an adversarial reward, what a context is inferred from, who demonstrates."""

import json

import pytest
import torch
from conftest import compose_train, load, tiny
from torch.nn.functional import one_hot

from metarl_cli.adaptation.contexts import ContextConfig, ContextEncoder
from metarl_cli.cli import main as cli
from metarl_cli.config.registry import ConfigError
from metarl_cli.errors import UserError
from metarl_cli.experience.demonstrations import demonstrate
from metarl_cli.experience.rollout import run_episodes
from metarl_cli.interfaces import Budget, Transitions
from metarl_cli.networks.discriminator import Discriminator, RewardConfig
from metarl_cli.runs.build import build
from metarl_cli.runs.demonstrator import trained_expert
from metarl_cli.runs.folder import RunFolder
from metarl_cli.seeding import numpy_rng, torch_rng
from metarl_cli.spaces import Discrete, Spec

STATES, GAMMA = 5, 0.8


def ring():
    """All transitions of a ring in which one moves by -1, 0 or 1, and what the soft-optimal policy for a reward does there."""
    reward, move = torch.tensor([0.0, 1.0, -0.5, 0.3, 0.8]), torch.tensor([-1, 0, 1])
    after = (torch.arange(STATES)[:, None] + move) % STATES  # [S, A]
    value = torch.zeros(STATES)
    for _ in range(300):  # the discounted problem without an end
        value = (reward + GAMMA * value)[after].logsumexp(-1)
    return reward, after, (reward + GAMMA * value)[after] - value[:, None]


@pytest.mark.slow
def test_the_optimum_of_the_discriminator_is_the_demonstrators_log_probability(float64):
    """And the reward is the true one but for a constant, though it is another policy whose actions D compares (Fu 2018)."""
    reward, after, log_expert = ring()
    states = one_hot(torch.arange(STATES), STATES).to(reward)
    obs, led = states[:, None].expand(-1, 3, -1)[None], states[after][None]  # [1, S, A, S]: time S, environments A
    policy = torch.rand(STATES, 3, generator=torch_rng(0, "policy")).log_softmax(-1)
    never = torch.zeros(1, STATES, 3, dtype=torch.bool)
    shown, acted = (
        Transitions(obs, after[None], torch.zeros(1, STATES, 3), led, never, never, each.exp()[None])
        for each in (log_expert, policy)
    )
    spec = Spec((STATES,), Discrete(3), 10)
    discriminator, context = Discriminator(RewardConfig(hidden=[16]), spec, 1, GAMMA), torch.zeros(1, 1)
    params = {name: value.requires_grad_() for name, value in discriminator.init(torch_rng(0, "init")).items()}
    search = torch.optim.LBFGS(params.values(), max_iter=150, tolerance_grad=1e-8, line_search_fn="strong_wolfe")

    def loss():
        search.zero_grad()
        found = discriminator.loss(params, context, shown, policy[None], acted, policy[None]).sum()
        found.backward()
        return found

    search.step(loss)
    with torch.no_grad():
        found = discriminator.advantage(params, shown, context)[0]
        inferred = discriminator.reward(params, states[None], context)[0]
    torch.testing.assert_close(found, log_expert, rtol=0, atol=1e-2)
    torch.testing.assert_close(inferred - inferred.mean(), reward - reward.mean(), rtol=0, atol=0.05)


def test_nothing_is_expected_after_an_end(float64):
    spec = Spec((2,), Discrete(3), 10, obs_scale=(1.0, 4.0))
    discriminator, rng = Discriminator(RewardConfig(hidden=[4]), spec, 2, GAMMA), torch_rng(0, "init")
    params, context = discriminator.init(rng), torch.randn(1, 2, generator=rng)
    obs, led = torch.randn(2, 1, 3, 2, 2, generator=rng)
    ends = torch.zeros(1, 3, 2, dtype=torch.bool)
    seen = Transitions(obs, ends, ends, led, ends, ends, torch.ones(1, 3, 2))
    ended = seen._replace(terminated=~ends)
    difference = discriminator.advantage(params, seen, context) - discriminator.advantage(params, ended, context)
    ahead = discriminator._number("shaping", params, led, context)
    torch.testing.assert_close(difference, GAMMA * ahead)


def navigation(*overrides):
    module, config = load("env", compose_train("env=navigation_2d_continuous", *overrides).env)
    family = module.Family(config)
    return family, family.sample_tasks(3, "test", numpy_rng(0, "tasks"))


def test_a_context_is_of_what_was_done_and_narrows_with_it(float64):
    family, task = navigation()
    encoder = ContextEncoder(ContextConfig(hidden=[8], size=2, beta=0.0, steps=5), family.spec)
    params = encoder.init(torch_rng(0, "init"))
    given = demonstrate(family, task, 4, torch_rng(0, "demonstrations"))
    measured = encoder.measure(given.experience)

    def posterior(seen):
        part = Transitions(*(x[:, :5] for x in seen))
        return torch.stack(encoder.posterior(params, encoder.read(measured, part)))

    found = posterior(given.experience)
    other = given.experience._replace(reward=torch.randn_like(given.experience.reward))
    torch.testing.assert_close(posterior(other), found)  # rewards are not read
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(posterior(Transitions(*(x[:, :, order] for x in given.experience))), found)
    assert (posterior(given.first(1).experience)[1] > found[1]).all(), "more demonstrations say more"
    mean = encoder.contexts(params, measured, task, given)
    torch.testing.assert_close(mean, found[0])
    assert not encoder.contexts(params, measured, task, None).any()
    # by hand, of the first task: the precisions of all transitions and of the prior add up
    read = encoder.read(measured, Transitions(*(x[:1, :5] for x in given.experience)))
    weighted, precision = encoder.factors(params, read)
    torch.testing.assert_close(found[1, 0], (1 + precision[0].sum(0)) ** -0.5)
    torch.testing.assert_close(found[0, 0], weighted[0].sum(0) / (1 + precision[0].sum(0)))


@pytest.mark.parametrize("env", ["navigation_2d_continuous", "point_target"])
def test_the_expert_is_optimal_but_for_its_noise(env, float64):
    module, config = load("env", compose_train(f"env={env}").env)
    family = module.Family(config)
    task = family.sample_tasks(5, "test", numpy_rng(0, "tasks"))
    returns, _ = run_episodes(family, task, family.expert(task), 1, torch_rng(0, "env"), torch_rng(0, "noise"))
    torch.testing.assert_close(returns[0, :, 0], family.optimum(task), rtol=0, atol=1e-9)
    given = demonstrate(family, task, 20, torch_rng(0, "demonstrations"))
    below = family.optimum(task) - (given.experience.reward * given.experience.weight).sum(1).mean(1)
    assert (below > 0).all()
    assert (below < {"navigation_2d_continuous": 1, "point_target": 8}[env]).all()


def test_who_is_not_given_the_task_cannot_show_it(monkeypatch, tmp_path):
    config = compose_train("algo=robust_pg", "env=pendulum_family", *tiny("robust_pg"))
    monkeypatch.setattr(RunFolder, "config", lambda *_: config)
    with pytest.raises(UserError, match="is not given the task"):
        trained_expert(tmp_path, None, config.hardware)


def test_a_family_without_an_expert_is_refused_before_the_run():
    config = compose_train("algo=context_bc", "env=navigation_2d", *tiny("context_bc"))
    with pytest.raises(ConfigError, match=r"env\.module=navigation_2d: it has no expert .*: demonstrator=FOLDER"):
        build(config)
    with pytest.raises(UserError, match="has no expert"):
        demonstrate(config.env.instance, config.env.instance.named_task({}), 1, torch_rng(0, "demonstrations"))


def test_no_policy_is_trained_from_scratch_where_none_is_wanted():
    small = [override for override in tiny("pemirl") if not override.startswith("algo.scratch")]
    parts = build(compose_train("algo=pemirl", "env=navigation_2d_continuous", *small, "algo.scratch=null"))
    task = parts.family.sample_tasks(3, "test", numpy_rng(0, "tasks"))
    assert parts.algorithm.adapt_from_scratch(task, Budget(1), torch_rng(0, "support")) is None
    least = parts.algorithm.cost_of_adapting(3, 1)
    assert (
        0 < least < build(compose_train("algo=pemirl", "env=navigation_2d_continuous", *small)).algorithm.cost_of_adapting(3, 1)
    )


@pytest.mark.slow
def test_points_are_numbers_of_demonstrations_and_one_context_makes_reward_and_policy():
    parts = build(compose_train("algo=pemirl", "env=navigation_2d_continuous", *tiny("pemirl")))
    parts.algorithm.train_step()
    task = parts.family.sample_tasks(3, "test", numpy_rng(0, "tasks"))
    adapted = list(parts.algorithm.adapt(task, Budget(5), torch_rng(0, "support")))
    scratch = list(parts.algorithm.adapt_from_scratch(task, Budget(5), torch_rng(0, "support")))
    assert [each.step for each in adapted] == [each.step for each in scratch] == [0, 1, 2, 5]
    assert [each.env_steps for each in adapted] == [each.env_steps for each in scratch], "the same demonstrations"
    assert not torch.equal(adapted[1].policy.given, adapted[-1].policy.given)
    drawn = adapted[-1].policy.diagnostics().figures["reward"]
    panels = [axes for axes in drawn.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["inferred reward", "true reward"]
    assert len(panels[0].lines) == 5
    goal = task["goal_x"][0], task["goal_y"][0]
    true = torch.as_tensor(panels[1].images[0].get_array().data)
    row, column = divmod(int(true.argmax()), true.shape[1])
    assert (column / 50 - 1, row / 50 - 1) == pytest.approx((float(goal[0]), float(goal[1])), abs=0.011)


def test_a_discount_of_zero_is_that_of_the_shaping_too():
    for words, gamma in ((["algo.returns.gamma=0"], 0.0), (["learner.gamma=0.7"], 0.7)):
        parts = build(compose_train("algo=pemirl", "env=navigation_2d_continuous", *tiny("pemirl"), *words))
        assert parts.algorithm.discriminator.gamma == gamma


@pytest.mark.slow
@pytest.mark.parametrize(("algo", "iterations", "above"), [("pemirl", 60, -25), ("context_bc", 40, -10)])
def test_demonstrations_tell_where_to_go(algo, iterations, above):
    parts = build(
        compose_train(f"algo={algo}", "env=navigation_2d_continuous", "hardware=cpu", f"train.iterations={iterations}")
    )
    for _ in range(iterations):
        parts.algorithm.train_step()
    task = parts.family.sample_tasks(30, "test", numpy_rng(0, "tasks"))
    before, after = (
        float(run_episodes(parts.family, task, each.policy, 1, torch_rng(0, "env"), torch_rng(0, "policy"))[0].mean())
        for each in parts.algorithm.adapt(task, Budget(1), torch_rng(0, "support"))
    )
    assert before < -30
    assert after > above


@pytest.mark.slow
def test_a_trained_oracle_demonstrates_and_the_run_keeps_it(tmp_path, capsys):
    oracle, run = tmp_path / "oracle", tmp_path / "run"
    small = ["env=pendulum_family", "env.horizon=8", "hardware=cpu"]
    assert cli.main(["train", "algo=oracle_pg", *small, *tiny("oracle_pg"), f"run={oracle}"]) == 0
    words = ["train", "algo=context_bc", *small, *tiny("context_bc")]
    assert cli.main([*words, f"demonstrator={oracle}", f"run={run}"]) == 0
    first = json.loads((run / "results" / "test.json").read_text())
    assert cli.main([*words, f"demonstrator={oracle}", f"run={run}"]) == 0, "the same command goes on"
    oracle.rename(tmp_path / "elsewhere")
    (run / "results" / "test.json").unlink()
    assert cli.main(["test", f"run={run}"]) == 0
    again = next(path for path in (run / "results").glob("test*.json"))
    assert json.loads(again.read_text())["adapted"] == first["adapted"]
    assert cli.main([*words, f"demonstrator={oracle}", f"run={run}"]) == 0, "the folder that was named may go"
    capsys.readouterr()
    other = tmp_path / "other"
    assert cli.main(["train", "algo=oracle_pg", *small, *tiny("oracle_pg"), "seed=1", f"run={other}"]) == 0
    assert cli.main([*words, f"demonstrator={other}", f"run={run}"]) == 2
    assert "has other weights than" in capsys.readouterr().err
    config = compose_train("algo=oracle_pg", *small, *tiny("oracle_pg"))
    family = build(config).family
    family.sample_tasks = lambda *_: {"goal": torch.zeros(1)}
    with pytest.raises(UserError, match="and those of this env goal"):
        trained_expert(other, family, config.hardware)
    (run / "demonstrator").rename(tmp_path / "lost")
    assert cli.main(["test", f"run={run}"]) == 2
    assert "demonstrator is not a run folder" in capsys.readouterr().err
    (tmp_path / "lost").rename(run / "demonstrator")
    assert cli.main([*words[:1], "algo=context_bc", "env=cartpole_family", f"demonstrator={tmp_path / 'elsewhere'}"]) == 2
    assert "its observations, actions or horizon are not those of this env" in capsys.readouterr().err
    assert cli.main([*words, f"demonstrator={run}"]) == 2
    assert "its algorithm adapts" in capsys.readouterr().err
    assert cli.main(["train", "algo=maml_pg", *small, f"demonstrator={run}"]) == 2
    assert "does not learn from demonstrations" in capsys.readouterr().err
