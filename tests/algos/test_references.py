"""The references know the answer: indices against published values, plans against brute force, rewards against the table."""

from functools import lru_cache

import numpy as np
import pytest
import torch
from conftest import algorithms, compose_train, inherited, load

from metarl_cli.algos.bandit_strategies import gittins_indices
from metarl_cli.algos.mdp_strategies import greatest_mean, sample_process
from metarl_cli.envs.planning import value_iteration
from metarl_cli.envs.tabular import TabularFamily
from metarl_cli.experience.rollout import run_episodes
from metarl_cli.interfaces import Budget, Context, Step
from metarl_cli.seeding import numpy_rng, torch_rng

CPU = torch.device("cpu")
BANDITS = ["gittins", "thompson", "optimistic_thompson", "ucb1", "epsilon_greedy", "greedy"]
EXPLORERS = ["psrl", "opsrl", "ucrl2", "beb", "mdp_epsilon_greedy", "mdp_greedy"]
TERMINATING = "gridworld"  # the family whose episodes end at what is found
GRIDS = ["gridworld", "dark_room", "key_to_door"]


def parts(algo, env, *overrides):
    config = compose_train(f"algo={algo}", f"env={env}", *overrides)
    (env_module, env_config), (module, values) = load("env", config.env), load("algo", config.algo)
    family = env_module.Family(env_config, CPU)
    return family, module.Algo(values, Context(family, None, 0, 0, CPU))


def adapted_to(algorithm, task=None, episodes=None):
    """The policy of a trial, and its number of episodes."""
    return next(algorithm.adapt(task or algorithm.task, Budget(episodes=episodes), torch_rng(0, "support")))


def policy_of(algorithm):
    return adapted_to(algorithm).policy


def trial(family, task, algorithm, num_envs, env_rng, rng, episodes=None):
    """Returns and lengths of the episodes of a trial, ``[episodes, M, N]``."""
    adapted = adapted_to(algorithm, task, episodes)
    return run_episodes(family, task, adapted.policy, num_envs, env_rng, rng, adapted.episodes)


def totals(family, algorithm, tasks, seed=0):
    """Rewards of one trial on each of ``tasks`` tasks, ``[M]``."""
    task = family.sample_tasks(tasks, "test", numpy_rng(seed, "tasks"))
    returns, _ = trial(family, task, algorithm, 1, torch_rng(seed, "env"), torch_rng(seed, "agent"))
    return returns.sum(0).double()[:, 0]


# -- Gittins


# Gittins, Glazebrook and Weber 2011, Multi-armed Bandit Allocation Indices, tables of the Bernoulli process; rows: wins
PUBLISHED = {
    0.5: [[0.5590, 0.3758], [0.7060, 0.5359]],
    0.9: [[0.7029, 0.5001, 0.3796], [0.8001, 0.6346, 0.5163], [0.8452, 0.7072, 0.6010]],
    0.99: [[0.8699, 0.7005, 0.5671], [0.9102, 0.7844, 0.6726], [0.9285, 0.8268, 0.7308]],
}


@pytest.mark.parametrize("discount", PUBLISHED)
def test_gittins_indices_are_the_published_ones(discount):
    expected = torch.tensor(PUBLISHED[discount], dtype=torch.float64)
    found = gittins_indices(1.0, 1.0, discount, 10)[: len(expected), : len(expected)]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_gittins_indices_hardly_depend_on_the_length_of_the_trial():
    short, long = gittins_indices(1.0, 1.0, 0.99, 20), gittins_indices(1.0, 1.0, 0.99, 100)
    inside = torch.arange(21)[:, None] + torch.arange(21) <= 20
    torch.testing.assert_close(short[inside], long[:21, :21][inside], rtol=0, atol=1e-5)
    assert bool((long[:50, :50] >= 0).all())


def test_gittins_is_optimal():
    """On two arms, against dynamic programming over both: the greater index is the better arm, everywhere in reach."""
    discount, depth = 0.5, 14  # 0.5^14: what lies beyond cannot change a comparison as close as those below

    @lru_cache(None)
    def value(arms, left):
        return max(pull(arms, arm, left) for arm in (0, 1)) if left else 0.0

    def pull(arms, arm, left):
        (a, b), other = arms[arm], arms[1 - arm]
        p = a / (a + b)
        after = [value(tuple(sorted((own, other))), left - 1) for own in ((a + 1, b), (a, b + 1))]
        return p * (1 + discount * after[0]) + (1 - p) * discount * after[1]

    table, compared = gittins_indices(1.0, 1.0, discount, 6), 0
    states = [(1 + w, 1 + n) for w in range(4) for n in range(4 - w)]
    for first in states:
        for second in states:
            better = pull((first, second), 0, depth) - pull((first, second), 1, depth)
            if abs(better) > 2 * discount**depth / (1 - discount):
                index = [float(table[a - 1, b - 1]) for a, b in (first, second)]
                assert (index[0] > index[1]) == (better > 0), (first, second)
                compared += 1
    assert compared > 80


# -- Bandits


@pytest.mark.parametrize("algo", BANDITS)
def test_bandit_strategies_are_trial_algorithms(algo):
    _, algorithm = parts(algo, "bandit", "algo.episodes=7")
    assert algorithm.adapts_by == "memory"
    assert (adapted_to(algorithm).episodes, algorithm.train_step(), algorithm.env_steps) == (7, {}, 0)
    algorithm.load_state_dict(algorithm.state_dict())
    algorithm.load_weights(algorithm.weights())


def seen(pulls, wins):
    return {"pulls": torch.tensor(pulls), "reward": torch.tensor(wins), "rng": torch_rng(0, "r")}


def test_indices_by_hand():
    memory = seen([[[4.0, 1.0, 0.0]]], [[[3.0, 0.0, 0.0]]])
    mean = torch.tensor([[[4 / 6, 1 / 3, 1 / 2]]])
    torch.testing.assert_close(policy_of(parts("greedy", "bandit")[1]).index(memory), mean)
    radius = (2 * np.log(6) / torch.tensor([[[6.0, 3.0, 2.0]]])).sqrt()
    torch.testing.assert_close(policy_of(parts("ucb1", "bandit", "algo.bonus=0.5")[1]).index(memory), mean + 0.5 * radius)
    table = gittins_indices(1.0, 1.0, 0.99, 20)
    expected = torch.stack([table[3, 1], table[0, 1], table[0, 0]])[None, None]
    torch.testing.assert_close(policy_of(parts("gittins", "bandit", "algo.episodes=20")[1]).index(memory), expected)


def test_a_longer_trial_than_configured():
    """``metarl test trial=`` makes trials longer: the table of indices grows with them."""
    family, algorithm = parts("gittins", "bandit", "algo.episodes=5")
    task = family.sample_tasks(3, "test", numpy_rng(0, "tasks"))
    returns, _ = trial(family, task, algorithm, 2, torch_rng(0, "env"), torch_rng(0, "trial"), episodes=30)
    assert returns.shape == (30, 3, 2)


def test_thompson_explores_arms_without_noise():
    family, algorithm = parts("thompson", "bandit_gaussian", "env.noise=0.0", "algo.episodes=60")
    task = family.sample_tasks(200, "test", numpy_rng(0, "tasks"))
    returns, _ = trial(family, task, algorithm, 1, torch_rng(0, "env"), torch_rng(0, "trial"))
    missed = family.optimum(task) - returns[-10:].mean((0, 2))
    assert float(missed.mean()) < 0.1, "every arm was tried, and one pull says all"


@pytest.mark.parametrize("env", ["bandit", "bandit_gaussian"])
def test_thompson_samples_the_posterior(env):
    _, algorithm = parts("thompson", env)
    pulls, reward = [4.0, 0.0, 9.0], [3.0, 0.0, 2.0]
    memory = seen([[pulls] * 50_000], [[reward] * 50_000])
    found = policy_of(algorithm).index(memory)[0].double()
    n, s = torch.tensor(pulls).double(), torch.tensor(reward).double()
    if env == "bandit":  # Beta(1 + wins, 1 + losses)
        mean, variance = (1 + s) / (2 + n), (1 + s) * (1 + n - s) / ((2 + n) ** 2 * (3 + n))
    else:  # prior N(0, 1), noise 1
        mean, variance = s / (1 + n), 1 / (1 + n)
    torch.testing.assert_close(found.mean(0), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(found.var(0), variance, rtol=0.03, atol=0)
    optimistic = policy_of(parts("optimistic_thompson", env)[1]).index(memory)[0].double()
    assert bool((optimistic >= mean - 1e-6).all())


def test_the_prior_is_the_family_s():
    _, algorithm = parts("greedy", "bandit", "env.location=0.4", "env.scale=0.2")  # variance 0.2²/12: that of Beta(37, 37)
    assert algorithm.prior.mean == pytest.approx(0.5)
    assert algorithm.prior.pulls == pytest.approx(74)
    _, algorithm = parts("greedy", "bandit_gaussian", "env.location=2.0", "env.scale=0.5", "env.noise=3.0")
    assert (algorithm.prior.mean, algorithm.prior.pulls) == (2.0, pytest.approx(36))


def test_epsilon_is_a_share_of_random_arms():
    _, algorithm = parts("epsilon_greedy", "bandit", "algo.epsilon=0.3")
    memory = seen([[[1.0, 0.0, 0.0, 0.0, 0.0]] * 50_000], [[[1.0, 0.0, 0.0, 0.0, 0.0]] * 50_000])
    action, _ = policy_of(algorithm).act(memory, torch.ones(1, 50_000, 1))
    share = torch.bincount(action.flatten(), minlength=5) / 50_000
    torch.testing.assert_close(share, torch.tensor([0.76, 0.06, 0.06, 0.06, 0.06]), rtol=0, atol=0.01)


@pytest.mark.parametrize("algo", ["gittins", "ucb1", "greedy"])
def test_a_batch_of_trials_is_each_trial_alone(algo):
    _, algorithm = parts(algo, "bandit", "algo.episodes=20")
    tasks, envs = 3, 4
    rewards = torch.randint(2, (20, tasks, envs), generator=torch_rng(1, "rewards")).float()
    obs = torch.ones(tasks, envs, 1)
    no = torch.zeros(tasks, envs, dtype=torch.bool)

    def run(rows, columns):
        task = {"mean": torch.full((len(rows), 5), 0.5)}
        policy = adapted_to(algorithm, task).policy
        memory, actions = policy.start(len(columns), torch_rng(0, "r")), []
        pick = np.ix_(rows, columns)
        for reward in rewards:
            action, memory = policy.act(memory, obs[pick])
            memory = policy.observe(memory, obs[pick], action, Step(obs[pick], reward[pick], no[pick], ~no[pick], obs[pick]))
            actions.append(action)
        return torch.stack(actions)

    whole = run(range(tasks), range(envs))
    for m in range(tasks):
        for n in range(envs):
            assert torch.equal(whole[:, m : m + 1, n : n + 1], run([m], [n]))


# What independent runs of the same strategies found, to their last digit (conf's constants, except where named).
@pytest.mark.parametrize(
    ("algo", "n", "arms", "tasks", "expected", "overrides"),
    [
        ("gittins", 10, 5, 2000, 6.59, []),
        ("gittins", 100, 10, 500, 83.7, []),
        ("thompson", 10, 10, 2000, 5.58, []),
        ("thompson", 100, 50, 300, 64.5, []),
        ("ucb1", 10, 5, 2000, 6.66, ["algo.bonus=0.1"]),
        ("ucb1", 100, 5, 500, 78.4, []),
        ("greedy", 10, 50, 1000, 6.6, []),  # the paper's
        ("greedy", 100, 50, 500, 78.0, []),
    ],
)
def test_bandit_rewards_of_a_trial(algo, n, arms, tasks, expected, overrides):
    reward = totals(*parts(algo, "bandit", f"algo.episodes={n}", f"env.arms={arms}", *overrides), tasks)
    assert float(reward.mean()) == pytest.approx(expected, abs=3 * float(reward.std()) / tasks**0.5)


def test_gaussian_bandits_are_learned():
    best = float(torch.randn(100_000, 5, generator=torch_rng(0, "best")).amax(1).mean()) * 100
    for algo in ("thompson", "ucb1", "greedy"):
        reward = totals(*parts(algo, "bandit_gaussian"), 300)
        assert 0.6 * best < float(reward.mean()) < best, algo


# -- Markov decision processes


@pytest.mark.parametrize("algo", [*EXPLORERS, "oracle"])
def test_explorers_are_trial_algorithms(algo):
    _, algorithm = parts(algo, "tabular_mdp", "algo.episodes=3")
    assert algorithm.adapts_by == "memory"
    assert (adapted_to(algorithm).episodes, algorithm.train_step()) == (3, {})


def test_the_posterior_by_hand():
    """Two transitions from state 0 by action 1, to states 2 and 2, rewards 3 and 0."""
    family, algorithm = parts("mdp_greedy", "tabular_mdp")
    task = family.sample_tasks(1, "train", numpy_rng(0, "t"))
    policy = adapted_to(algorithm, task).policy
    memory = policy.start(1, torch_rng(0, "r"))
    zero, two = family.observe(torch.tensor([[[0]]])), family.observe(torch.tensor([[[2]]]))
    no = torch.zeros(1, 1, dtype=torch.bool)
    for reward in (3.0, 0.0):
        memory = policy.observe(memory, zero, torch.tensor([[1]]), Step(two, torch.tensor([[reward]]), no, no, two))
    assert int(memory["clock"]) == 2
    assert float(memory["seen"].sum()) == float(memory["seen"][0, 0, 0, 1, 2]) == 2
    assert float(memory["reward"].sum()) == float(memory["reward"][0, 0, 0, 1]) == 3
    transition, reward = torch.full((1, 10, 5, 10), 0.1), torch.ones(1, 10, 5)  # Dirichlet(1, ..., 1) and N(1, 1)
    transition[0, 0, 1], reward[0, 0, 1] = 1 / 12, (1 + 3) / 3
    transition[0, 0, 1, 2] = 3 / 12
    found = policy.plan(memory["seen"][0], memory["reward"][0], memory["final"][0], torch_rng(0, "r"))
    assert torch.equal(found, value_iteration(transition, reward, 10)[1])
    assert bool((found[:, 0, 0] == 1).all())


def test_a_sampled_process_has_the_posterior_moments():
    weights = torch.tensor([3.0, 1.0, 1.0]).expand(100_000, 1, 1, 3)
    mean, std = torch.full((100_000, 1, 1), 4 / 3), torch.full((100_000, 1, 1), 3**-0.5)
    transition, reward = sample_process(weights, mean, std, torch_rng(0, "r"))
    torch.testing.assert_close(transition.sum(-1), torch.ones(100_000, 1, 1))
    torch.testing.assert_close(transition.mean(0)[0, 0], torch.tensor([0.6, 0.2, 0.2]), rtol=0, atol=0.005)
    torch.testing.assert_close(transition.var(0)[0, 0], torch.tensor([0.04, 0.16 / 6, 0.16 / 6]), rtol=0.05, atol=0)
    assert float(reward.mean()) == pytest.approx(4 / 3, abs=0.01)
    assert float(reward.var()) == pytest.approx(1 / 3, rel=0.03)


def test_the_greatest_mean_is_that_of_the_linear_programme():
    """max p·v over p in the simplex with ‖p - p̂‖₁ at most the radius."""
    from scipy.optimize import linprog  # here, as it is slow to import

    rng = np.random.default_rng(0)
    for _ in range(30):
        p, value, radius = rng.dirichlet(np.ones(5)), rng.normal(size=5), rng.uniform(0, 2.5)
        distance = torch.full((1, 1, 1), radius, dtype=torch.float64)
        found = greatest_mean(torch.as_tensor(p)[None, None, None], distance, torch.as_tensor(value)[None])
        eye = np.eye(5)  # variables: p and the absolute differences
        result = linprog(
            np.concatenate([-value, np.zeros(5)]),
            A_ub=np.block([[eye, -eye], [-eye, -eye], [np.zeros((1, 5)), np.ones((1, 5))]]),
            b_ub=np.concatenate([p, -p, [radius]]),
            A_eq=[[1] * 5 + [0] * 5],
            b_eq=[1],
        )
        assert float(found) == pytest.approx(-result.fun, abs=1e-9)


def random_memory(family, batch):
    rng = torch_rng(3, "memory")
    states, actions = family.num_states, family.spec.actions.size
    seen = torch.randint(3, (batch, states, actions, states), generator=rng).float()
    return seen, torch.randn(batch, states, actions, generator=rng) * seen.sum(-1), torch.zeros(batch, states)


@pytest.mark.parametrize("algo", ["ucrl2", "beb", "mdp_greedy"])
def test_a_batch_of_plans_is_each_plan_alone(algo):
    family, algorithm = parts(algo, "tabular_mdp")
    memory = random_memory(family, 6)
    policy = policy_of(algorithm)
    whole = policy.plan(*memory, torch_rng(0, "r"))
    alone = [policy.plan(*(x[i : i + 1] for x in memory), torch_rng(0, "r")) for i in range(6)]
    assert torch.equal(whole, torch.cat(alone, 1))


def test_what_the_variants_add_vanishes_with_its_constant():
    family, greedy = parts("mdp_greedy", "tabular_mdp")
    memory = random_memory(family, 4)
    greedy = policy_of(greedy)
    expected = greedy.plan(*memory, torch_rng(0, "r"))
    for algo, override in (("ucrl2", "algo.radius=1e-9"), ("beb", "algo.bonus=1e-9")):
        found = policy_of(parts(algo, "tabular_mdp", override)[1]).plan(*memory, torch_rng(0, "r"))
        assert torch.equal(found, expected), algo
    counts = (1e6 * memory[0], 1e6 * memory[1], memory[2])  # so much seen that a sample is the mean
    for algo in ("psrl", "opsrl"):
        found = policy_of(parts(algo, "tabular_mdp")[1]).plan(*counts, torch_rng(0, "r"))
        assert (found == greedy.plan(*counts, torch_rng(0, "r"))).float().mean() > 0.98, algo


def test_the_end_of_an_episode_is_worth_nothing():
    """Action 1 pays 0.9 and ends the episode in state 1; action 0 pays 0.5 and goes on: better while two steps are left."""
    _, algorithm = parts("mdp_greedy", "tabular_mdp", "env.states=2", "env.actions=2", "env.horizon=3")
    seen, reward = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2)
    seen[0, 0, 0, 0], reward[0, 0, 0] = 1e6, 0.5e6
    seen[0, 0, 1, 1], reward[0, 0, 1] = 1e6, 0.9e6
    policy = policy_of(algorithm)
    plans = [policy.plan(seen, reward, torch.tensor([[0.0, end]]), torch_rng(0, "r"))[:, 0, 0].tolist() for end in (0, 1)]
    assert plans == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize("env", ["tabular_mdp", "bandit", *GRIDS])
def test_the_oracle_reaches_the_optimum(env):
    family, algorithm = parts("oracle", env, "algo.episodes=4", *(["env.size=4", "env.start=[1,1]"] if env in GRIDS else []))
    assert isinstance(family, TabularFamily)
    task = family.sample_tasks(50, "test", numpy_rng(0, "tasks"))
    returns, _ = trial(family, task, algorithm, 10, torch_rng(0, "env"), torch_rng(0, "agent"))  # [4, M, 10]
    gap = returns.double().mean((0, 2)) - family.optimum(task).double()
    assert abs(float(gap.mean())) <= 3 * float(gap.std()) / 50**0.5 + 1e-6


@pytest.mark.parametrize("algo", EXPLORERS)
def test_explorers_learn_where_episodes_end_early(algo):
    family, algorithm = parts(algo, TERMINATING, "algo.episodes=3")
    task = family.sample_tasks(4, "test", numpy_rng(0, "tasks"))
    returns, _ = trial(family, task, algorithm, 2, torch_rng(0, "env"), torch_rng(0, "agent"))
    assert returns.shape == (3, 4, 2)
    assert bool(returns.isfinite().all())


# The same, for processes: independent runs, or the paper where it is met.
@pytest.mark.parametrize(
    ("algo", "n", "tasks", "expected", "overrides"),
    [
        ("oracle", 10, 300, 218.3, []),
        ("psrl", 10, 300, 134.2, []),
        ("psrl", 50, 100, 905, []),
        ("beb", 10, 300, 151.8, ["algo.bonus=0.5"]),
        ("beb", 50, 100, 965, []),
        ("mdp_greedy", 25, 200, 422, []),
        ("mdp_epsilon_greedy", 10, 200, 100.1, ["algo.epsilon=1.0"]),
    ],
)
def test_mdp_rewards_of_a_trial(algo, n, tasks, expected, overrides):
    reward = totals(*parts(algo, "tabular_mdp", f"algo.episodes={n}", *overrides), tasks)
    assert float(reward.mean()) == pytest.approx(expected, abs=3 * float(reward.std()) / tasks**0.5)


# -- What does not fit


@pytest.mark.parametrize("algo", BANDITS)
def test_bandit_strategies_refuse_other_families(algo):
    with pytest.raises(ValueError, match="bandits"):
        parts(algo, "tabular_mdp")


def test_gittins_refuses_gaussian_arms():
    with pytest.raises(ValueError, match="Bernoulli"):
        parts("gittins", "bandit_gaussian")


@pytest.mark.parametrize("algo", [*EXPLORERS, "oracle"])
def test_explorers_refuse_families_without_a_table(algo):
    with pytest.raises(ValueError, match="table of states"):
        parts(algo, "cartpole_family")


def test_every_reference_is_tested():
    of = {name: inherited("algo", name)["module"] for name in algorithms(learns=False)}
    assert {k for k, v in of.items() if v == "bandit_strategies"} == set(BANDITS)
    assert {k for k, v in of.items() if v == "mdp_strategies"} == {*EXPLORERS, "oracle"}
