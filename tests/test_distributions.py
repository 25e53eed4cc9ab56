"""Distributions against torch's own, against counts, and where actions cannot be taken."""

import math

import pytest
import torch
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, Normal

from metarl_cli.adaptation.memory import Inputs, InputsConfig
from metarl_cli.networks.distributions import STD, Categorical, Gaussian, distribution
from metarl_cli.spaces import Continuous, Discrete, Spec

CPU = torch.device("cpu")
CHOICES = Spec(obs_shape=(1,), actions=Discrete(4), horizon=1)
VECTORS = Spec(obs_shape=(1,), actions=Continuous((-2.0, 0.0, 1.0), (2.0, 1.0, 5.0)), horizon=1)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_what_fits_a_family():
    assert isinstance(distribution(CHOICES), Categorical)
    assert isinstance(distribution(VECTORS), Gaussian)
    assert distribution(CHOICES).outputs == 4
    assert distribution(VECTORS).outputs == 3


# -- choices


@pytest.mark.parametrize("probabilities", [[0.1, 0.2, 0.3, 0.4], [0.97, 0.01, 0.01, 0.01], [0.5, 0.0, 0.5, 0.0]])
def test_choices_are_sampled_by_their_probabilities(probabilities):
    """Within four standard errors; what cannot be taken never is. A shift of all logits changes nothing."""
    num, p = 100_000, torch.tensor(probabilities)
    for shift in (0.0, 50.0):
        choice = Categorical(CHOICES).sample({}, (p.log() + shift).expand(num, 4), rng())
        share = torch.bincount(choice, minlength=4) / num
        assert ((share - p).abs() <= 4 * (p * (1 - p) / num).sqrt()).all()


def test_samples_follow_the_generator():
    outputs = torch.randn(5, 7, 4, generator=rng(1))
    policy = Categorical(CHOICES)
    assert policy.sample({}, outputs, rng()).shape == (5, 7)
    assert torch.equal(policy.sample({}, outputs, rng()), policy.sample({}, outputs, rng()))
    assert not torch.equal(policy.sample({}, outputs, rng()), policy.sample({}, outputs, rng(2)))
    before = torch.random.get_rng_state()
    policy.sample({}, outputs, rng())
    Gaussian(VECTORS).sample(Gaussian(VECTORS).init(CPU), outputs[..., :3], rng())
    assert torch.equal(before, torch.random.get_rng_state()), "nothing is drawn from the global generator"


def test_choices_equal_torch():
    outputs = 3 * torch.randn(6, 5, 4, generator=rng())
    choice = torch.randint(4, (6, 5), generator=rng(1))
    policy, theirs = Categorical(CHOICES), TorchCategorical(logits=outputs)
    torch.testing.assert_close(policy.log_prob({}, outputs, choice), theirs.log_prob(choice))
    torch.testing.assert_close(policy.entropy({}, outputs), theirs.entropy())
    assert torch.equal(policy.mode(outputs), theirs.mode)
    assert torch.equal(policy.action(choice), choice)


def test_what_cannot_be_taken_is_never_taken():
    outputs = torch.tensor([-math.inf, 0.0, -math.inf, -20.0]).expand(100_000, 4)
    policy = Categorical(CHOICES)
    assert set(policy.sample({}, outputs, rng()).tolist()) == {1}
    only = torch.tensor([-math.inf, -math.inf, -3.0, -math.inf])
    assert policy.sample({}, only.expand(1000, 4), rng()).unique().tolist() == [2]
    assert policy.mode(only).item() == 2
    assert policy.log_prob({}, only, torch.tensor(2)).item() == 0


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ((-math.inf, 1.0, -math.inf, 1.0), math.log(2)),
        ((0.0, 0.0, 0.0, -math.inf), math.log(3)),
        ((-math.inf, -math.inf, -math.inf, 5.0), 0.0),
        ((0.0, 200.0, -200.0, -math.inf), 0.0),
    ],
)
def test_entropy_and_gradients_are_finite_where_actions_cannot_be_taken(logits, expected):
    """As if the others alone were there, with the gradients that has."""
    policy, outputs = Categorical(CHOICES), torch.tensor(logits, requires_grad=True)
    entropy = policy.entropy({}, outputs)
    assert entropy.item() == pytest.approx(expected, abs=1e-6)
    choice = outputs.argmax()
    log_prob = policy.log_prob({}, outputs, choice)
    left = [i for i, x in enumerate(logits) if x > -math.inf]
    others = torch.tensor([logits[i] for i in left], requires_grad=True)
    theirs = others.log_softmax(-1)
    for mine, expected_of in ((entropy, -(theirs.exp() * theirs).sum()), (log_prob, theirs[left.index(int(choice))])):
        (gradient,) = torch.autograd.grad(mine, outputs)
        (theirs_of,) = torch.autograd.grad(expected_of, others, retain_graph=True)
        assert torch.isfinite(gradient).all()
        torch.testing.assert_close(gradient[left], theirs_of, rtol=0, atol=1e-6)
        assert not gradient[[i for i in range(4) if i not in left]].any()


# -- vectors


def test_vectors_equal_torch(float64):
    policy = Gaussian(VECTORS)
    params = {"log_std": torch.tensor([-1.0, 0.0, 0.5], requires_grad=True)}
    outputs = torch.randn(6, 5, 3, generator=rng(), requires_grad=True)
    choice = 2 * torch.randn(6, 5, 3, generator=rng(1))
    theirs = Independent(Normal(outputs, params["log_std"].exp()), 1)
    for mine, expected in (
        (policy.log_prob(params, outputs, choice), theirs.log_prob(choice)),
        (policy.entropy(params, outputs), theirs.entropy()),
    ):
        assert mine.shape == (6, 5)
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-12)
        weights = [outputs, params["log_std"]]
        mine_of, theirs_of = (
            torch.autograd.grad(x.sum(), weights, allow_unused=True, retain_graph=True) for x in (mine, expected)
        )
        for a, b in zip(mine_of, theirs_of, strict=True):
            torch.testing.assert_close(
                torch.zeros(1) if a is None else a, torch.zeros(1) if b is None else b, rtol=0, atol=1e-12
            )


def test_vectors_are_sampled_about_their_mean():
    policy = Gaussian(VECTORS)
    params = policy.init(CPU)
    assert params["log_std"].exp().tolist() == pytest.approx([STD] * 3)
    mean, num = torch.tensor([0.5, -3.0, 0.0]), 100_000
    choice = policy.sample(params, mean.expand(num, 3), rng())
    assert ((choice.mean(0) - mean).abs() < 4 * STD / num**0.5).all()
    assert ((choice.std(0) - STD).abs() < 4 * STD / (2 * num) ** 0.5).all()
    assert torch.equal(policy.mode(mean), mean)
    correlation = torch.corrcoef(choice.T) - torch.eye(3)
    assert (correlation.abs() < 4 / num**0.5).all(), "each entry has its own noise"


def test_actions_lie_within_the_bounds():
    """-1 and 1 are the bounds; what lies beyond is cut off. The memory is fed what was done, by the same measure."""
    policy = Gaussian(VECTORS)
    choice = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [-7.0, 9.0, 0.5]])
    action = policy.action(choice)
    assert action.tolist() == [[-2.0, 0.0, 1.0], [2.0, 1.0, 5.0], [0.0, 0.5, 3.0], [-2.0, 1.0, 4.0]]
    inputs = Inputs(InputsConfig(**dict.fromkeys(InputsConfig.model_fields, False)), VECTORS)
    torch.testing.assert_close(inputs.vector(action), choice.clamp(-1, 1))
