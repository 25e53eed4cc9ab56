"""The soft actor-critic against formulas written out, a loop over tasks, and a problem whose soft optimum is known."""

import math

import pytest
import torch
from conftest import compose_train, load
from torch.func import vmap

from metarl_cli.config.registry import ConfigError
from metarl_cli.errors import UserError
from metarl_cli.interfaces import Transitions
from metarl_cli.learners.sac import SAC
from metarl_cli.networks.stacked import detached, fresh
from metarl_cli.networks.target import follow
from metarl_cli.spaces import Continuous, Discrete, Spec

SPEC = Spec(obs_shape=(3,), actions=Continuous((-2.0, 0.0), (2.0, 1.0)), horizon=10, obs_scale=(1.0, 2.0, 1.0))
SMALL = ("algo=pearl", "env=pendulum_family", "learner.network.hidden=[32]", "learner.network.activation=silu")


def learner(*overrides: str, spec: Spec = SPEC) -> SAC:
    module, config = load("learner", compose_train(*SMALL, *overrides).learner)
    return module.Learner(config, spec)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def transitions(*shape: int, spec: Spec = SPEC) -> Transitions:
    """Random ones, of which a third ended their episodes and some are padding."""
    obs, after = torch.randn(2, *shape, *spec.obs_shape, generator=rng(1))
    reward, chance = torch.randn(*shape, generator=rng(2)), torch.rand(*shape, generator=rng(3))
    action = spec.actions.random(obs.reshape(1, -1, *spec.obs_shape), rng(4)).view(*shape, spec.actions.size)
    return Transitions(obs, action, reward, after, chance < 0.3, chance < 0.5, (chance < 0.8).to(reward.dtype))


def noise(*shape: int, spec: Spec = SPEC) -> torch.Tensor:
    return torch.randn(*shape, SAC.draws, spec.actions.size, generator=rng(5))


def test_the_loss_is_the_formula(float64):
    sac = learner("learner.gamma=0.9", "learner.reward_scale=3", "learner.temperature=0.2")
    params, slow = sac.init(rng(6)), sac.init(rng(7))
    batch, chance = transitions(1, 50), noise(1, 50)
    prepared = sac.with_noise(chance).prepare(params, slow, batch)

    def q(weights, obs, action):
        return [
            sac.critic({k[7:]: v[i] for k, v in weights.items() if k.startswith("critic.")}, scaled(obs, action))
            for i in (0, 1)
        ]

    def scaled(obs, action):
        return torch.cat([obs, action / torch.tensor([2.0, 0.5]) - torch.tensor([0.0, 1.0])], -1)

    action, log_prob = sac.policy(params, batch.next_obs).draw(chance[..., 0, :])
    value = torch.minimum(*q(slow, batch.next_obs, action)) - 0.2 * log_prob
    target = 3 * batch.reward + 0.9 * value * ~batch.terminated
    torch.testing.assert_close(prepared.signal["target"], target)
    errors = [(x - target).square() for x in q(params, batch.obs, batch.action)]
    action, log_prob = sac.policy(params, batch.obs).draw(chance[..., 1, :])
    loss = sum(errors) + 0.2 * log_prob - torch.minimum(*q(params, batch.obs, action))
    expected = (loss * batch.weight).sum() / batch.weight.sum()
    torch.testing.assert_close(sac.loss(params, prepared), expected)


def test_each_part_of_the_loss_moves_its_own_weights(float64):
    """And only the critic's reaches what made the observation, as an encoder of the task does."""
    sac = learner("learner.target_entropy=-1")
    params = {name: value.requires_grad_() for name, value in sac.init(rng()).items()}
    batch, chance = transitions(1, 20), noise(1, 20)
    obs = batch.obs.clone().requires_grad_()
    with torch.no_grad():
        prepared = sac.with_noise(chance).prepare(params, detached(params), batch)
    prepared = prepared._replace(experience=batch._replace(obs=obs))
    found = dict(zip([*params, "obs"], torch.autograd.grad(sac.loss(params, prepared), [*params.values(), obs]), strict=True))
    weight = batch.weight / batch.weight.sum()
    error = (sac.values(params, obs, batch.action) - prepared.signal["target"]).square().sum(0)
    critic = {name: value for name, value in params.items() if name.startswith("critic.")} | {"obs": obs}
    for name, expected in zip(critic, torch.autograd.grad((error * weight).sum(), list(critic.values())), strict=True):
        torch.testing.assert_close(found[name], expected)
    action, log_prob = sac.policy(params, batch.obs).draw(chance[..., 1, :])
    gain = (params["log_temperature"].exp().detach() * log_prob - sac.values(params, batch.obs, action).amin(0)) * weight
    policy = {name: value for name, value in params.items() if name.startswith("policy.")}
    for name, expected in zip(policy, torch.autograd.grad(gain.sum(), list(policy.values()), retain_graph=True), strict=True):
        torch.testing.assert_close(found[name], expected)
    surplus = ((log_prob - 2) * weight).sum()  # the entropy is -log_prob, the target -1 for each of two entries
    torch.testing.assert_close(found["log_temperature"], -params["log_temperature"].exp() * surplus)


def test_the_loss_of_many_tasks_is_that_of_each(float64):
    sac, tasks = learner(), 3
    params, slow = fresh(sac, tasks, rng()), fresh(sac, tasks, rng(1))
    batch, chance = transitions(tasks, 1, 8), noise(tasks, 1, 8)

    def loss(params, slow, batch, chance):
        return sac.loss(params, sac.with_noise(chance).prepare(params, slow, batch))

    def row(values, i):
        return {name: value[i] for name, value in values.items()}

    found = vmap(loss)(params, slow, batch, chance)
    expected = [loss(row(params, i), row(slow, i), batch.rows(i), chance[i]) for i in range(tasks)]
    torch.testing.assert_close(found, torch.stack(expected))
    obs = torch.randn(tasks, 4, 3, generator=rng(2))
    stacked = sac.policy(params, obs).mode()
    torch.testing.assert_close(stacked, torch.stack([sac.policy(row(params, i), obs[i]).mode() for i in range(tasks)]))


def trained(*overrides: str, updates: int = 300):
    """A learner of one step whose reward is -(a - 0.3)^2; its weights, and samples of its policy."""
    spec = Spec(obs_shape=(1,), actions=Continuous((-1.0,), (1.0,)), horizon=1)
    sac, chance = learner("learner.reward_scale=1", *overrides, spec=spec), rng(9)
    params = {name: value.requires_grad_() for name, value in sac.init(rng()).items()}
    slow = {name: value.detach().clone() for name, value in params.items()}
    optimizer = torch.optim.Adam(list(params.values()), lr=0.02)
    obs, one = torch.ones(1, 128, 1), torch.ones(1, 128)
    for step in range(updates):
        action = spec.actions.random(obs, chance)
        reward = -(action[..., 0] - 0.3).square()
        batch = Transitions(obs, action, reward, obs, one.bool(), one.bool(), one)
        with torch.no_grad():
            prepared = sac.with_noise(torch.randn(1, 128, 2, 1, generator=chance)).prepare(params, slow, batch)
        optimizer.zero_grad()
        sac.loss(params, prepared).backward()
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / updates)
        optimizer.step()
        follow(slow, params, 0.05)
    samples = sac.policy(detached(params), torch.ones(4000, 1)).sample(chance)
    return sac, detached(params), samples


def test_the_policy_finds_the_soft_optimum():
    """It is proportional to exp(r(a) / alpha): a normal distribution around 0.3 of deviation sqrt(alpha / 2)."""
    _, _, samples = trained("learner.temperature=0.02")
    assert float(samples.mean()) == pytest.approx(0.3, abs=0.03)
    assert float(samples.std()) == pytest.approx(0.1, rel=0.1)


def test_a_learned_temperature_reaches_its_entropy():
    """Of -1 nats, a normal distribution has the deviation exp(-1) / sqrt(2 pi e), where alpha is twice its square."""
    sac, params, samples = trained("learner.target_entropy=-1", "learner.temperature=0.03")
    deviation = math.exp(-1) / math.sqrt(2 * math.pi * math.e)
    assert float(sac.policy(params, torch.ones(1, 1)).entropy()) == pytest.approx(-1, abs=0.05)
    assert float(samples.std()) == pytest.approx(deviation, rel=0.1)
    assert float(sac.temperature(params)) == pytest.approx(2 * deviation**2, rel=0.15)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (SPEC._replace(actions=Discrete(2)), "needs actions that are vectors; algo=pearl_dqn"),
        (SPEC._replace(obs_shape=(3, 8, 8)), r"not images of \[3, 8, 8\]"),
    ],
)
def test_what_it_cannot_learn_is_told(spec, said):
    with pytest.raises(UserError, match=said):
        learner(spec=spec)


@pytest.mark.parametrize("algo", ["maml_dqn", "dqn", "dream_dqn", "maml_pg", "es_dqn"])
def test_algorithms_that_give_no_noise_refuse_it(algo):
    with pytest.raises(ConfigError, match=r"learner.module=sac: algo.module=\w+ gives no noise .*algo=pearl does"):
        compose_train(f"algo={algo}", "learner=sac", "env=pendulum_family")
