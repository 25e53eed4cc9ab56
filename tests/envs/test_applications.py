"""Trading, queues, recommendation, car following and the arm with torques: dynamics and optima against known answers."""

import math
from itertools import product

import pytest
import torch
from conftest import compose_train, load

from metarl_cli.experience.rollout import RandomPolicy, collect, run_episodes
from metarl_cli.interfaces import Transitions
from metarl_cli.seeding import numpy_rng, torch_rng


def family(name: str, *overrides: str):
    module, config = load("env", compose_train(f"env={name}", *overrides).env)
    return module.Family(config)


def random_support(ours, task, rollouts=8, steps=20):
    policy, env = RandomPolicy(ours.spec.actions), ours.make(task, rollouts, torch_rng(0, "support"))
    return collect(env, policy, policy.start(rollouts, torch_rng(0, "random")), steps, one_episode=True)


def returns(ours, task, policy, envs=1):
    """The mean return ``[M]`` of each task, and its standard error ``[M]``."""
    found = run_episodes(ours, task, policy, envs, torch_rng(0, "episodes"), torch_rng(0, "policy"))[0][0]
    return found.mean(1), found.std(1) / envs**0.5


def nothing(support):
    """A support without a step."""
    return Transitions(*(field[:, :0] for field in support))


def stepped(ours, task, state, action):
    """What the dynamics make of one state ``[S]`` and action of one task."""
    constants = ours.constants({name: value[:, None] for name, value in task.items()})
    after, reward, terminated = ours.dynamics(state[None, None], action[None, None], constants, torch_rng(0, "noise"))
    assert not terminated.any()
    return after[0, 0], float(reward)


# -- trading


def test_trading_by_hand(float64):
    """The next return is the share of the last and noise; going from long to short costs twice the cost."""
    ours = family("trading")
    task = ours.named_task({"phi": -0.4, "cost": 0.15})
    noise = float(torch.randn(1, 1, generator=torch_rng(0, "noise")))
    after, reward = stepped(ours, task, torch.tensor([1.5, 1.0]), torch.tensor(0))
    assert after.tolist() == pytest.approx([-0.4 * 1.5 + noise, -1.0])
    assert reward == pytest.approx(-(-0.4 * 1.5 + noise) - 0.15 * 2)


def test_trading_without_cost_is_known_in_closed_form():
    """The sum of E|phi r_t|: with r_t normal of variance v_t, that is |phi| sqrt(2 v_t / pi), and v' = phi² v + 1."""
    ours, phis = family("trading"), [0.5, 0.8, -0.9, 0.0]
    found = ours.optimum({"phi": torch.tensor(phis), "cost": torch.zeros(4)})
    for phi, best in zip(phis, found.tolist(), strict=True):
        total, variance = 0.0, 1.0
        for _ in range(50):
            total += abs(phi) * math.sqrt(2 * variance / math.pi)
            variance = phi**2 * variance + 1
        assert best == pytest.approx(total, rel=1e-3, abs=1e-9)


def test_trading_is_worth_every_way_of_two_steps(float64):
    """Brute force: all positions after the first return, and after every second return, on a fine grid of normal returns."""
    phi, cost = 0.7, 0.2
    unit = torch.linspace(-8, 8, 401)
    chance = torch.softmax(-unit.square() / 2, 0)
    total = 0.0
    for first, weight in zip(unit.tolist(), chance.tolist(), strict=True):
        second = phi * first + unit
        ways = []
        for held in (-1, 0, 1):
            last = torch.stack([then * phi * second - cost * abs(then - held) for then in (-1, 0, 1)]).amax(0)
            ways.append(held * phi * first - cost * abs(held) + float((chance * last).sum()))
        total += weight * max(ways)
    found = family("trading", "env.horizon=2").optimum({"phi": torch.tensor([phi]), "cost": torch.tensor([cost])})
    assert float(found) == pytest.approx(total, rel=2e-3)


def test_a_trader_reads_the_trend():
    """The rule of a support is worth most of the optimum; without one it has nothing to trade on."""
    ours = family("trading")
    task = ours.sample_tasks(20, "validation", numpy_rng(0, "tasks"))
    support, best = random_support(ours, task), ours.optimum(task)
    mean, error = returns(ours, task, ours.rule(support), 20)
    assert 0.95 * float(best.mean()) < float(mean.mean()) < float((best + 3 * error).mean())
    assert abs(float(returns(ours, task, ours.rule(nothing(support)), 20)[0].mean())) < 0.5


@pytest.mark.parametrize(("name", "value"), [("phi", 1.0), ("cost", -0.1)])
def test_a_market_that_makes_no_sense_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        family("trading").named_task({name: value})
