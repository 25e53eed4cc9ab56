"""Adaptation beyond the steps of training: rates fall, users are told, and weights that are not finite are no policy."""

import math
from itertools import pairwise

import pytest
import torch
from conftest import compose_train, tiny

from metarl_cli.adaptation import gradient
from metarl_cli.adaptation.gradient import clipped, collect_support, diverged, fading, inner_step, rates_of_step
from metarl_cli.config.models import Job
from metarl_cli.errors import UserError
from metarl_cli.interfaces import Budget
from metarl_cli.networks.stacked import detached, expand
from metarl_cli.progress import listening
from metarl_cli.runs.build import build
from metarl_cli.runs.loop import Listener, train
from metarl_cli.runs.run import Run
from metarl_cli.seeding import numpy_rng, torch_rng


def parts(algo="maml_dqn", *overrides):
    return build(compose_train(f"algo={algo}", *tiny(algo), *overrides))


def policies(algorithm, task, steps):
    """The weights before adaptation and after each step."""
    return [a.policy.params for a in algorithm.adapt(task, Budget(steps), torch_rng(0, "support"))]


@pytest.mark.parametrize(
    ("trained", "decay", "factors"),
    [(1, 0.5, [1, 0.5, 0.25, 0.125]), (2, 0.1, [1, 1, 0.1, 0.01]), (3, 0, [1, 1, 1, 0]), (1, 1, [1, 1, 1, 1])],
)
def test_rates_fall_beyond_the_trained_steps(trained, decay, factors):
    assert [fading(step, trained, decay) for step in range(1, 5)] == pytest.approx(factors)


@pytest.mark.parametrize(
    ("values", "overrides", "rates"),
    [
        (0.3, [], [0.3, 0.3, 0.06, 0.012]),
        ([0.3, -0.2], ["each_step=true"], [0.3, -0.2, -0.04, -0.008]),
        (-1.0, ["positive=true"], [math.exp(-1), math.exp(-1), 0.2 * math.exp(-1), 0.04 * math.exp(-1)]),
        ([2.0, 0.0], ["positive=true", "each_step=true"], [math.exp(2), 1, 0.2, 0.04]),
    ],
)
def test_each_step_has_its_rates_and_further_ones_the_last_that_fall(values, overrides, rates):
    _, algorithm, _ = parts(
        "maml_dqn", "algo.inner.steps=2", "algo.inner.decay=0.2", *(f"algo.inner.{override}" for override in overrides)
    )
    assert all(v.shape == torch.tensor(values).shape for v in algorithm.meta["rates"].values())
    own = {"head.bias": torch.tensor(values)}
    found = [float(rates_of_step(own, step, algorithm.config.inner)["head.bias"]) for step in range(1, 5)]
    assert found == pytest.approx(rates)


@pytest.mark.parametrize("overrides", [[], ["algo.inner.positive=true"]])
def test_rates_begin_at_the_inner_learning_rate(overrides):
    _, algorithm, _ = parts("maml_dqn", "algo.inner.lr=0.3", *overrides)
    rates = rates_of_step(algorithm.meta["rates"], 1, algorithm.config.inner)
    assert [float(v.detach()) for v in rates.values()] == pytest.approx([0.3] * len(rates))


def test_the_gradient_of_each_task_is_clipped_to_a_norm():
    gradients = {"a": torch.tensor([[3.0, 0.0], [0.3, 0.0], [0.0, 0.0]]), "b": torch.tensor([[4.0], [0.4], [0.0]])}
    for value in gradients.values():
        value.requires_grad_()
    found = clipped(gradients, 1.0)
    assert found["a"].tolist() == [pytest.approx([0.6, 0.0]), pytest.approx([0.3, 0.0]), [0.0, 0.0]]
    assert found["b"][:, 0].tolist() == pytest.approx([0.8, 0.4, 0.0])
    (slope,) = torch.autograd.grad(sum(v.sum() for v in found.values()), [gradients["b"]])
    assert slope[:, 0].tolist() == pytest.approx([(9 - 12) / 125, 1, 1]), "also where the gradient is zero"


@pytest.mark.parametrize("decay", [0.5, 0.1])
def test_maml_takes_the_trained_steps_in_full_and_further_ones_by_falling_rates(decay):
    family, algorithm, _ = parts("maml_dqn", "algo.inner.steps=2", f"algo.inner.decay={decay}")
    task, inner = family.sample_tasks(3, "test", numpy_rng(0, "tasks")), algorithm.config.inner
    params, rates = expand(detached(algorithm.slow["init"]), 3), detached(algorithm.slow["rates"])
    support = collect_support(algorithm.learner, params, family, task, inner.support, torch_rng(0, "support"))
    found = policies(algorithm, task, 4)
    for number, factor in enumerate([1, 1, decay, decay**2], 1):
        params = inner_step(algorithm.learner, params, {k: v * factor for k, v in rates.items()}, support, inner.returns)
        for name, value in params.items():
            torch.testing.assert_close(found[number][name], value)


@pytest.mark.parametrize(("algo", "key"), [("maml_dqn", "algo.inner.decay"), ("es_dqn", "algo.lifetime.decay")])
def test_without_rates_beyond_training_nothing_moves_there(algo, key):
    family, algorithm, _ = parts(algo, f"{key}=0")
    assert algorithm.trained_steps == 1
    before, one, two, three = policies(algorithm, family.sample_tasks(3, "test", numpy_rng(0, "tasks")), 3)
    assert not all(torch.equal(before[k].expand_as(one[k]), one[k]) for k in one)
    assert all(torch.equal(one[k], two[k]) and torch.equal(two[k], three[k]) for k in one)
    family, algorithm, _ = parts(algo, f"{key}=1")
    *_, one, two = policies(algorithm, family.sample_tasks(3, "test", numpy_rng(0, "tasks")), 2)
    assert not all(torch.equal(one[k], two[k]) for k in one)


def test_learners_without_a_genome_go_on():
    """Evolution chose nothing for them, so that the reference has all its steps."""
    family, algorithm, _ = parts("es_dqn", "algo.lifetime.decay=0")
    task = family.sample_tasks(3, "test", numpy_rng(0, "tasks"))
    _, one, two = (a.policy.params for a in algorithm.adapt_from_scratch(task, Budget(2), torch_rng(0, "support")))
    assert not all(torch.equal(one[k], two[k]) for k in one)


def test_fine_tuning_has_no_trained_steps():
    family, algorithm, _ = parts("pretrain_dqn")
    assert algorithm.trained_steps is None
    found = policies(algorithm, family.sample_tasks(2, "test", numpy_rng(0, "tasks")), 3)
    sizes = [sum(float((b[k] - a[k]).abs().sum()) for k in a) for a, b in pairwise(found)]
    assert sizes[2] > 0.1 * sizes[0], "Adam goes on"


def test_fine_tuning_by_adam_clips_too(monkeypatch):
    norms = []
    monkeypatch.setattr(gradient, "clipped", lambda gradients, largest: norms.append(largest) or gradients)
    for clip in ("null", "0.5"):
        family, algorithm, _ = parts("pretrain_dqn", f"algo.inner.clip={clip}")
        assert algorithm.config.inner.rule == "adam"
        policies(algorithm, family.sample_tasks(2, "test", numpy_rng(0, "tasks")), 2)
    assert norms == [0.5, 0.5]


def test_weights_that_are_not_finite_are_counted():
    params = {"a": torch.zeros(3, 2), "b": torch.tensor([0.0, torch.nan, torch.inf])}
    assert diverged(params) == 2


def test_of_weights_that_are_not_finite_the_user_is_told_once(monkeypatch):
    family, algorithm, _ = parts()
    monkeypatch.setattr(gradient, "inner_step", lambda learner, params, *_, **__: {k: v * torch.nan for k, v in params.items()})
    told = []
    with listening(lambda text: None, told.append):
        policies(algorithm, family.sample_tasks(3, "test", numpy_rng(0, "tasks")), 3)
    assert told == ["after adaptation step 3 the weights of 3 of 3 tasks are not finite"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    train(compose_train(f"run={folder}", "algo=maml_dqn", *tiny("maml_dqn")), Job({}, []), Listener())
    return Run(folder)


def told_by(function):
    told = []
    with listening(lambda text: None, told.append):
        function()
    return told


@pytest.mark.parametrize(("steps", "warns"), [(None, False), (1, False), (2, True), (10, True)])
def test_a_user_who_asks_for_more_steps_than_trained_is_warned(run, steps, warns):
    expected = ["It was trained for 1 step of adaptation; further ones are beyond its training."] if warns else []
    assert told_by(lambda: run.test(tasks=2, episodes=1, steps=steps)) == expected
    assert told_by(lambda: run.adapt(steps=steps)) == expected
    assert told_by(lambda: run.measure("test", 2, 1, steps, None)) == [], "the report's table says it"


def test_an_adapted_policy_has_finite_weights(run, monkeypatch):
    monkeypatch.setattr(gradient, "inner_step", lambda learner, params, *_, **__: {k: v * torch.nan for k, v in params.items()})
    with pytest.raises(UserError, match="the adapted weights are not finite; take fewer steps"):
        run.adapt(steps=1)
