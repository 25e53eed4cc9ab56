"""Plans and demonstrations where the states are few: soft values, exact returns, grids of sprites."""

import numpy as np
import pytest
import torch
from conftest import compose_train, load
from torch.nn.functional import one_hot

from metarl_cli.envs.planning import TablePolicy, expected, policy_values, soft_value_iteration, value_iteration
from metarl_cli.experience.demonstrations import demonstrate
from metarl_cli.experience.rollout import RandomPolicy, run_episodes
from metarl_cli.seeding import numpy_rng, torch_rng


def family(name: str, *overrides: str):
    module, config = load("env", compose_train(f"env={name}", *overrides).env)
    return module.Family(config)


def sample(ours, num: int, split: str = "train"):
    return ours.sample_tasks(num, split, numpy_rng(0, "tasks", split))


def process(states=4, actions=3, tasks=2):
    rng = np.random.default_rng(0)
    transition = rng.dirichlet(np.ones(states), (tasks, states, actions))
    return torch.tensor(transition), torch.tensor(rng.normal(size=(tasks, states, actions)))


def test_soft_values_solve_their_linear_equations(float64):
    """Given the policy, V = sum_a pi (R - log pi / beta + P V) is linear in all values of all steps: one solve for them."""
    (transition, reward), horizon, beta = process(), 5, 2.0
    values, choices = soft_value_iteration(transition, reward, horizon, beta)
    assert torch.allclose(choices.exp().sum(-1), torch.ones(()))
    for m in range(2):
        size = 4 * horizon
        matrix, right = torch.eye(size), torch.zeros(size)
        for t in range(horizon):
            now, chosen = slice(4 * t, 4 * t + 4), choices[t, m].exp()
            right[now] = (chosen * (reward[m] - choices[t, m] / beta)).sum(-1)
            if t + 1 < horizon:
                matrix[now, 4 * t + 4 : 4 * t + 8] -= torch.einsum("sa,san->sn", chosen, transition[m])
        solved = torch.linalg.solve(matrix, right).view(horizon, 4)
        torch.testing.assert_close(values[:-1, m], solved, rtol=0, atol=1e-12)


def test_soft_choices_are_those_of_their_values_and_become_optimal(float64):
    (transition, reward), horizon = process(), 4
    values, choices = soft_value_iteration(transition, reward, horizon, 3.0)
    worth = reward + expected(transition, values[1])
    torch.testing.assert_close(choices[0], 3.0 * (worth - values[0][..., None]))
    best, plan = value_iteration(transition, reward, horizon)
    sharp, sure = soft_value_iteration(transition, reward, horizon, 1e4)
    torch.testing.assert_close(sharp, best, rtol=0, atol=1e-3)
    assert torch.equal(sure.argmax(-1), plan)


def test_the_same_moves_for_all_tasks_are_one_product(float64):
    transition, reward = process()
    shared = transition[:1].expand(2, -1, -1, -1)
    torch.testing.assert_close(expected(shared, reward[..., 0]), expected(shared.contiguous(), reward[..., 0]))


@pytest.mark.parametrize("name", ["tabular_mdp", "gridworld", "sprite_grid"])
def test_the_expected_return_is_the_mean_of_episodes(name):
    """Of a plan for other rewards, so that it is not the optimum."""
    ours = family(name)
    tasks = sample(ours, 3)
    transition, reward = ours.model(tasks)
    _, best = value_iteration(transition, reward.flip(0), ours.spec.horizon)
    policy = TablePolicy(one_hot(best.movedim(0, 1), ours.spec.actions.size).to(reward.dtype))
    returns, _ = run_episodes(ours, tasks, policy, 1000, torch_rng(0, "env"), torch_rng(0, "act"))
    error = returns[0].std(1) / 1000**0.5
    assert ((returns[0].mean(1) - ours.expected_return(tasks, policy)).abs() < 4.5 * error + 1e-4).all()
    assert ours.expected_return(tasks, RandomPolicy(ours.spec.actions)) is None, "what is no table can only be sampled"


@pytest.mark.parametrize("name", ["tabular_mdp", "gridworld", "sprite_grid"])
def test_demonstrations_are_soft_optimal_in_a_new_environment(name):
    ours = family(name)
    tasks, horizon = sample(ours, 3), ours.spec.horizon
    given = demonstrate(ours, tasks, 500, torch_rng(0, "demonstrations"))
    transition, reward = ours.model(given.task)
    _, choices = soft_value_iteration(transition, reward, horizon, ours.rationality)
    expected_returns = (ours.start(given.task) * policy_values(transition, reward, choices.movedim(0, 1).exp())).sum(-1)
    returns = given.experience.reward.sum(1)
    error = returns.std(1) / 500**0.5
    assert ((returns.mean(1) - expected_returns).abs() < 4.5 * error + 1e-4).all()
    assert given.experience.obs.shape == (3, horizon, 500, ours.num_states)
    assert torch.equal(given.first(5).experience.action, given.experience.action[:, :, :5])
    same = {key: torch.equal(value, tasks[key]) for key, value in given.task.items()}
    new = {"tabular_mdp": {"transition"}, "sprite_grid": {"grid"}}.get(name, set())
    assert {key for key, equal in same.items() if not equal} == new
    again = demonstrate(ours, tasks, 500, torch_rng(0, "demonstrations"))
    assert torch.equal(again.experience.action, given.experience.action)


def test_a_grid_of_sprites_is_worth_its_kinds():
    ours = family("sprite_grid")
    task = ours.named_task({"first_goal": 2, "second_goal": 5, "first_trap": 8, "second_trap": 11, "grid": 7})
    kind, features = ours.drawn(task)
    worth = {2: 1.0, 5: 1.0, 8: -1.0, 11: -1.0}
    assert ours.rewards(task)[0].tolist() == [worth.get(k, 0.0) for k in kind[0].tolist()]
    assert torch.equal(ours.drawn(task)[1], features), "a grid is always the same"
    noise = (features - ours.of_kind[kind]).std()
    assert float(noise) == pytest.approx(1.0, abs=0.05)
    env = ours.make(task, 4000, torch_rng(0, "env"))
    assert len(env.obs.argmax(-1).unique()) == 64, "episodes begin anywhere"
    step = env.step(ours.spec.actions.random(env.obs, torch_rng(0, "act")))
    assert torch.equal(step.reward[0], ours.rewards(task)[0][step.next_obs[0].argmax(-1)])


def test_the_splits_of_sprites_share_no_rewards():
    ours = family("sprite_grid")
    found = {split: ours.worth(sample(ours, 2000, split)).unique(dim=0) for split in ours.splits}
    assert {split: len(rows) for split, rows in found.items()} == {"train": 180, "validation": 23, "test": 22}
    assert len(torch.cat(list(found.values())).unique(dim=0)) == 225
    candidates = ours.candidates(tasks := sample(ours, 4, "test"))
    assert candidates.shape == (4, 225, 64)
    assert ((candidates == ours.rewards(tasks)[:, None]).all(-1).sum(1) >= 1).all(), "the true one is among them"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"first_goal": 6}, "first_goal must be a whole number from 0 to 5, got 6"),
        ({"second_trap": 5}, "second_trap must be a whole number from 6 to 11, got 5"),
        ({"grid": 0.5}, "grid must be a whole number from 0"),
    ],
)
def test_sprites_that_make_no_sense_are_refused(values, said):
    with pytest.raises(ValueError, match=said):
        family("sprite_grid").named_task(values)


@pytest.mark.parametrize(
    ("episode", "said"),
    [
        (([0, 1], [2]), "has 2 states and 1 actions: it needs as many of both, 1 to 15"),
        (([64], [0]), "state 64 is none of 0 to 63"),
        (([0], [5]), "action 5 is none of 0 to 4"),
        (([0, 9], [2, 0]), "action 2 never leads from state 0 to state 9"),
    ],
)
def test_episodes_that_cannot_have_been_are_refused(episode, said):
    ours = family("sprite_grid")
    with pytest.raises(ValueError, match=f"episode 2.*{said}"):
        ours.recorded(ours.named_task({}), [([0, 1], [2, 0]), episode])
