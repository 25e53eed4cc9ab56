"""Distributions against torch's own, against counts, and where actions cannot be taken."""

import math

import pytest
import torch
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from metarl_cli.adaptation.memory import Inputs, InputsConfig
from metarl_cli.networks.distributions import STD, Categorical, Gaussian, Greedy, PolicyHead, SquashedGaussian
from metarl_cli.spaces import Bins, Continuous, Discrete, Spec

CPU = torch.device("cpu")
CHOICES = Spec(obs_shape=(1,), actions=Discrete(4), horizon=1)
VECTORS = Spec(obs_shape=(1,), actions=Continuous((-2.0, 0.0, 1.0), (2.0, 1.0, 5.0)), horizon=1)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_what_fits_a_family():
    choices, vectors = PolicyHead(CHOICES.actions), PolicyHead(VECTORS.actions)
    assert isinstance(choices(choices.init(CPU), torch.zeros(4)), Categorical)
    assert isinstance(vectors(vectors.init(CPU), torch.zeros(3)), Gaussian)
    assert choices.outputs == 4
    assert vectors.outputs == 3


def gaussian(mean: torch.Tensor) -> Gaussian:
    """A fresh policy's."""
    head = PolicyHead(VECTORS.actions)
    policy = head(head.init(CPU), mean)
    assert isinstance(policy, Gaussian)
    return policy


# -- choices


@pytest.mark.parametrize("probabilities", [[0.1, 0.2, 0.3, 0.4], [0.97, 0.01, 0.01, 0.01], [0.5, 0.0, 0.5, 0.0]])
def test_choices_are_sampled_by_their_probabilities(probabilities):
    """Within four standard errors; what cannot be taken never is. A shift of all logits changes nothing."""
    num, p = 100_000, torch.tensor(probabilities)
    for shift in (0.0, 50.0):
        choice = Categorical((p.log() + shift).expand(num, 4)).sample(rng())
        share = torch.bincount(choice, minlength=4) / num
        assert ((share - p).abs() <= 4 * (p * (1 - p) / num).sqrt()).all()


def test_samples_follow_the_generator():
    outputs = torch.randn(5, 7, 4, generator=rng(1))
    policy = Categorical(outputs)
    assert policy.sample(rng()).shape == (5, 7)
    assert torch.equal(policy.sample(rng()), policy.sample(rng()))
    assert not torch.equal(policy.sample(rng()), policy.sample(rng(2)))
    before = torch.random.get_rng_state()
    policy.sample(rng())
    gaussian(outputs[..., :3]).sample(rng())
    assert torch.equal(before, torch.random.get_rng_state()), "nothing is drawn from the global generator"


def test_choices_equal_torch():
    outputs = 3 * torch.randn(6, 5, 4, generator=rng())
    choice = torch.randint(4, (6, 5), generator=rng(1))
    policy, theirs = Categorical(outputs), TorchCategorical(logits=outputs)
    torch.testing.assert_close(policy.log_prob(choice), theirs.log_prob(choice))
    torch.testing.assert_close(policy.entropy(), theirs.entropy())
    assert torch.equal(policy.mode(), theirs.mode)


def test_what_cannot_be_taken_is_never_taken():
    outputs = torch.tensor([-math.inf, 0.0, -math.inf, -20.0]).expand(100_000, 4)
    assert set(Categorical(outputs).sample(rng()).tolist()) == {1}
    only = torch.tensor([-math.inf, -math.inf, -3.0, -math.inf])
    assert Categorical(only.expand(1000, 4)).sample(rng()).unique().tolist() == [2]
    assert Categorical(only).mode().item() == 2
    assert Categorical(only).log_prob(torch.tensor(2)).item() == 0


def test_what_cannot_be_taken_is_masked_by_the_head():
    outputs, legal = torch.randn(6, 5, 4, generator=rng()), torch.rand(6, 5, 4, generator=rng(1)) < 0.7
    legal[..., 2] = True
    policy = PolicyHead(CHOICES.actions)({}, outputs, legal)
    assert torch.equal(policy.log_prob(torch.zeros(6, 5).long()) > -math.inf, legal[..., 0])
    assert legal.gather(-1, policy.mode()[..., None]).all()
    assert legal.gather(-1, policy.sample(rng())[..., None]).all()


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
    outputs = torch.tensor(logits, requires_grad=True)
    policy = Categorical(outputs)
    entropy = policy.entropy()
    assert entropy.item() == pytest.approx(expected, abs=1e-6)
    choice = outputs.argmax()
    log_prob = policy.log_prob(choice)
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
    params = {"log_std": torch.tensor([-1.0, 0.0, 0.5], requires_grad=True)}
    outputs = torch.randn(6, 5, 3, generator=rng(), requires_grad=True)
    policy = Gaussian(outputs, params["log_std"], VECTORS.actions)
    choice = 2 * torch.randn(6, 5, 3, generator=rng(1))
    theirs = Independent(Normal(outputs, params["log_std"].exp()), 1)
    for mine, expected in (
        (policy.log_prob(VECTORS.actions.decode(choice)), theirs.log_prob(choice)),
        (policy.entropy(), theirs.entropy()),
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
    assert PolicyHead(VECTORS.actions).init(CPU)["log_std"].exp().tolist() == pytest.approx([STD] * 3)
    mean, num = torch.tensor([0.5, -3.0, 0.0]), 100_000
    policy = gaussian(mean.expand(num, 3))
    choice = VECTORS.actions.encode(policy.sample(rng()))
    assert ((choice.mean(0) - mean).abs() < 4 * STD / num**0.5).all()
    assert ((choice.std(0) - STD).abs() < 4 * STD / (2 * num) ** 0.5).all()
    torch.testing.assert_close(VECTORS.actions.encode(policy.mode()[0]), mean)
    correlation = torch.corrcoef(choice.T) - torch.eye(3)
    assert (correlation.abs() < 4 / num**0.5).all(), "each entry has its own noise"


def test_actions_lie_within_the_bounds():
    """-1 and 1 are the bounds; what lies beyond is cut off. The memory is fed what was done, by the same measure."""
    choice = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [-7.0, 9.0, 0.5]])
    wanted = gaussian(choice).mode()
    action = VECTORS.actions.clip(wanted)
    assert action.tolist() == [[-2.0, 0.0, 1.0], [2.0, 1.0, 5.0], [0.0, 0.5, 3.0], [-2.0, 1.0, 4.0]]
    inputs = Inputs(InputsConfig(**dict.fromkeys(InputsConfig.model_fields, False)), VECTORS)
    for done in (action, wanted):
        torch.testing.assert_close(inputs.vector(done), choice.clamp(-1, 1))


# -- certainty


def test_greedy_takes_the_greatest_value_with_certainty():
    values = torch.tensor([[0.0, 3.0, -1.0, 2.0], [5.0, -math.inf, 0.0, 1.0]])
    policy = Greedy(values, CHOICES.actions)
    assert policy.mode().tolist() == policy.sample(rng()).tolist() == [1, 0]
    assert policy.log_prob(torch.tensor([1, 2])).tolist() == [0, -math.inf]
    assert policy.entropy().tolist() == [0, 0]


def test_greedy_takes_the_greatest_bin_of_each_dimension():
    """Three bins of each of three dimensions: of the bounds and of what lies half-way."""
    values = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]).expand(2, 5, 3, 3)
    policy = Greedy(values, Bins(VECTORS.actions, 3))
    expected = torch.tensor([2.0, 0.5, 1.0])
    assert torch.equal(policy.mode(), expected.expand(2, 5, 3))
    assert torch.equal(policy.sample(rng()), policy.mode())
    assert torch.equal(policy.log_prob(policy.mode()), torch.zeros(2, 5))
    assert (policy.log_prob(torch.tensor([2.0, 0.5, 5.0]).expand(2, 5, 3)) == -math.inf).all()
    assert torch.equal(policy.entropy(), torch.zeros(2, 5))


def test_the_head_of_stacked_networks_is_each_head_alone():
    """Also where there are as many environments as networks."""
    head, num = PolicyHead(VECTORS.actions), 4
    log_std = torch.randn(num, 3, generator=rng())
    outputs = torch.randn(num, num, 3, generator=rng(1))
    together = head({"log_std": log_std}, outputs)
    action = together.sample(rng(2))
    for i in range(num):
        alone = head({"log_std": log_std[i]}, outputs[i])
        torch.testing.assert_close(together.log_prob(action)[i], alone.log_prob(action[i]))
        torch.testing.assert_close(together.entropy()[i], alone.entropy())


# -- squashed vectors


def squashed(mean: torch.Tensor, log_std: torch.Tensor) -> SquashedGaussian:
    return SquashedGaussian(mean, log_std, VECTORS.actions)


def test_squashed_vectors_are_those_of_torch(float64):
    """Samples, and densities where the bounds are -1 and 1, whatever the bounds are."""
    mean, log_std, noise = torch.randn(3, 200, 3, generator=rng()) / 2  # within the range of their arctanh
    policy = squashed(mean, log_std)
    action, log_prob = policy.draw(noise)
    theirs = TransformedDistribution(Normal(mean, log_std.exp()), [TanhTransform()])
    centre, half = torch.tensor([0.0, 0.5, 3.0]), torch.tensor([2.0, 0.5, 2.0])
    torch.testing.assert_close(action, centre + half * (mean + log_std.exp() * noise).tanh())
    torch.testing.assert_close(log_prob, theirs.log_prob((action - centre) / half).sum(-1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(policy.log_prob(action), log_prob, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(policy.mode(), centre + half * mean.tanh())


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.05), (0.4, 0.6), (-1.0, 1.5)])
def test_the_density_of_squashed_vectors_integrates_to_one(mean, std, float64):
    """And minus its mean logarithm is the entropy."""
    one = Continuous((-1.0,), (1.0,))
    policy = SquashedGaussian(torch.tensor([mean]), torch.tensor([std]).log(), one)
    action = torch.linspace(-1, 1, 2_000_001)[1:-1, None]
    log_prob = policy.log_prob(action)
    assert float(torch.trapezoid(log_prob.exp(), action[:, 0])) == pytest.approx(1, abs=1e-3)
    entropy = -torch.trapezoid(log_prob.exp() * log_prob, action[:, 0])
    assert float(policy.entropy()) == pytest.approx(float(entropy), abs=5e-3)


def test_squashed_vectors_at_the_bounds_have_finite_densities():
    """In single precision, where tanh is 1 and its slope 0 from 10 on."""
    policy = squashed(torch.full((1, 3), 20.0), torch.zeros(1, 3))
    action, log_prob = policy.draw(torch.zeros(1, 3))
    assert torch.equal(action, torch.tensor([[2.0, 1.0, 5.0]]))
    expected = 3 * (2 * 20 - 2 * math.log(2) - math.log(2 * math.pi) / 2)
    assert float(log_prob) == pytest.approx(expected, rel=1e-6)
    assert torch.isfinite(policy.log_prob(action)).all()
