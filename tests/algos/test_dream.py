"""A learned exploration: what it is rewarded for, and where it goes."""

import torch
from conftest import compose_train, tiny
from probes import Sides
from test_probes import parts

from metarl_cli.adaptation.explorer import nothing
from metarl_cli.adaptation.support import collect_rollouts
from metarl_cli.experience.rollout import RandomPolicy
from metarl_cli.interfaces import Budget
from metarl_cli.runs.build import build
from metarl_cli.seeding import numpy_rng, torch_rng

EXPLORER = [
    "learner.reward_scale=1",
    "algo.tasks=32",
    "algo.updates=1",
    "algo.support.rollouts=2",
    "algo.support.steps=4",
    "algo.explorer.hidden=[32]",
    "algo.explorer.tasks=128",
    "algo.explorer.epsilon=[1.0,0.5]",
    "algo.explorer.epsilon_iterations=5",
    "algo.explorer.estimates=30",
    "algo.explorer.estimate_tasks=16",
    "algo.explorer.reward=3",
    "algo.explorer.rollouts=32",
    "algo.explorer.updates=40",
    "algo.explorer.lr=0.005",
]


def test_the_rewards_of_supports_add_up_to_the_fall_of_the_error():
    """Over two supports, whatever the order in which single transitions reveal something; padding is worth nothing."""
    algorithm = build(compose_train("algo=dream_dqn", *tiny("dream_dqn"), "algo.explorer.supports=2")).algorithm
    explorer, family = algorithm.explorer, algorithm.family
    task, before, total = algorithm.task, nothing(len(algorithm.facts), algorithm.facts.shape[1], torch.device("cpu")), 0.0
    first = (before.mean()[:, 0] - algorithm.facts).square().mean(-1)
    for k in range(2):
        random = RandomPolicy(family.spec.actions)
        config = algorithm.config.support.model_copy(update={"epsilon": 1.0})
        support = collect_rollouts(random, family.spec.actions, family, task, config, torch_rng(k))
        after = explorer.cumulative(explorer.slow["estimator"], explorer.encoder.read(explorer.measured, support), before)
        rewarded = explorer._rewarded(support, before.belief(), algorithm.facts, before, after)
        assert not rewarded.reward[rewarded.weight == 0].any()
        total, before = total + rewarded.reward.sum((0, 1)), after.last()
    left = (before.mean()[:, 0] - algorithm.facts).square().mean(-1)
    scaled = total * algorithm.learner.config.reward_scale
    torch.testing.assert_close(scaled, algorithm.config.explorer.reward * (first - left), rtol=1e-3, atol=1e-4)


def test_an_explorer_goes_where_the_answer_is():
    """It is three steps away: a random walk of four steps is there in one case of four, and an explorer always."""
    family = Sides()
    algorithm = parts("dream_dqn", family, *EXPLORER, iterations=10)
    task = family.sample_tasks(40, "test", numpy_rng(0, "tasks", "test"))

    def right(epsilon):
        support = algorithm.config.support.model_copy(update={"epsilon": epsilon})
        algorithm.config = algorithm.config.model_copy(update={"support": support})
        _, after = algorithm.adapt(task, Budget(1), torch_rng(0))
        return float((after.policy.given.sign() == family.knowledge(task)).float().mean())

    assert right(epsilon=0.0) == 1
    assert right(epsilon=1.0) < 0.8


def test_a_support_in_parts_is_collected_by_all_explorers():
    """As where one environment runs at a time."""
    explorer = build(compose_train("algo=dream_dqn", *tiny("dream_dqn"))).algorithm.explorer
    policy, rollouts = explorer.policy([], 1), explorer.support.rollouts
    first, again, over = (next(iter(policy.start(most, torch_rng(0))["params"].values())) for most in (rollouts, 1, rollouts))
    assert torch.equal(first[:1], again)
    assert torch.equal(over, first.roll(-1, 0))


def test_no_rollout_counts_on_what_follows_its_end():
    """The values after the last step of an episode are not learned, at a time limit neither."""
    algorithm = build(compose_train("algo=dream_dqn", *tiny("dream_dqn"), "env.horizon=2", "algo.support.steps=4")).algorithm
    explorer, known = algorithm.explorer, algorithm.facts
    support = explorer._collect(explorer.policy([], len(known)), algorithm.task, 1.0)
    sums = nothing(*known.shape, torch.device("cpu"))
    after = explorer.cumulative(explorer.slow["estimator"], explorer.encoder.read(explorer.measured, support), sums)
    rewarded = explorer._rewarded(support, sums.belief(), known, sums, after)
    assert bool(support.ended[:, 1].all())
    assert not bool(support.terminated[:, 1].all())
    assert bool(rewarded.terminated[:, 1].all())
