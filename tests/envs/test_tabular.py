"""Families with few states: their models, their exact values, and the numbers of the papers."""

import itertools

import numpy as np
import pytest
import torch
from conftest import compose_train, load

from metarl_cli.envs.planning import value_iteration
from metarl_cli.errors import UserError
from metarl_cli.seeding import numpy_rng, torch_rng

TABULAR = ["bandit", "bandit_gaussian", "tabular_mdp", "gridworld", "dark_room", "key_to_door"]
GRIDS = ["gridworld", "dark_room", "key_to_door"]
STAY, UP, RIGHT, DOWN, LEFT = range(5)


def family(name: str, *overrides: str):
    module, config = load("env", compose_train(f"env={name}", *overrides).env)
    return module.Family(config)


def sample(ours, num: int, split: str = "train"):
    return ours.sample_tasks(num, split, numpy_rng(0, "tasks", split))


def returns(ours, tasks, num_envs: int, act):
    """The return [M, N] of one whole episode; ``act(t, obs)`` chooses."""
    env = ours.make(tasks, num_envs, torch_rng(0, "env"))
    total, alive = 0.0, torch.ones(env.shape, dtype=torch.bool)
    for t in range(ours.spec.horizon):
        step = env.step(act(t, env.obs))
        total, alive = total + step.reward * alive, alive & ~step.terminated
    return total


def test_value_iteration_equals_trying_every_policy(float64):
    """3 states, 2 actions, 3 steps: 2^9 deterministic policies, each rolled forward exactly."""
    rng, states, actions, horizon = np.random.default_rng(0), 3, 2, 3
    transition, reward = rng.dirichlet(np.ones(states), (states, actions)), rng.normal(size=(states, actions))
    best = np.full(states, -np.inf)
    for flat in itertools.product(range(actions), repeat=horizon * states):
        plan, value = np.reshape(flat, (horizon, states)), np.zeros(states)
        for t in reversed(range(horizon)):
            value = reward[range(states), plan[t]] + transition[range(states), plan[t]] @ value
        best = np.maximum(best, value)
    values, policy = value_iteration(torch.tensor(transition)[None], torch.tensor(reward)[None], horizon)
    assert (values.shape, policy.shape) == ((horizon + 1, 1, states), (horizon, 1, states))
    np.testing.assert_allclose(values[0, 0].numpy(), best, atol=1e-12)
    assert torch.equal(values[-1], torch.zeros(1, states))
    assert torch.equal(policy[-1, 0], torch.tensor(reward).argmax(-1)), "the last action needs no foresight"


@pytest.mark.parametrize("name", TABULAR)
def test_the_model_is_what_the_environment_does(name):
    """Where actions lead, and the rewards they bring, against the model's probabilities and expectations."""
    ours = family(name)
    tasks, num_envs = sample(ours, 2), 2000
    transition, reward = ours.model(tasks)
    assert torch.allclose(transition.sum(-1), torch.ones(()), atol=1e-5)
    counts, totals = torch.zeros_like(transition), torch.zeros_like(reward)
    env = ours.make(tasks, num_envs, torch_rng(0, "env"))
    assert torch.equal(env.obs.mean(1), ours.start(tasks))
    row, rng = torch.arange(2)[:, None].expand(2, num_envs), torch_rng(0, "act")
    for _ in range(60):
        state, action = env.obs.argmax(-1), ours.spec.actions.random(env.obs, rng)
        step = env.step(action)
        counts.index_put_((row, state, action, step.next_obs.argmax(-1)), torch.ones(()), accumulate=True)
        totals.index_put_((row, state, action), step.reward, accumulate=True)
    visits = counts.sum(-1)
    seen = visits > 20
    assert seen.any()
    error = 6 / visits.clamp(min=1).sqrt()  # six standard deviations of unit noise
    assert ((totals / visits.clamp(min=1) - reward).abs() < error + 1e-5)[seen].all()
    assert ((counts / visits.clamp(min=1)[..., None] - transition).abs() < 0.5 * error[..., None] + 1e-5)[seen].all()


@pytest.mark.parametrize("name", TABULAR)
def test_the_best_policy_reaches_the_optimum(name):
    ours = family(name)
    tasks, num_envs = sample(ours, 20), 500
    values, policy = value_iteration(*ours.model(tasks), ours.spec.horizon)
    row = torch.arange(20)[:, None]
    total = returns(ours, tasks, num_envs, lambda t, obs: policy[t][row, obs.argmax(-1)])
    error = total.std(1) / num_envs**0.5
    assert ((total.mean(1) - ours.optimum(tasks)).abs() < 4.5 * error + 1e-4).all()
    assert torch.equal(ours.optimum(tasks), (ours.start(tasks) * values[0]).sum(-1))


@pytest.mark.parametrize("arms", [5, 10, 50])
def test_the_best_of_k_uniform_arms_pays_k_over_k_plus_1(arms):
    ours = family("bandit", f"env.arms={arms}")
    tasks = sample(ours, 20_000)
    optimum = ours.optimum(tasks)
    assert torch.equal(optimum, tasks["mean"].amax(-1))
    assert float(optimum.mean()) == pytest.approx(arms / (arms + 1), abs=4 * float(optimum.std()) / 20_000**0.5)


def test_bandit_pays_by_its_means():
    ours = family("bandit")
    task = ours.named_task({"arm_0": 1.0, "arm_3": 0.0})
    assert task["mean"].tolist() == [[1.0, 0.5, 0.5, 0.0, 0.5]]
    env = ours.make(task, 100, torch_rng(0, "env"))
    pulls = [env.step(torch.full((1, 100), arm)) for arm in (0, 3, 1)]
    assert [float(step.reward.mean()) for step in pulls[:2]] == [1.0, 0.0]
    assert set(pulls[2].reward.flatten().tolist()) == {0.0, 1.0}
    assert all(bool(step.truncated.all()) and not step.terminated.any() for step in pulls), "a pull is an episode"


def test_gaussian_arms_have_normal_means_and_noise():
    ours = family("bandit_gaussian", "env.noise=0.5", "env.location=2.0", "env.scale=3.0")
    mean = sample(ours, 4000)["mean"]
    assert float(mean.mean()) == pytest.approx(2, abs=0.1)
    assert float(mean.std()) == pytest.approx(3, abs=0.1)
    reward = ours.make(ours.named_task({"arm_1": -7.0}), 4000, torch_rng(0, "env")).step(torch.ones(1, 4000).long()).reward
    assert float(reward.mean()) == pytest.approx(-7, abs=0.05)
    assert float(reward.std()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("wrong", ["env.prior=normal", "env.scale=1.5", "env.location=-0.1", "env.noise=1.0"])
def test_bernoulli_arms_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UserError, match="bernoulli"):
        family("bandit", wrong)


def test_named_bandits_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="arm_1 is a probability"):
        family("bandit").named_task({"arm_1": 1.5})
    with pytest.raises(ValueError, match="no such task parameter: arm_5"):
        family("bandit").named_task({"arm_5": 0.5})


def test_random_mdps_are_worth_what_the_papers_are():
    """21.83 for the best policy, recomputed over many tasks; 10 for random actions (100.1 in ten episodes, Duan 2016)."""
    ours = family("tabular_mdp")
    optimum = ours.optimum(sample(ours, 20_000))
    assert float(optimum.mean()) == pytest.approx(21.83, abs=0.1)
    tasks, rng = sample(ours, 4000), torch_rng(0, "act")
    total = returns(ours, tasks, 5, lambda t, obs: ours.spec.actions.random(obs, rng))
    assert float(total.mean()) == pytest.approx(10.0, abs=0.2)


def test_random_mdps_have_the_distributions_they_say():
    tasks = sample(family("tabular_mdp"), 2000)
    transition, reward = tasks["transition"], tasks["reward"]
    assert torch.allclose(transition.sum(-1), torch.ones(()), atol=1e-5)
    assert float(transition.var(-1).mean()) == pytest.approx(9 / 100 / 11 * 10 / 9, rel=0.01), "a Dirichlet's variance"
    assert float(reward.mean()) == pytest.approx(1, abs=0.02)
    assert float(reward.std()) == pytest.approx(1, abs=0.02)


def test_a_random_mdp_is_named_by_its_seed():
    ours = family("tabular_mdp")
    zero, same, other = (ours.named_task(values) for values in ({}, {"seed": 0}, {"seed": 1}))
    assert all(torch.equal(zero[key], same[key]) and not torch.equal(zero[key], other[key]) for key in zero)
    large, next_one = (ours.named_task({"seed": 2.0**24 + more}) for more in (0, 1))  # float32 holds the first alone
    assert not torch.equal(large["transition"], next_one["transition"])
    for wrong in (-1, 0.5):
        with pytest.raises(ValueError, match="seed must be a whole number"):
            ours.named_task({"seed": wrong})


def rewards(ours, task, actions):
    """What a list of actions brings in one environment: rewards and terminations."""
    env = ours.make(task, 1, torch_rng(0, "env"))
    steps = [env.step(torch.tensor([[action]])) for action in actions]
    return [round(float(step.reward), 6) for step in steps], [bool(step.terminated) for step in steps]


def test_gridworld_by_hand():
    ours = family("gridworld")
    moves = [UP, LEFT, RIGHT, RIGHT, DOWN, STAY, UP, DOWN, DOWN]  # the fourth move reaches (2, 1)
    got, ended = rewards(ours, ours.named_task({"goal_x": 2, "goal_y": 1}), moves)
    assert got == [-0.1, -0.1, -0.1, 1.0, -0.1, -0.1, 1.0, -0.1, -0.1]
    assert not any(ended)


def test_gridworld_has_21_goals_and_their_values():
    """VariBAD's grid: -0.1 a step on the way, 1 a step on the goal; 11.07 for an agent that knows where it is."""
    ours = family("gridworld")
    tasks = sample(ours, 3000)
    goals = {(int(x), int(y)) for x, y in zip(tasks["goal_x"], tasks["goal_y"], strict=True)}
    assert goals == {(x, y) for x in range(5) for y in range(5) if max(x, y) > 1}
    total = 0.0
    for x, y in goals:
        (value,) = ours.optimum(ours.named_task({"goal_x": x, "goal_y": y})).tolist()
        assert value == pytest.approx(-0.1 * (x + y - 1) + (15 - (x + y) + 1), abs=1e-4)
        total += value / len(goals)
    assert total == pytest.approx(11.07, abs=0.005)


@pytest.mark.parametrize("overrides", [(), ("env.size=4", "env.start=[0,3]", "env.horizon=4")])
def test_dark_room_is_worth_its_distance(overrides):
    ours = family("dark_room", *overrides)
    horizon, size = ours.spec.horizon, ours.size
    x0, y0 = (4, 4) if not overrides else (0, 3)
    for x, y in itertools.product(range(size), repeat=2):
        (value,) = ours.optimum(ours.named_task({"goal_x": x, "goal_y": y})).tolist()
        assert value == max(0, horizon + 1 - max(1, abs(x - x0) + abs(y - y0)))
    seen = sample(ours, 3000)
    assert len(set(zip(seen["goal_x"].tolist(), seen["goal_y"].tolist(), strict=True))) == size**2


def test_dark_room_by_hand():
    ours = family("dark_room")
    got, ended = rewards(ours, ours.named_task({"goal_x": 5, "goal_y": 3}), [DOWN, RIGHT, STAY, UP, DOWN])
    assert (got, any(ended)) == ([0, 1, 1, 0, 1], False)


def test_key_to_door_by_hand():
    ours = family("key_to_door")
    task = ours.named_task({"key_x": 4, "key_y": 6, "door_x": 4, "door_y": 5})
    got, ended = rewards(ours, task, [UP, UP, UP, DOWN, DOWN, UP, UP, DOWN])
    assert got == [0, 1, 0, 0, 1, 0, 1, 1], "the door without the key is nothing; the key counts once, and anew after the end"
    assert ended == [False, False, False, False, True, False, False, True]
    beside = ours.named_task({"key_x": 4, "key_y": 4, "door_x": 4, "door_y": 4})
    assert rewards(ours, beside, [STAY, STAY]) == ([2, 2], [True, True]), "key, door and start may be one cell"


@pytest.mark.parametrize("horizon", [3, 8, 50])
def test_key_to_door_is_worth_its_distances(horizon):
    """The closed form against value iteration, and against Manhattan's distances by hand."""
    ours = family("key_to_door", f"env.horizon={horizon}")
    tasks = sample(ours, 60)
    optimum = ours.optimum(tasks)
    values, _ = value_iteration(*ours.model(tasks), horizon)
    assert torch.equal(optimum, (ours.start(tasks) * values[0]).sum(-1))
    for row in range(60):
        kx, ky, dx, dy = (float(tasks[name][row]) for name in ("key_x", "key_y", "door_x", "door_y"))
        key = max(1, abs(kx - 4) + abs(ky - 4))
        assert float(optimum[row]) == (key <= horizon) + (key + abs(kx - dx) + abs(ky - dy) <= horizon)


def test_key_to_door_splits_share_no_pair():
    ours = family("key_to_door", "env.size=3", "env.start=[1,1]")
    drawn = {}
    for split in ours.splits:
        tasks = sample(ours, 3000, split)
        drawn[split] = {tuple(row) for row in torch.stack(list(tasks.values()), 1).tolist()}
    assert {split: len(pairs) for split, pairs in drawn.items()} == {"train": 65, "validation": 8, "test": 8}
    assert len(set.union(*drawn.values())) == 81
    with pytest.raises(ValueError, match="no split 'ood'"):
        sample(ours, 1, "ood")


def test_key_to_door_may_hide_the_key():
    ours = family("key_to_door", "env.observe=cell")
    env = ours.make(ours.named_task({"key_x": 4, "key_y": 4, "door_x": 0, "door_y": 0}), 1, torch_rng(0, "env"))
    step = env.step(torch.tensor([[STAY]]))
    assert (float(step.reward), step.obs.shape, int(step.obs.argmax())) == (1.0, (1, 1, 81), 40)
    assert int(env.state) == 81 + 40


@pytest.mark.parametrize("name", GRIDS)
def test_grids_refuse_what_is_not_a_cell(name):
    ours = family(name)
    key = next(iter(ours.parameters))
    for wrong in (-1, 9, 0.5):
        with pytest.raises(ValueError, match=f"{key} must be a whole number from 0"):
            ours.named_task({key: wrong})
    with pytest.raises(UserError, match="not on a grid"):
        family(name, "env.start=[0,9]")


def test_a_grid_without_a_goal_is_refused():
    with pytest.raises(UserError, match="no cell is left for a goal"):
        family("gridworld", "env.clear=4")
    with pytest.raises(UserError, match="leaves a split without any"):
        family("key_to_door", "env.size=2", "env.start=[0,0]", "env.held_out=0.01")
