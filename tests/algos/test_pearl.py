"""PEARL: the posterior tells the task, what an update reads of a support, and who learns from what."""

import math

import pytest
import torch
from conftest import compose_train, fitting, load, tiny
from probes import Dial

from metarl_cli.adaptation.support import played
from metarl_cli.evaluation.evaluator import Evaluator
from metarl_cli.interfaces import Budget, Context, Transitions
from metarl_cli.runs.build import build
from metarl_cli.seeding import numpy_rng, torch_rng

DIAL = [
    "learner.network.hidden=[32]",
    "learner.reward_scale=1",
    "learner.temperature=0.1",
    "algo.tasks=16",
    "algo.steps=4",
    "algo.updates=30",
    "algo.lr=0.005",
    "algo.polyak=0.05",
    "algo.support.rollouts=4",
    "algo.support.steps=1",
    "algo.latent.hidden=[16]",
    "algo.latent.size=2",
    "algo.latent.beta=0.001",
]


def built(algo: str = "pearl", *overrides: str):
    return build(compose_train(f"algo={algo}", f"env={fitting(algo)}", *tiny(algo), *overrides)).algorithm


def test_a_support_tells_the_setting_of_the_dial():
    """Without one no action is nearer to 1 and -1 than 1 on average; with one the penalty is near 0."""
    family, config = Dial(), compose_train("algo=pearl", "env=pendulum_family", *DIAL)
    learner, (module, values) = load("learner", config.learner), load("algo", config.algo)
    context = Context(family, learner[0].Learner(learner[1], family.spec), 25, 0, torch.device("cpu"))
    algorithm = module.Algo(values, context)
    for _ in range(25):
        algorithm.train_step()
    tasks = family.sample_tasks(40, "test", numpy_rng(0, "tasks", "test"))
    before, after = Evaluator(family, tasks, 1, 0, "test").curve(algorithm, Budget(1)).returns.mean(axis=(1, 2))
    assert before < -0.8
    assert after > -0.25


@pytest.mark.parametrize(("algo", "batch"), [("pearl", 5), ("pearl_dqn", "null")])
def test_an_update_reads_transitions_of_its_tasks_alone(algo, batch):
    """So many, drawn from those that an episode lasted for; or all. A share of the tasks reads what it would of all."""
    algorithm = built(algo, f"algo.latent.batch={batch}", "algo.supports=1")
    algorithm.prepare()
    supports, rows = algorithm.supports, torch.tensor([2, 0, 2])
    supports.entries[:] = torch.arange(4.0)[:, None, None]
    supports.weight[:] = 1
    supports.weight[:, ::2] = 0
    before = algorithm.rng.state_dict()
    read, noise = algorithm.sources(rows, slice(None))
    assert read.entries.shape[:2] == (3, supports.entries.shape[1] if batch == "null" else 5)
    assert torch.equal(read.entries, torch.tensor([2.0, 0.0, 2.0])[:, None, None].expand_as(read.entries))
    whole = supports.weight[rows].sum(1)
    assert bool((read.weight > 0).all()) == (algo == "pearl")
    torch.testing.assert_close(read.weight.sum(1), whole)
    algorithm.rng.load_state_dict(before)
    part, same = algorithm.sources(rows, slice(1, 2))
    assert all(torch.equal(a[1:2], b) for a, b in zip((*read, noise), (*part, same), strict=True))


def test_posteriors_of_one_support_and_of_several_are_trained():
    """A test reads the first, then the first two, then all three; so does an update, and the draw stands for all of them."""
    algorithm = built("pearl", "algo.supports=3", "algo.support.rollouts=2", "algo.support.steps=4", "algo.latent.batch=200")
    algorithm.prepare()
    supports = algorithm.supports
    supports.entries[:] = torch.arange(3.0).repeat_interleave(2).repeat(4)[:, None]  # which support each transition is of
    supports.weight[:] = 1
    read, _ = algorithm.sources(torch.zeros(60, dtype=torch.long), slice(None))
    last = read.entries[..., 0].amax(1)
    assert set(last.tolist()) == {0, 1, 2}
    torch.testing.assert_close(read.weight.sum((1, 2)), 8 * (last + 1), msg="as many as the first few supports have")
    assert bool(((read.entries[..., 0] == 0).any(1)).all()), "the first is always among them"


def test_the_normalisation_follows_what_supports_become():
    algorithm, parts = built("pearl", "algo.supports=2"), []
    measure = algorithm.encoder.measure
    algorithm.encoder.measure = lambda support, *others: parts.append(support) or measure(support, *others)
    for _ in range(3):
        algorithm.train_step()
    every = measure(Transitions(*(torch.cat(field) for field in zip(*parts, strict=True))))
    assert len(parts) == 3, "of each iteration the support by the prior"
    torch.testing.assert_close(algorithm.measured, every, rtol=0.05, atol=1e-6)


def test_the_replay_is_given_no_step_after_the_end_of_an_episode():
    weight = torch.tensor([[[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]])
    number = torch.arange(12.0).view(2, 3, 2)
    filled = played(Transitions(*(number,) * len(Transitions._fields))._replace(weight=weight))
    assert filled.reward.flatten(1).tolist() == [[0, 1, 2, 0, 1, 2], [6, 7, 8, 9, 10, 11]]
    assert bool((filled.weight == 1).all())


@pytest.mark.parametrize("history", [0, 2])
def test_the_replay_keeps_the_supports_too(history):
    kept, plain = (
        built("pearl", f"algo.replay_support={keep}", f"algo.history={history}", "algo.capacity=1000")
        for keep in ("true", "false")
    )
    for algorithm in (kept, plain):
        algorithm.train_step()
    support, steps = kept.config.support, kept.config.envs * kept.config.steps
    assert len(plain.replay) == steps
    assert len(kept.replay) == steps + kept.config.supports * support.rollouts * support.steps


def test_the_policy_teaches_the_encoder_nothing():
    """What the gradient in the encoder's weights is without the critic: that of the divergence from the prior."""
    algorithm = built("pearl", "algo.latent.beta=0.5")
    algorithm.prepare()
    rows, whole = torch.tensor([0, 1]), slice(None)
    sources = algorithm.sources(rows, whole)
    batch = algorithm.replay.sample(rows, algorithm.config.batch, algorithm.rng["minibatch"])
    noise = algorithm.noise(2)
    values = type(algorithm.learner).values
    encoder = [name for name in algorithm.params if name.startswith("encoder.")]

    def gradients():
        found = algorithm._gradient(algorithm.params, algorithm.slow, batch, sources, noise)[1]
        return {name: value for name, value in zip(algorithm.params, found, strict=True) if name in encoder}

    with_critic = gradients()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(algorithm.learner), "values", lambda self, params, obs, action: values(self, params, obs.detach(), action)
        )
        alone = gradients()
    _, divergence = algorithm.given(algorithm.params, sources)
    expected = torch.autograd.grad(divergence, [algorithm.params[name] for name in encoder])
    for name, value in zip(encoder, expected, strict=True):
        torch.testing.assert_close(alone[name], value)
        assert not torch.allclose(with_critic[name], value)


def test_each_episode_of_a_support_acts_on_a_sample_of_its_own():
    """Before the first support, samples of the prior; a policy that is tested is given the mean."""
    algorithm = built("pearl")
    task = algorithm.family.sample_tasks(3, "test", numpy_rng(0, "tasks"))
    first, second = algorithm.adapt(task, Budget(1), torch_rng(0, "adapt"))
    given = first.policy.start(5000, torch_rng(0, "act"), greedy=False)["given"]
    assert given.shape == (3, 5000, algorithm.config.latent.size)
    torch.testing.assert_close(given.std(1), torch.ones_like(given.std(1)), rtol=0, atol=0.05)
    assert bool((first.policy.start(2, torch_rng(0, "act"))["given"] == 0).all())
    drawn = second.policy.start(5000, torch_rng(0, "act"), greedy=False)["given"]
    torch.testing.assert_close(drawn.mean(1), second.policy.given, rtol=0, atol=0.06)
    torch.testing.assert_close(drawn.std(1), second.policy.spread, rtol=0.05, atol=0)


@pytest.mark.parametrize("algo", ["robust_dqn", "stacked_dqn", "oracle_dqn", "osi_dqn"])
def test_what_is_given_the_task_takes_the_soft_actor_critic_too(algo):
    words = [f"algo={algo}", "learner=sac", "env=pendulum_family", "algo.epsilon=[0,0]", *tiny(algo)]
    algorithm = build(compose_train(*words)).algorithm
    before = {name: value.detach().clone() for name, value in algorithm.params.items()}
    for _ in range(2):
        assert all(math.isfinite(value) for value in algorithm.train_step().values())
    assert not any(torch.equal(before[name], value) for name, value in algorithm.params.items())
