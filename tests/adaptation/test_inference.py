"""What a network is given beside the observation: the last steps of an episode, and what an encoder reads in a support."""

import pytest
import torch
from conftest import short
from probes import Dial

from metarl_cli.adaptation.conditioning import History, widened
from metarl_cli.adaptation.inference import EncoderConfig, PosteriorEncoder, SupportEncoder, divergence, infer
from metarl_cli.adaptation.support import RolloutsConfig, collect_rollouts
from metarl_cli.errors import UserError
from metarl_cli.experience.rollout import RandomPolicy, collect, rollout
from metarl_cli.interfaces import Budget, Transitions
from metarl_cli.seeding import numpy_rng, torch_rng

ENCODER = EncoderConfig(hidden=[8])
ROLLOUTS = RolloutsConfig(rollouts=3, steps=5, epsilon=1.0, repeat=1)


def support(family, tasks=4, seed=0):
    task = family.sample_tasks(tasks, "train", numpy_rng(0, "tasks"))
    policy = RandomPolicy(family.spec.actions)
    return collect_rollouts(policy, family.spec.actions, family, task, ROLLOUTS, torch_rng(seed, "support"))


@pytest.mark.parametrize("env", ["cartpole_family", "pendulum_family"])
def test_history_along_experience_is_what_a_policy_saw(env):
    """Step for step, over the ends of episodes; and where an action led is seen with that action."""
    family = short(env)
    history = History(2, family.spec)
    task = family.sample_tasks(3, "train", numpy_rng(0, "tasks"))
    start = history.start((3, 2), torch.device("cpu"))

    def actor():
        return family.make(task, 2, torch_rng(0, "env")), RandomPolicy(family.spec.actions), {"rng": torch_rng(0, "actions")}

    experience = collect(*actor(), 30)
    wide, after = history.along(start, experience)
    seen = start
    assert bool(experience.ended.any())
    for t, moment in zip(range(30), rollout(*actor()), strict=False):
        assert torch.equal(wide.obs[:, t], torch.cat([seen, moment.obs], -1))
        then = history.after(seen, moment.obs, moment.action, moment.step.reward)
        assert torch.equal(wide.next_obs[:, t], torch.cat([then, moment.step.next_obs], -1))
        seen = then * ~moment.step.ended[..., None]
    assert torch.equal(after, seen)


def test_history_is_of_the_last_steps_newest_last():
    family = Dial()
    history = History(2, family.spec)
    now = history.start((1, 1), torch.device("cpu"))
    assert history.size == 2 * 3
    for action, reward in ((2.0, 0.0), (-1.0, 1.0), (0.0, -1.0)):
        now = history.after(now, torch.full((1, 1, 1), action), torch.tensor([[[action]]]), torch.tensor([[reward]]))
    log = torch.tensor(2.0).log()  # ln(1 + |r|)
    torch.testing.assert_close(now[0, 0], torch.stack([*torch.tensor([-1.0, -0.5]), log, *torch.tensor([0.0, 0.0]), -log]))


def test_what_is_given_is_scaled_and_comes_first():
    spec = short("navigation_2d").spec
    assert widened(spec) is spec
    assert widened(spec, (1.0,) * 3).obs_shape == (5,)
    assert widened(spec._replace(obs_scale=(2.0, 4.0)), (1.0,)).obs_scale == (1.0, 2.0, 4.0)
    with pytest.raises(UserError, match="images"):
        widened(spec._replace(obs_shape=(3, 8, 8)), (1.0,))


def test_a_single_transition_measures_a_normalisation_of_finite_numbers():
    """A checkpoint with any other could not be loaded again."""
    family = short("cartpole_family")
    encoder = SupportEncoder(ENCODER, family.spec, 2)
    one = Transitions(*(x[:1, :1, :1] for x in support(family)))
    measured = encoder.measure(one)
    assert all(value.isfinite().all() for value in measured.values())
    assert encoder.read(measured, one).entries.abs().max() == 0


@pytest.mark.parametrize("kind", [SupportEncoder, PosteriorEncoder])
def test_an_encoder_reads_a_set(kind):
    """Neither the order of rollouts nor what follows the end of an episode changes what it writes."""
    family = short("cartpole_family")
    encoder, read = kind(ENCODER, family.spec, 2), support(family)
    params, measured = encoder.init(torch_rng(0, "init")), encoder.measure(read)

    def written(some):
        if kind is PosteriorEncoder:
            return torch.cat(encoder.posterior(params, encoder.read(measured, some)))
        return encoder.estimate(params, encoder.read(measured, some))

    shuffled = Transitions(*(x.flip(2) for x in read))
    torch.testing.assert_close(written(shuffled), written(read))
    padding = Transitions(*(torch.cat([x, x[:, :1]], 1) for x in read))
    padding.weight[:, -1] = 0
    torch.testing.assert_close(written(padding), written(read))
    assert not torch.allclose(written(support(family, seed=1)), written(read))


def test_a_posterior_is_the_product_of_its_factors_and_the_prior():
    family = short("cartpole_family")
    encoder, read = PosteriorEncoder(ENCODER, family.spec, 2), support(family, tasks=1)
    params, measured = encoder.init(torch_rng(0, "init")), encoder.measure(read)
    nothing = read._replace(weight=torch.zeros_like(read.weight))
    mean, deviation = encoder.posterior(params, encoder.read(measured, nothing))
    assert bool((mean == 0).all())
    assert bool((deviation == 1).all()), "the prior"
    assert float(divergence(mean, deviation)) == 0
    single = read._replace(weight=torch.zeros_like(read.weight))
    single.weight[0, 0, 0] = 1
    one, spread = encoder.posterior(params, encoder.read(measured, single))
    twice = single._replace(weight=2 * single.weight)
    both, narrow = encoder.posterior(params, encoder.read(measured, twice))
    precision = spread**-2 - 1  # of the factor
    torch.testing.assert_close(narrow**-2, 1 + 2 * precision)
    torch.testing.assert_close(both, one * spread**-2 * 2 / (1 + 2 * precision))
    exact = torch.distributions.kl_divergence(torch.distributions.Normal(one, spread), torch.distributions.Normal(0, 1))
    torch.testing.assert_close(divergence(one, spread), exact.sum(-1))


def test_every_step_adds_a_support():
    family = short("cartpole_family")
    task, read = family.sample_tasks(2, "train", numpy_rng(0, "tasks")), []

    def policy(supports):
        read.append(0 if supports is None else supports.reward.shape[2])
        return RandomPolicy(family.spec.actions)

    found = list(infer(policy, family.spec.actions, family, task, Budget(2), ROLLOUTS, torch_rng(0, "support")))
    assert read == [0, 3, 6]
    assert [adapted.gradient_steps for adapted in found] == [0, 0, 0]
    assert found[0].env_steps == 0 < found[1].env_steps < found[2].env_steps
