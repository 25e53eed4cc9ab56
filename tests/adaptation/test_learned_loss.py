"""A learned loss: distances of the context, which gradient steps move, from where each transition wants it."""

import pytest
import torch
from conftest import compose_train, short, tiny
from torch.nn import functional as F

from metarl_cli.adaptation.gradient import NetworkPolicy, inner_step, loss_each, prepare_each
from metarl_cli.adaptation.inference import EncoderConfig, PosteriorEncoder
from metarl_cli.adaptation.learned_loss import LearnedLoss, LossConfig
from metarl_cli.algos.maml import initial_params
from metarl_cli.config.registry import ConfigError
from metarl_cli.errors import UserError
from metarl_cli.interfaces import Budget, Transitions
from metarl_cli.networks.stacked import expand
from metarl_cli.runs.build import build
from metarl_cli.seeding import numpy_rng, torch_rng


@pytest.fixture
def built():
    """An algorithm with a learned loss, and a support of its training tasks ``[M, T, N]``."""
    algo = build(compose_train("algo=learned_loss_dqn", "env=cartpole_family", *tiny("learned_loss_dqn"))).algorithm
    return algo, algo._collect()[0][0]


def weights(algo, tasks):
    return expand({k: v.detach() for k, v in initial_params(algo.meta).items()}, tasks)


def losses(algo, params, support):
    batch = prepare_each(algo.objective, params, params, support)
    return loss_each(algo.objective, params, batch)


def test_it_is_of_a_set(built):
    algo, support = built
    params = weights(algo, len(support.reward))
    shuffled = Transitions(*(x.flip(2) for x in support))
    torch.testing.assert_close(losses(algo, params, shuffled), losses(algo, params, support))
    padding = Transitions(*(torch.cat([x, x[:, :1]], 1) for x in support))
    padding.weight[:, -1] = 0
    torch.testing.assert_close(losses(algo, params, padding), losses(algo, params, support))


def test_a_step_moves_the_context_alone_and_down_the_loss(built):
    algo, support = built
    params = weights(algo, len(support.reward))
    after = inner_step(algo.objective, params, {"context": torch.tensor(0.01)}, support, algo.config.inner.returns)
    assert {name for name in params if not torch.equal(params[name], after[name])} == {"context"}
    assert bool((losses(algo, after, support) < losses(algo, params, support)).all())
    same = Transitions(*(x[:1].expand_as(x) for x in support))
    after = inner_step(algo.objective, params, {"context": torch.tensor(0.01)}, same, algo.config.inner.returns)
    torch.testing.assert_close(after["context"], after["context"][:1].expand_as(after["context"]))


def test_it_is_the_formula(built):
    algo, support = built
    params = {k: v.detach() for k, v in initial_params(algo.meta).items()}
    params |= {k: torch.randn_like(v) for k, v in params.items() if k == "context" or k.endswith("bias")}
    one = Transitions(*(x[0] for x in support))
    measured = {name: params[f"inner_loss.{name}"] for name in ("mean", "scale")}
    read, c = algo.objective.reader.read(measured, one), params["context"]
    x = torch.cat([read.entries, c.expand(len(read.entries), -1)], 1)
    for i in range(len(algo.config.inner.loss.hidden)):
        x = F.silu(F.linear(x, params[f"inner_loss.{i}.weight"], params[f"inner_loss.{i}.bias"]))
    out = F.linear(x, params["inner_loss.out.weight"], params["inner_loss.out.bias"])
    mean, precision = out[:, : len(c)], (1 + out[:, len(c) :].exp()).log() * read.weight
    expected = 0.5 * (precision * (c - mean) ** 2 / (1 + precision.sum(0))).sum()
    torch.testing.assert_close(losses(algo, expand(params, 1), Transitions(*(x[None] for x in one)))[0], expected)
    batch = algo.objective.prepare(params, params, one)
    torch.testing.assert_close(algo.objective.loss(params, batch), expected)


def test_a_step_with_rate_1_leads_to_the_mean_of_a_posterior(built):
    """That of PEARL, where neither distances nor weights depend on the context; the prior is at the context before it."""
    algo, support = built
    params = weights(algo, len(support.reward))
    params["inner_loss.0.weight"] = params["inner_loss.0.weight"].clone()
    params["inner_loss.0.weight"][..., algo.objective.reader.size :] = 0
    encoder = PosteriorEncoder(
        EncoderConfig(hidden=algo.config.inner.loss.hidden), algo.family.spec, params["context"].shape[1], 0.0
    )
    same = {name.replace("inner_loss.out", "inner_loss.factor"): value[0] for name, value in params.items()}
    same = {name.replace("inner_loss", "encoder"): value for name, value in same.items()}
    same["encoder.0.weight"] = same["encoder.0.weight"][:, : encoder.size]
    read = encoder.read({name: same[f"encoder.{name}"] for name in ("mean", "scale")}, support)
    after = inner_step(algo.objective, params, {"context": torch.tensor(1.0)}, support, algo.config.inner.returns)
    torch.testing.assert_close(after["context"], encoder.posterior(same, read)[0])


def test_all_of_it_is_learned(built):
    algo, _ = built
    algo.train_step()
    supports, _ = algo._collect()
    query = algo.replay.sample(torch.arange(algo.config.tasks), 8, algo.rng["minibatch"])
    names = [name for group in algo.learned_groups for name in algo.meta[group]]
    gradients = dict(zip(names, algo.meta_gradient(supports, query)[1], strict=True))
    assert not [k for k, v in gradients.items() if k.startswith("inner_loss") and not float(v.abs().max()) > 0]


def test_the_q_network_changes_nothing_of_it(built):
    algo, support = built
    params = weights(algo, len(support.reward))
    other = {k: torch.randn_like(v) if k.startswith(("hidden", "head")) else v for k, v in params.items()}
    assert torch.equal(losses(algo, params, support), losses(algo, other, support))


def test_transitions_are_measured_once_and_the_measure_is_saved(built):
    algo, _ = built
    algo.train_step()
    measured = {k: v.clone() for k, v in algo.meta["measured"].items()}
    assert not torch.equal(measured["inner_loss.mean"], torch.zeros_like(measured["inner_loss.mean"]))
    algo.train_step()
    other = build(compose_train("algo=learned_loss_dqn", "env=cartpole_family", *tiny("learned_loss_dqn"), "seed=1")).algorithm
    other.load_weights(algo.weights())
    for meta in (algo.meta, algo.slow, other.meta, other.slow):
        assert all(torch.equal(meta["measured"][k], v) for k, v in measured.items())


def test_a_saved_policy_is_the_network_alone(built):
    algo, _ = built
    task = algo.family.sample_tasks(2, "validation", numpy_rng(0, "tasks"))
    *_, last = algo.adapt(task, Budget(2), torch_rng(0, "support"))
    saved = last.policy.state_dict()
    assert set(saved["params"]) == set(algo.learner.init(torch_rng(0, "init")))
    obs = torch.randn(2, 5, *algo.family.spec.obs_shape)
    acts = [policy.act(policy.start(5, torch_rng(0, "x")), obs)[0] for policy in (last.policy, algo.load_policy(saved, task))]
    assert isinstance(last.policy, NetworkPolicy)
    assert torch.equal(*acts)


def test_an_update_draws_episodes(built):
    algo, support = built
    first, second = algo._drawn([support, support])
    assert first.reward.shape[2] == 1
    assert torch.equal(first.obs, second.obs), "the same of each support"
    assert any(torch.equal(first.obs[:, :, 0], support.obs[:, :, n]) for n in range(support.obs.shape[2]))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("algo.inner.scope=all", "scope=context"),
        ("algo.inner.order=1", "second derivatives"),
        ("algo.outer.rule=reptile", "rates=fixed"),
        ("algo.inner.steps=0", "rates=fixed"),
        ("algo.inner.returns.gamma=0.5", "no targets"),
        ("algo.inner.returns.lambda=0.5", "no targets"),
        ("learner.network.context=0", "context above 0"),
    ],
)
def test_what_does_not_fit_is_refused(override, said):
    with pytest.raises((ConfigError, UserError, ValueError), match=said):
        build(compose_train("algo=learned_loss_dqn", *tiny("learned_loss_dqn"), override))


def test_images_are_refused():
    spec = short("cartpole_family").spec._replace(obs_shape=(3, 8, 8))
    learner = build(compose_train(*tiny("learned_loss_dqn"), "algo=learned_loss_dqn")).algorithm.learner.rebuilt(spec)
    with pytest.raises(UserError, match="images"):
        LearnedLoss(learner, LossConfig(learned=True, hidden=[8]))
