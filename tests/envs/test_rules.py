"""Rules by hand and the exact planner, against known answers."""

from itertools import product

import pytest
import torch
from conftest import compose_train, load

from metarl_cli.envs import lattice
from metarl_cli.envs.lattice import best_return
from metarl_cli.envs.rules import located, regress, sign
from metarl_cli.envs.two_link_arm import COMMANDS
from metarl_cli.errors import UserError
from metarl_cli.experience.rollout import RandomPolicy, collect, run_episodes
from metarl_cli.interfaces import Transitions
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


# -- other families


# The rules' returns: at least so much on the mean of a few tasks, and what the family's paper or the optimum says
@pytest.mark.parametrize(
    ("name", "least", "nothing"),
    [
        ("cartpole_family", 499.0, 400.0),
        ("mountain_car_family", -125.0, -140.0),
        ("acrobot_family", -90.0, -200.0),
        ("pendulum_family", -200.0, -1000.0),
    ],
)
def test_rules_read_the_actuator(name, least, nothing):
    """On tasks of either sign; without a support they take one sign for granted, which half of the tasks do not have."""
    ours = family(name)
    task = ours.sample_tasks(8, "test", numpy_rng(0, "tasks"))
    support = random_support(ours, task, steps=40)
    assert float(returns(ours, task, ours.rule(support)).mean()) >= least
    assert float(returns(ours, task, ours.rule(support._replace(weight=0 * support.weight))).mean()) < nothing


@pytest.mark.parametrize("name", ["navigation_2d", "navigation_2d_continuous", "point_target", "two_link_arm"])
def test_rules_find_the_goal(name):
    """They are worth the optimum; without a support they stay where they are."""
    ours = family(name)
    task = ours.sample_tasks(20, "test", numpy_rng(0, "tasks"))
    support = random_support(ours, task)
    assert float(returns(ours, task, ours.rule(support)).mean()) >= 1.02 * float(ours.optimum(task).mean())
    env = ours.make(task, 1, torch_rng(0, "env"))
    stays = ours.rule(Transitions(*(field[:, :0] for field in support)))
    step = env.step(stays.act(stays.start(1, torch_rng(0, "policy")), env.obs)[0])
    torch.testing.assert_close(step.next_obs, ours.make(task, 1, torch_rng(0, "env")).obs)


def test_a_rule_goes_where_rewards_were_seen():
    ours = family("navigation_2d_sparse")
    task = ours.sample_tasks(30, "test", numpy_rng(0, "tasks"))
    support = random_support(ours, task)
    found = (support.reward.sum((1, 2)) > 0) & (ours.optimum(task) > 0)
    assert 0.3 < float(found.float().mean()) < 0.9
    got = returns(ours, task, ours.rule(support))
    assert float(got[found].mean()) >= 0.95 * float(ours.optimum(task)[found].mean())
    assert float(got[~found].max()) == 0


def test_sparse_navigation_by_hand(float64):
    ours = family("navigation_2d_sparse")
    task = ours.named_task({"goal_x": 0.26, "goal_y": 0.05})
    env = ours.make(task, 1, torch_rng(0, "env"))
    rewards = [float(env.step(torch.tensor([[action]])).reward) for action in (1, 1, 1, 3, 1, 0)]
    assert rewards == [0, 1, 1, 1, 0, 0], "(0.2, 0) is 0.08 away, (0.4, 0.1) is 0.15"
    assert float(ours.optimum(task)) == 19, "the first of the twenty moves is too short"
    with pytest.raises(UserError, match="reward_within needs discrete moves"):
        family("navigation_2d_continuous", "env.reward_within=0.1")


@pytest.mark.parametrize("env", ["navigation_2d", "two_link_arm"])
def test_planning_has_bounded_memory_and_a_longest_horizon(env, monkeypatch):
    ours = family(env)
    task = ours.sample_tasks(5, "test", numpy_rng(0, "tasks"))
    together = ours.optimum(task)
    monkeypatch.setattr(lattice, "PLACES", 2 * (2 * ours.spec.horizon + 1) ** 2)  # two at a time
    assert torch.equal(ours.optimum(task), together)
    assert family(env, f"env.horizon={lattice.LONGEST + 1}").optimum(task) is None
