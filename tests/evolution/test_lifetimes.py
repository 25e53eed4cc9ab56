"""Lifetimes: each row as if it lived alone, hyper-parameters that do what they say, gradients worked out one by one."""

from functools import cache

import pytest
import torch
from conftest import compose_train, flat, load, tiny

from metarl_cli.adaptation import gradient as inner_loop
from metarl_cli.evolution.genomes import optimizer as genome
from metarl_cli.evolution.lifetimes import dqn as dqn_life
from metarl_cli.experience.exploration import EpsilonGreedy
from metarl_cli.experience.rollout import collect as collected
from metarl_cli.interfaces import Transitions
from metarl_cli.networks.optimizers import Adam
from metarl_cli.networks.q_network import structured
from metarl_cli.networks.stacked import fresh
from metarl_cli.seeding import CommonRandomNumbers, numpy_rng, torch_rng


@cache
def composed(algo, env):
    return compose_train(f"algo={algo}", f"env={env}", *tiny(algo))


def made(kind, env="cartpole_family", **choices):
    """A lifetime, small but for its ``choices``, the learner and the family."""
    config = composed({"gradient": "evo_dqn", "dqn": "evo_hyper"}[kind], env)
    module, parsed = load("env", config.env)
    family = module.Family(parsed)
    module, parsed = load("learner", config.learner)
    learner = module.Learner(parsed, family.spec)
    values = config.algo.config.lifetime.values
    chosen = {k: values[k] | v if isinstance(v, dict) else v for k, v in choices.items()}
    module, parsed = load("lifetime", values | chosen, "algo.lifetime")
    return module.Lifetime(parsed, learner, family, torch.device("cpu")), learner, family


def tasks(family, num):
    return family.sample_tasks(num, "train", numpy_rng(0, "tasks"))


def repeated(values, copies):
    return {k: v.repeat(copies, *[1] * (v.dim() - 1)) for k, v in values.items()}


def hyper(lifetime, **more):
    """The lifetime's own hyper-parameters, but for those of each row."""
    return {"hyper": lifetime.default["hyper"] | {k: torch.tensor(v) for k, v in more.items()}}


def close(one, other, atol=1e-5):
    for k in one:
        torch.testing.assert_close(one[k], other[k], rtol=0, atol=atol)


# -- the DQN


def begun(lifetime, learner, family, num, traits, copies=1, seed=0):
    params = repeated(fresh(learner, num, torch_rng(seed, "weights")), copies)
    with CommonRandomNumbers(copies):
        return lifetime.begin(params, traits, repeated(tasks(family, num), copies), torch_rng(seed, "life"), copies)


def held(life):
    """What its replay holds, ``[M, C, ...]`` each; the rest of its room means nothing."""
    return life.replay.state_dict()["data"]


SETTINGS = {
    "lr": [1e-3, 3e-2, 1e-2],
    "gamma": [0.5, 0.99, 0.9],
    "epsilon_end": [0.0, 0.5, 0.1],
    "epsilon_decay": [0.1, 1.0, 0.5],
    "batch": [2.0, 8.0, 5.4],
    "target_every": [1.0, 2.0, 3.0],
}


@pytest.mark.parametrize("rule", ["sgd", "adam", "learned"])
def test_each_row_lives_as_if_alone(rule):
    """Rows of other settings, as many tasks each, on common random numbers."""
    lifetime, learner, family = made("dqn", steps=2, rule="sgd" if rule == "sgd" else "adam")
    traits = {"hyper": {k: torch.tensor(v).repeat_interleave(2) for k, v in SETTINGS.items()}}
    traits["hyper"]["lr"] *= 10 if rule == "sgd" else 1
    traits["rates"] = {k: torch.randn(6, 2, generator=torch_rng(1)) for k in learner.init(torch_rng(0))}
    if rule == "learned":
        part = genome.Genome(genome.Config(hidden=4, scale=1.0), learner, torch_rng(0))
        genes = part.start + 0.2 * torch.randn(3, len(part.start), generator=torch_rng(2))
        traits |= {k: {n: x.repeat_interleave(2, 0) for n, x in v.items()} for k, v in part.decode(genes).items()}
    life = begun(lifetime, learner, family, 2, traits, 3)
    with CommonRandomNumbers(3):
        for _ in range(2):
            life.learn()
    for p in range(3):
        mine = slice(2 * p, 2 * p + 2)
        alone = begun(lifetime, learner, family, 2, {kind: {k: v[mine] for k, v in t.items()} for kind, t in traits.items()})
        with CommonRandomNumbers(1):
            for _ in range(2):
                alone.learn()
        close(alone.params, {k: v[mine] for k, v in life.params.items()})
        close(alone.target, {k: v[mine] for k, v in life.target.items()})
        torch.testing.assert_close(held(alone)["reward"], held(life)["reward"][mine])
    assert not torch.allclose(life.params["head.weight"][:2], life.params["head.weight"][2:4], atol=1e-4)


def test_a_life_is_as_long_as_it_says():
    lifetime, learner, family = made("dqn", steps=3, warmup=1)
    life = begun(lifetime, learner, family, 2, hyper(lifetime))
    for step in range(3):
        assert life.progress == pytest.approx(step / 3)
        life.learn()
        iterations = 2 * (step + 1)  # of 2 environments, 4 steps and 2 updates, the first without
        assert life.env_steps.tolist() == [8 * iterations] * 2
        assert life.gradient_steps == 2 * (iterations - 1)
        assert len(life.replay) == min(8 * iterations, 64)


def test_nothing_is_learned_while_warming_up():
    lifetime, learner, family = made("dqn", warmup=2)
    life = begun(lifetime, learner, family, 2, hyper(lifetime))
    before = life.params
    life.learn()
    close(before, life.params, 0)
    life.learn()
    assert not torch.equal(before["head.weight"], life.params["head.weight"])


def test_exploration_falls_as_each_row_says(monkeypatch):
    lifetime, learner, family = made("dqn", steps=2)
    seen = []

    def explorer(policy, actions, epsilon, repeat):
        seen.append(epsilon.tolist())
        return EpsilonGreedy(policy, actions, epsilon, repeat)

    monkeypatch.setattr(dqn_life, "EpsilonGreedy", explorer)
    life = begun(lifetime, learner, family, 2, hyper(lifetime, epsilon_end=[0.2, 0.0], epsilon_decay=[0.5, 1.0]))
    for _ in range(3):
        life.learn()  # 2 iterations each, beyond the end too
    first, second = zip(*seen, strict=True)
    assert first == pytest.approx([1.0, 0.6, 0.2, 0.2, 0.2, 0.2])
    assert second == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0, 0.0], abs=1e-6)


def test_random_actions_are_as_many_as_epsilon_says():
    lifetime, learner, family = made("dqn", envs=64, env_steps=10, capacity=640)
    life = begun(lifetime, learner, family, 2, hyper(lifetime, epsilon_end=[0.0, 0.6], epsilon_decay=[1e-9, 1e-9]))
    life.iteration = 1  # past the decay
    params = life.params
    life._iterate()
    data = life.replay.data
    greedy = learner.policy(params, data.obs).mode()
    assert (greedy == data.action).float().mean(1).tolist() == pytest.approx([1.0, 0.7], abs=0.07)


def test_a_row_learns_from_the_first_of_its_batch():
    """What is drawn beyond it changes nothing, however wrong; what is within it does."""
    lifetime, learner, family = made("dqn")
    grown = {}
    for name, lie in (("truth", None), ("beyond", slice(3, None)), ("within", slice(2, 3))):
        life = begun(lifetime, learner, family, 2, hyper(lifetime, batch=[3.0, 8.0]))
        sample = life.replay.sample

        def lying(*args, sample=sample, lie=lie):
            batch = sample(*args)
            reward = batch.reward.clone()
            if lie is not None:
                reward[..., lie] += 1e3
            return batch._replace(reward=reward)

        life.replay.sample = lying
        life.learn()
        grown[name] = life.params["head.weight"]
    assert torch.equal(grown["truth"][0], grown["beyond"][0])
    assert not torch.equal(grown["truth"][1], grown["beyond"][1])
    assert not torch.equal(grown["truth"][0], grown["within"][0])


def test_the_target_network_is_copied_as_often_as_each_row_says():
    lifetime, learner, family = made("dqn", updates=1, iterations=1, warmup=0)
    every = [1.0, 2.4, 3.0]  # rounded
    life = begun(lifetime, learner, family, 3, hyper(lifetime, target_every=every))
    history = [life.params]
    for updates in range(1, 8):
        life.learn()
        history.append(life.params)
        for row, period in enumerate([1, 2, 3]):
            expected = history[updates - updates % period]
            assert all(torch.equal(v[row], expected[k][row]) for k, v in life.target.items())
    assert not torch.equal(life.target["head.weight"], life.params["head.weight"])


def test_one_update_by_autograd(float64):
    """Targets of each row's discount, the mean over its batch, the norm clipped, its own rate."""
    lifetime, learner, family = made("dqn", rule="sgd", clip=0.01, warmup=9)
    settings = {"lr": [0.1, 0.3], "gamma": [0.0, 0.9], "batch": [8.0, 3.0]}
    life = begun(lifetime, learner, family, 2, hyper(lifetime, **settings))
    life.learn()  # warming up: experience alone
    life.target = fresh(learner, 2, torch_rng(1, "target"))
    state = life.rng.get_state()
    before, life.rng = life.params, torch_rng(0).set_state(state)
    batch = life.replay.sample(torch.arange(2), 8, torch_rng(0).set_state(state))
    life._update()
    clipped = 0
    for row in range(2):
        num = int(settings["batch"][row])
        mine = Transitions(*(x[row][:, :num] for x in batch))
        live = {k: v[row].clone().requires_grad_() for k, v in before.items()}
        target = {k: v[row] for k, v in life.target.items()}
        best = learner.network(live, mine.next_obs).argmax(-1, keepdim=True)
        future = learner.network(target, mine.next_obs).gather(-1, best)[..., 0] * ~mine.terminated
        y = (learner.config.reward_scale * mine.reward + settings["gamma"][row] * future).detach()
        q = learner.network(live, mine.obs).gather(-1, mine.action[..., None])[..., 0]
        gradients = torch.autograd.grad((q - y).square().mean(), list(live.values()))
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        clipped += bool(norm > 0.01)
        for (k, v), g in zip(live.items(), gradients, strict=True):
            expected = v.detach() - settings["lr"][row] * g * (0.01 / norm).clamp(max=1)
            torch.testing.assert_close(life.params[k][row], expected, rtol=0, atol=1e-8)
    assert clipped


def test_shared_replay_holds_everyones_experience(monkeypatch):
    lifetime, learner, family = made("dqn", shared=True, iterations=1)
    seen = []

    def collect(*args):
        seen.append(collected(*args))
        return seen[-1]

    monkeypatch.setattr(dqn_life, "collect", collect)
    life = begun(lifetime, learner, family, 2, hyper(lifetime), 3)
    assert life.replay.num_tasks == 2
    for step in range(2):
        life.learn()
        assert len(life.replay) == 3 * 8 * (step + 1)
    for task in range(2):
        rows = [task, 2 + task, 4 + task]  # of the individuals that learn it
        expected = torch.cat([one.obs[rows].reshape(-1, 4) for one in seen])
        assert sorted(held(life)["obs"][task].tolist()) == sorted(expected.tolist())
    assert sorted(held(life)["obs"][0].tolist()) != sorted(held(life)["obs"][1].tolist())


def test_individuals_learn_from_the_replay_of_their_task(monkeypatch):
    lifetime, learner, family = made("dqn", shared=True)
    life = begun(lifetime, learner, family, 2, hyper(lifetime), 3)
    asked = []
    sample = life.replay.sample
    monkeypatch.setattr(life.replay, "sample", lambda tasks, *rest: (asked.append(tasks.tolist()), sample(tasks, *rest))[1])
    life.learn()
    assert asked == [[0, 1, 0, 1, 0, 1]] * 2


@pytest.mark.parametrize("shared", [False, True])
def test_another_goes_on_as_it_was(shared):
    """Weights, target, the optimiser's memory and its own replay; with the settings it is given."""
    lifetime, learner, family = made("dqn", shared=shared)
    life = begun(lifetime, learner, family, 2, hyper(lifetime, lr=[0.1, 0.2, 0.3, 0.4]), 2)
    life.learn()
    before = {"params": life.params, "target": life.target, "first": life.optimizer.first, "second": life.optimizer.second}
    data, rows = held(life), torch.tensor([2, 3, 2, 3])
    other = hyper(lifetime, lr=[0.5, 0.6, 0.7, 0.8])
    life.inherit(rows, other, {})
    after = {"params": life.params, "target": life.target, "first": life.optimizer.first, "second": life.optimizer.second}
    for name, values in before.items():
        assert all(torch.equal(after[name][k], v[rows]) for k, v in values.items())
    assert life.traits is other
    kept = torch.arange(2) if shared else rows
    assert all(torch.equal(values, data[name][kept]) for name, values in held(life).items())
    life.learn()
    assert not torch.equal(life.params["head.weight"][0], life.params["head.weight"][2]), "rates of their own part them"


def test_another_goes_on_with_a_rule_of_its_own():
    lifetime, learner, family = made("dqn", warmup=0)
    part = genome.Genome(genome.Config(hidden=4, scale=1.0), learner, torch_rng(0))
    start = part.decode(part.start.expand(2, -1))
    still = part.decode(torch.zeros(2, len(part.start)))  # a rule that moves nothing
    life = begun(lifetime, learner, family, 2, hyper(lifetime) | start)
    life.learn()
    before = life.params
    life.inherit(torch.arange(2), hyper(lifetime) | still, {})
    life.learn()
    close(before, life.params, 0)


def test_a_structure_stays_what_it_is_while_it_learns():
    lifetime, learner, family = made("dqn")
    structure = {
        "structure.depth": torch.tensor([[1.0, 0.0], [1.0, 1.0]]),
        "structure.activation": torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
        "structure.width.0": (torch.arange(8) < 5).float().expand(2, -1),
        "structure.width.1": torch.ones(2, 8),
    }
    params = structured(fresh(learner, 2, torch_rng(0)), structure)
    life = lifetime.begin(params, hyper(lifetime), tasks(family, 2), torch_rng(0))
    life.learn()
    assert all(torch.equal(life.params[k], v) for k, v in structure.items())
    assert all(torch.equal(life.target[k], v) for k, v in structure.items())
    assert torch.equal(life.params["hidden.0.weight"][:, 5:], params["hidden.0.weight"][:, 5:])
    assert torch.equal(life.params["hidden.1.weight"][0], params["hidden.1.weight"][0])
    assert not torch.equal(life.params["hidden.1.weight"][1], params["hidden.1.weight"][1])


@pytest.mark.parametrize("shared", [False, True])
def test_a_saved_life_goes_on_with_the_same_bits(shared):
    lifetime, learner, family = made("dqn", shared=shared)
    one, other = (begun(lifetime, learner, family, 2, hyper(lifetime), 2, seed) for seed in (0, 1))
    one.learn()
    other.learn()
    other.load_state_dict(one.state_dict())
    for life in (one, other):
        life.learn()
    assert all(torch.equal(a, b) for a, b in zip(flat(one.state_dict()), flat(other.state_dict()), strict=True))


# -- a few gradient steps


@pytest.mark.parametrize(
    ("env", "scope", "again"),
    [("cartpole_family", "all", True), ("cartpole_family", "head", False), ("navigation_2d", "all", False)],
)
def test_gradient_steps_are_the_inner_loops(env, scope, again):
    lifetime, learner, family = made("gradient", env, steps=3, lr=0.3, scope=scope, support={"fresh": again})
    task, support = tasks(family, 3), lifetime.config.support
    params = fresh(learner, 3, torch_rng(0, "weights"))
    life = lifetime.begin(params, lifetime.default, task, torch_rng(0, "life"))
    rng, batch, spent = torch_rng(0, "life"), None, torch.zeros(3, dtype=torch.long)
    names = inner_loop.adapted_names(params, scope)
    for k in range(3):
        if batch is None or again:
            batch = inner_loop.collect_support(learner, params, family, task, support, rng)
            spent = spent + batch.weight.sum((1, 2)).long()
        rates = {name: torch.tensor(0.3) for name in names}
        params = inner_loop.inner_step(learner, params, rates, batch, lifetime.config.returns)
        life.learn()
        close(life.params, params, 1e-6)
        assert life.gradient_steps == k + 1
        assert torch.equal(life.env_steps, spent)
    start = fresh(learner, 3, torch_rng(0, "weights"))
    assert {name for name in params if not torch.equal(start[name], life.params[name])} == set(names)


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_rates_of_each_row_and_step(rule):
    """exp(level + slope (t - 1/2)) times the base, at t = 0 and 1/2 of two steps."""
    lifetime, learner, family = made("gradient", steps=2, rule=rule)
    task, config = tasks(family, 2), lifetime.config
    params = fresh(learner, 2, torch_rng(0, "weights"))
    trait = {k: torch.tensor([[0.0, 0.0], [1.0, 0.6]]) for k in params}
    traits = {"hyper": {"lr": torch.tensor([0.1, 0.2])}, "rates": trait}
    life = lifetime.begin(params, traits, task, torch_rng(0, "life"))
    support = inner_loop.collect_support(learner, params, family, task, config.support, torch_rng(0, "life"))
    adam = Adam()
    for t in (0.0, 0.5):
        each = torch.tensor([0.1, 0.2]) * torch.exp(torch.tensor([0.0, 1.0 + 0.6 * (t - 0.5)]))
        rates = {k: each.reshape(-1, *[1] * (v.dim() - 1)) for k, v in params.items()}
        if rule == "sgd":
            params = inner_loop.inner_step(learner, params, rates, support, config.returns)
        else:
            gradients = inner_loop.support_gradients(learner, params, list(params), support, config.returns)
            params = adam.step(params, gradients, rates)
        life.learn()
        close(life.params, params, 1e-6)


def test_individuals_share_their_weights_until_they_learn():
    lifetime, learner, family = made("gradient")
    params = fresh(learner, 2, torch_rng(0))
    life = lifetime.begin(params, lifetime.default, repeated(tasks(family, 3), 2), torch_rng(0))
    assert life.params is params
    life.learn()
    assert {len(v) for v in life.params.values()} == {6}
    apart = lifetime.begin(
        {k: v.repeat_interleave(3, 0) for k, v in params.items()},
        lifetime.default,
        repeated(tasks(family, 3), 2),
        torch_rng(0),
    )
    apart.learn()
    close(life.params, apart.params, 1e-6)


def test_a_gradient_life_may_have_a_learned_rule():
    """Which starts as Adam."""
    lifetime, learner, family = made("gradient", steps=2, rule="adam")
    part = genome.Genome(genome.Config(hidden=4, scale=1.0), learner, torch_rng(0))
    params, task = fresh(learner, 2, torch_rng(0)), tasks(family, 2)
    rule = part.decode(part.start.expand(2, -1))
    lives = [lifetime.begin(params, traits, task, torch_rng(0)) for traits in (lifetime.default, lifetime.default | rule)]
    for life in lives:
        life.learn()
        life.learn()
    close(lives[0].params, lives[1].params, 1e-4)
    assert not torch.allclose(params["head.weight"], lives[0].params["head.weight"], atol=1e-2)


# -- none


def test_a_life_of_nothing():
    _, learner, family = made("gradient")
    module, parsed = load("lifetime", {"module": "none"}, "algo.lifetime")
    lifetime = module.Lifetime(parsed, learner, family, torch.device("cpu"))
    params = fresh(learner, 2, torch_rng(0))
    life = lifetime.begin(params, {}, tasks(family, 4), torch_rng(0))
    life.learn()
    assert lifetime.steps == life.gradient_steps == 0
    assert life.env_steps.tolist() == [0] * 4
    assert life.params is params
