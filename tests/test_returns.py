"""Returns against numbers worked out by hand and against the recursion itself."""

import pytest
import torch

from metarl_cli.returns import lambda_returns


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
