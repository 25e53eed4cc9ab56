"""Rules by hand and the exact planner, against known answers."""

from itertools import product

import pytest
import torch
from conftest import compose_train, load

from metarl_cli.envs.lattice import best_return
from metarl_cli.envs.rules import located, regress, sign
from metarl_cli.envs.two_link_arm import COMMANDS
from metarl_cli.experience.rollout import RandomPolicy, collect, run_episodes
from metarl_cli.seeding import numpy_rng, torch_rng


def family(name: str, *overrides: str):
    module, config = load("env", compose_train(f"env={name}", *overrides).env)
    return module.Family(config)


def random_support(ours, task, rollouts=8, steps=20):
    policy, env = RandomPolicy(ours.spec.actions), ours.make(task, rollouts, torch_rng(0, "support"))
    return collect(env, policy, policy.start(rollouts, torch_rng(0, "random")), steps, one_episode=True)


def returns(ours, task, policy, episodes=1):
    return run_episodes(ours, task, policy, episodes, torch_rng(0, "episodes"), torch_rng(0, "policy"))[0][0].mean(1)


# -- least squares


def test_least_squares_by_hand():
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [5.0, 5.0]])[None, :, None]  # [1, T, 1, 2]
    target = torch.tensor([2.0, -3.0, -1.0, 99.0])[None, :, None]
    weight = torch.tensor([1.0, 1.0, 1.0, 0.0])[None, :, None]
    assert regress(features, target, weight).flatten().tolist() == pytest.approx([2, -3])
    assert regress(features, target, 0 * weight).tolist() == [[0, 0]]
    same = torch.ones(1, 4, 1, 2)
    assert regress(same, 4 * weight, weight).flatten().tolist() == pytest.approx([2, 2]), "the smallest of many that fit"


def test_a_point_is_located_by_distances():
    place = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])[None, :, None]
    distance = torch.tensor([5.0, 20**0.5, 18**0.5])[None, :, None]  # from (3, 4)
    assert located(place, distance, torch.ones(1, 3, 1)).flatten().tolist() == pytest.approx([3, 4], rel=1e-4)
    assert located(place, distance, torch.zeros(1, 3, 1)).tolist() == [[0, 0]]


def test_sign_of_nothing_is_one():
    assert sign(torch.tensor([-0.1, 0.0, 3.0])).tolist() == [-1, 1, 1]


# -- planning


def test_planning_equals_every_sequence_of_moves():
    reward, moves = torch.randn(2, 7, 7, generator=torch_rng(0, "reward")), [(0, 0), (1, 0), (-1, 1)]
    best = []
    for row in reward:
        totals = []
        for way in product(moves, repeat=3):
            x = y = 3
            total = 0.0
            for dx, dy in way:
                x, y = x + dx, y + dy
                total += float(row[x, y])
            totals.append(total)
        best.append(max(totals))
    assert best_return(reward, moves, 3).tolist() == pytest.approx(best)


# -- the two-link arm


def test_the_arm_by_hand(float64):
    ours = family("two_link_arm")
    for twist, angles in ((0.0, (-0.8, 1.8)), (torch.pi / 2, (-0.9, 1.9))):
        task = ours.named_task({"goal_x": 0.5, "goal_y": 0.0, "twist": twist})
        step = ours.make(task, 1, torch_rng(0, "env")).step(torch.tensor([[7]]))  # the first joint alone, forwards
        one, two = torch.tensor(angles, dtype=torch.float64)
        x, y = 0.5 * (one.cos() + (one + two).cos()), 0.5 * (one.sin() + (one + two).sin())
        expected = [one.cos(), one.sin(), two.cos(), two.sin(), x, y]
        assert step.next_obs.flatten().tolist() == pytest.approx([float(value) for value in expected])
        assert float(step.reward) == pytest.approx(-float(torch.hypot(x - 0.5, y)))


def test_the_arm_is_worth_its_best_sequence(float64):
    ours = family("two_link_arm", "env.horizon=3")
    task = ours.sample_tasks(4, "test", numpy_rng(0, "tasks"))
    env, total = ours.make(task, 9**3, torch_rng(0, "env")), 0.0
    for actions in torch.tensor(list(product(range(9), repeat=3))).T:
        total = total + env.step(actions.expand(4, -1)).reward
    torch.testing.assert_close(ours.optimum(task), total.max(1).values)
    assert len(COMMANDS) == 9


def test_what_is_known_of_an_arm_is_smooth_on_the_circle():
    ours = family("two_link_arm")
    known = [ours.knowledge(ours.named_task({"twist": twist})) for twist in (3.1415, -3.1415)]
    torch.testing.assert_close(*known, rtol=0, atol=1e-3)
    assert known[0].tolist() == [pytest.approx([0, 0.5, -1, 0], abs=1e-3)]


def test_each_hidden_number_of_the_arm_is_needed():
    """The support of a task that is alike but for one number costs at least a tenth of what a support brings."""
    ours = family("two_link_arm")
    task = ours.sample_tasks(30, "validation", numpy_rng(0, "tasks"))
    own = random_support(ours, task)
    adapted, stays = (float(returns(ours, task, ours.rule(s)).mean()) for s in (own, own._replace(weight=0 * own.weight)))
    assert adapted >= 1.02 * float(ours.optimum(task).mean())
    for key, values in task.items():
        rule = ours.rule(random_support(ours, task | {key: values.roll(1)}))
        swapped = float(returns(ours, task, rule).mean())
        assert adapted - swapped >= 0.1 * (adapted - stays)
