"""Returns against numbers worked out by hand and against the recursion itself."""

import pytest
import torch

from metarl_cli.experience.returns import generalized_advantages, lambda_returns


def recursion(reward, next_value, terminated, ended, gamma, lambda_):
    """Sutton and Barto's backward recursion, one environment and one step at a time."""
    steps, envs = reward.shape
    out = torch.empty_like(reward)
    for n in range(envs):
        for t in reversed(range(steps)):
            last = t == steps - 1 or bool(ended[t, n])
            after = next_value[t, n] if last else (1 - lambda_) * next_value[t, n] + lambda_ * out[t + 1, n]
            out[t, n] = reward[t, n] + gamma * (0.0 if terminated[t, n] else after)
    return out


def test_by_hand():
    reward = torch.tensor([[1.0], [2.0], [3.0]])
    value = torch.tensor([[10.0], [20.0], [30.0]])
    ended = torch.tensor([[False], [False], [True]])
    # one step: r + 0.5 v;  last step terminated: 3
    one = lambda_returns(reward, value, ended, ended, gamma=0.5, lambda_=0.0)
    assert one.squeeze(1).tolist() == [6.0, 12.0, 3.0]
    # Monte Carlo: 3; 2 + 0.5*3 = 3.5; 1 + 0.5*3.5 = 2.75
    full = lambda_returns(reward, value, ended, ended, gamma=0.5, lambda_=1.0)
    assert full.squeeze(1).tolist() == [2.75, 3.5, 3.0]
    # a time limit bootstraps: 3 + 0.5*30 = 18; 2 + 0.5*18 = 11; 1 + 0.5*11 = 6.5
    limit = lambda_returns(reward, value, torch.zeros_like(ended), ended, gamma=0.5, lambda_=1.0)
    assert limit.squeeze(1).tolist() == [6.5, 11.0, 18.0]


@pytest.mark.parametrize("lambda_", [0.0, 0.3, 0.9, 1.0])
def test_equals_the_recursion(lambda_, float64):
    rng = torch.Generator().manual_seed(0)
    reward, value = torch.randn(2, 12, 5, generator=rng)
    ended = torch.rand(12, 5, generator=rng) < 0.25
    terminated = ended & (torch.rand(12, 5, generator=rng) < 0.5)
    got = lambda_returns(reward, value, terminated, ended, 0.9, lambda_)
    torch.testing.assert_close(got, recursion(reward, value, terminated, ended, 0.9, lambda_), rtol=0, atol=1e-12)


# -- generalised advantages, along trials


def test_advantages_by_hand():
    """Two trials, of three steps and of two; whatever follows the second has no advantage."""
    reward = torch.tensor([[1.0, 2.0], [2.0, 4.0], [3.0, 77.0]])
    value = torch.tensor([[4.0, 8.0], [6.0, 2.0], [8.0, 55.0]])
    weight = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    # deltas with gamma 0.5: 1 + 3 - 4 = 0, 2 + 4 - 6 = 0, 3 - 8 = -5; 2 + 1 - 8 = -5, 4 - 2 = 2
    found = generalized_advantages(reward, value, weight, gamma=0.5, lambda_=0.5)
    assert found.tolist() == [[-5 / 16, -5 + 2 / 4], [-5 / 4, 2], [-5, 0]]
    one = generalized_advantages(reward, value, weight, gamma=0.5, lambda_=0.0)
    assert one.tolist() == [[0, -5], [0, 2], [-5, 0]]


def trials():
    """Six trials of 1 to 12 steps; noise everywhere, beyond their ends too."""
    rng = torch.Generator().manual_seed(0)
    reward, value = torch.randn(2, 12, 6, generator=rng)
    lengths = torch.tensor([1, 3, 5, 7, 11, 12])
    return reward, value, (torch.arange(12)[:, None] < lengths).to(reward.dtype), lengths.tolist()


@pytest.mark.parametrize("gamma", [0.9, 1.0])
@pytest.mark.parametrize("lambda_", [0.0, 0.95, 1.0])
def test_advantages_equal_their_definition(gamma, lambda_, float64):
    """Equation 16 as it stands, trial by trial: all later deltas, discounted; lambda 1 is the return minus the value."""
    reward, value, weight, lengths = trials()
    found = generalized_advantages(reward, value, weight, gamma, lambda_)
    for n, length in enumerate(lengths):
        r, v = reward[:length, n].tolist(), [*value[:length, n].tolist(), 0.0]
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(length)]
        expected = [sum((gamma * lambda_) ** (j - t) * delta[j] for j in range(t, length)) for t in range(length)]
        assert found[:, n].tolist() == pytest.approx(expected + [0.0] * (12 - length), abs=1e-12)
        if lambda_ == 1:
            monte_carlo = [sum(gamma ** (j - t) * r[j] for j in range(t, length)) - v[t] for t in range(length)]
            assert found[:length, n].tolist() == pytest.approx(monte_carlo, abs=1e-12)


def test_advantages_see_nothing_beyond_the_end():
    reward, value, weight, _ = trials()
    found = generalized_advantages(reward, value, weight, 0.9, 0.95)
    other = [torch.where(weight > 0, x, 1e6) for x in (reward, value)]
    assert torch.equal(found, generalized_advantages(*other, weight, 0.9, 0.95))


def test_advantages_reach_across_the_episodes_of_a_trial():
    """Only the weight ends a trial: a reward counts for every step before it, in whichever episode."""
    reward, value = torch.zeros(2, 6, 1)
    reward[5] = 1
    found = generalized_advantages(reward, value, torch.ones(6, 1), gamma=0.5, lambda_=1.0)
    assert found.flatten().tolist() == [0.5**n for n in (5, 4, 3, 2, 1, 0)]
