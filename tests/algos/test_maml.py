"""The meta-gradient against a per-task loop and finite differences; every variant; what adaptation may not touch."""

import pytest
import torch
from conftest import algorithms, compose_train, flat, tiny, variants_slow

from metarl_cli.interfaces import Budget, Transitions
from metarl_cli.runs.build import build
from metarl_cli.seeding import numpy_rng, torch_rng

VARIANTS = {
    "plain": ["algo.inner.rates=fixed"],
    "rates per tensor": ["algo.inner.rates=tensor"],
    "Meta-SGD": ["algo.inner.rates=parameter"],
    "ANIL": ["algo.inner.scope=head"],
    "CAVIA": ["algo.inner.scope=context", "learner.network.context=3"],
    "learned loss": ["algo.inner.scope=context", "learner.network.context=3", "algo.inner.loss.learned=true"],
    "every step": ["algo.outer.every_step=true"],
    "fresh support": ["algo.inner.support.fresh=true"],
    "one-step targets": ["algo.inner.returns.lambda=0"],
    "reward alone": ["algo.inner.returns.gamma=0"],
    "rates of each step": ["algo.inner.each_step=true", "algo.inner.positive=true", "algo.inner.clip=0.02"],
    "slow target": ["algo.outer.adapted_target=false"],
    "dueling, Huber": ["learner.network.dueling=true", "learner.loss=huber", "learner.network.layer_norm=false"],
}


def algorithm(*overrides: str, env: str = "cartpole_family", algo: str = "maml_dqn"):
    names = f"env={env}", f"algo={algo}"
    return build(compose_train(*names, *tiny(algo), "learner.network.activation=tanh", *overrides)).algorithm


def meta_batch(algo, steps=None):
    """Supports of each inner step, and a query, of all tasks."""
    supports, _ = algo._collect()
    rows = torch.arange(algo.config.tasks)
    query = algo.replay.sample(rows, 8, algo.rng["minibatch"])
    return supports, query


def per_task_loop(algo, supports, query):
    """The meta-gradient as the paper writes it: one task after the other, plain autograd, no vmap."""
    learner, objective, config = algo.learner, algo.objective, algo.config
    order = config.inner.order

    def adapted(meta, row, create_graph):
        path = [meta["init"] | meta.get("measured", {})]
        for k, support in enumerate(supports):
            params = path[-1]
            one = Transitions(*(x[row] for x in support))
            batch = objective.prepare(params, params, one, config.inner.returns.gamma, config.inner.returns.lambda_)
            # a copy: the inner gradient in it holds the target fixed, the outer one goes through both
            live = {k: v.clone() if v.requires_grad else v.clone().requires_grad_() for k, v in params.items()}
            names = list(meta["rates"])
            grads = torch.autograd.grad(objective.loss(live, batch), [live[k] for k in names], create_graph=create_graph)
            if clip := config.inner.clip:
                norm = torch.cat([g.flatten() for g in grads]).norm()
                grads = [g * torch.clamp(clip / norm, max=1) for g in grads]
            rates = {n: v[k] if config.inner.each_step else v for n, v in meta["rates"].items()}
            rates = {n: torch.exp(v) if config.inner.positive else v for n, v in rates.items()}
            moved = {n: live[n] - rates[n] * g for n, g in zip(names, grads, strict=True)}
            path.append({**live, **moved})
        return path

    total = 0.0
    for row in range(config.tasks):
        path = adapted(algo.meta, row, create_graph=order == 2)
        slow = {g: {k: v.clone() for k, v in p.items()} for g, p in algo.slow.items()}
        last = adapted(slow, row, create_graph=False)[-1] if config.outer.adapted_target else slow["init"]
        one = Transitions(*(x[row] for x in query))
        for params in path[1:] if config.outer.every_step else path[-1:]:
            batch = learner.prepare(params, {k: v.detach() for k, v in last.items()}, one)
            scored = len(path) - 1 if config.outer.every_step else 1
            total = total + learner.loss(params, batch) / config.tasks / scored
    return total, torch.autograd.grad(total, algo._learned(algo.meta))


ORDERS = [(variant, order) for variant in VARIANTS for order in (1, 2) if (variant, order) != ("learned loss", 1)]  # refused


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(("variant", "order"), ORDERS)
def test_meta_gradient_equals_the_per_task_loop(variant, steps, order, float64):
    algo = algorithm(f"algo.inner.steps={steps}", f"algo.inner.order={order}", *VARIANTS[variant])
    for _ in range(2):
        algo.train_step()  # so that the slow copy differs and the heads are no longer near zero
    supports, query = meta_batch(algo)
    loss, gradients = algo.meta_gradient(supports, query)
    expected_loss, expected = per_task_loop(algo, supports, query)
    assert abs(float(loss.detach()) - float(expected_loss.detach())) < 1e-10
    assert max(float(g.abs().max()) for g in expected) > 1e-6, "a gradient of zero would prove nothing"
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("variant", [*VARIANTS, "reptile"])
@pytest.mark.parametrize("chunk", [1, 3])
def test_a_meta_gradient_in_parts_is_the_whole(chunk, variant, float64):
    reptile = ["algo.outer.rule=reptile", "algo.inner.rates=fixed"]
    overrides = ["algo.inner.steps=2", *VARIANTS.get(variant, reptile)]
    whole, parts = algorithm(*overrides), algorithm(*overrides, f"algo.outer.chunk={chunk}")
    whole.train_step()
    parts.load_weights(whole.weights())
    supports, query = meta_batch(whole)
    assert len(query.reward) == 4, "the last part of 3 should be smaller"
    (loss, gradients), (loss_of_parts, sums) = whole.meta_gradient(supports, query), parts.meta_gradient(supports, query)
    torch.testing.assert_close(loss_of_parts, loss.detach(), rtol=1e-12, atol=0)
    for a, b in zip(sums, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("order", [1, 2])
def test_first_order_differs_from_second(order, float64):
    algo = algorithm(f"algo.inner.order={order}", "algo.inner.lr=1.0")
    algo.train_step()
    supports, query = meta_batch(algo)
    mine = algo.meta_gradient(supports, query)[1]
    other = algorithm(f"algo.inner.order={3 - order}", "algo.inner.lr=1.0")
    other.load_weights(algo.weights())
    theirs = other.meta_gradient(supports, query)[1]
    assert max(float((a - b).abs().max()) for a, b in zip(mine, theirs, strict=True)) > 1e-6


@pytest.mark.parametrize("steps", [1, 2])
def test_meta_gradient_equals_finite_differences(steps, float64):
    """Central differences of the meta-loss in random directions, through inner targets that bootstrap.

    The query's targets are constants of DQN: they come from the slow copy alone (no Double), which does not move here.
    """
    algo = algorithm(f"algo.inner.steps={steps}", "learner.double=false", "algo.inner.lr=0.3", "learner.reward_scale=1")
    algo.train_step()
    supports, query = meta_batch(algo)
    noise = torch_rng(0, "noise")
    # distinct rewards: otherwise every support says the same
    supports = [s._replace(reward=torch.randn(s.reward.shape, generator=noise)) for s in supports]
    gradients = algo.meta_gradient(supports, query)[1]
    weights = algo._learned(algo.meta)
    for seed in range(5):
        rng = torch_rng(seed, "direction")
        direction = [torch.randn(w.shape, generator=rng) for w in weights]
        values = []
        for size in (1e-6, -1e-6):
            with torch.no_grad():
                for w, d in zip(weights, direction, strict=True):
                    w += size * d
                values.append(float(algo.meta_loss(algo.meta, algo.slow, supports, query)))
                for w, d in zip(weights, direction, strict=True):
                    w -= size * d
        slope = (values[0] - values[1]) / 2e-6
        predicted = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
        assert predicted == pytest.approx(slope, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_reptile_moves_towards_the_adapted_weights(clip, float64):
    overrides = [] if clip is None else [f"algo.inner.clip={clip}"]
    algo = algorithm("algo.inner.steps=2", "algo.inner.lr=0.05", *overrides, algo="reptile_dqn")
    algo.train_step()
    supports, query = meta_batch(algo)
    _, gradients = algo.meta_gradient(supports, query)
    expected = {k: torch.zeros_like(v) for k, v in algo.meta["init"].items()}
    *_, target = algo.adapted(algo.slow, supports, 4)
    for row in range(4):
        params = {k: v.detach().clone() for k, v in algo.meta["init"].items()}
        for i, batch in enumerate([*supports, query]):
            one = Transitions(*(x[row] for x in batch))
            bootstrap = {k: v[row] for k, v in target.items()} if i == 2 else params
            returns = algo.config.inner.returns
            estimate = () if i == 2 else (returns.gamma, returns.lambda_)
            prepared = algo.learner.prepare(params, bootstrap, one, *estimate)
            live = {k: v.clone().requires_grad_() for k, v in params.items()}
            grads = torch.autograd.grad(algo.learner.loss(live, prepared), list(live.values()))
            norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
            scale = 1.0 if clip is None else min(1.0, clip / float(norm))
            params = {k: v - 0.05 * scale * g for (k, v), g in zip(params.items(), grads, strict=True)}
        for k in expected:
            expected[k] += (algo.meta["init"][k].detach() - params[k]) / 4
    for mine, theirs in zip(gradients, expected.values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("algo", variants_slow(algorithms(by="gradient")))
@pytest.mark.parametrize("env", ["cartpole_family", pytest.param("navigation_2d", marks=pytest.mark.slow)])
def test_gradient_steps_adapt_and_change_nothing_else(algo, env):
    parts = build(compose_train(f"algo={algo}", f"env={env}", *tiny(algo)))
    algorithm, family = parts.algorithm, parts.family
    for _ in range(3):
        algorithm.train_step()
    before = [x.clone() for x in flat(algorithm.state_dict())]
    task = family.sample_tasks(5, "test", numpy_rng(0, "tasks"))
    curve = list(algorithm.adapt(task, Budget(2), torch_rng(0, "adapt")))
    assert [a.step for a in curve] == [0, 1, 2]
    assert curve[0].env_steps == 0 < curve[1].env_steps
    first, last = curve[0].policy.params, curve[2].policy.params
    moved = [not torch.equal(first[k], last[k]) for k in first]
    assert any(moved), "adaptation does something"
    assert all(torch.equal(a, b) for a, b in zip(before, flat(algorithm.state_dict()), strict=True))


def test_support_is_one_episode_without_what_follows():
    algo = algorithm("algo.inner.support.steps=20", "env.horizon=4", "algo.inner.steps=1")
    supports, _ = algo._collect()
    assert float(supports[0].weight.sum()) == 4 * 2 * 4  # four tasks, two rollouts, four steps until the limit
    assert bool((supports[0].weight[:, 4:] == 0).all())
