"""Statistics of whole episodes, whatever the length of the collections that cut them."""

import pytest
import torch

from metarl_cli.experience.episodes import Episodes
from metarl_cli.interfaces import Transitions


def part(reward, ended):
    """Experience ``[M, T, N]`` of which only rewards and ends matter."""
    zeros = torch.zeros_like(reward)
    return Transitions(zeros, zeros, reward, zeros, ended, ended, zeros + 1)


def test_by_hand():
    """One environment; episodes of 3 and of 2 steps, seen through windows of 2 steps."""
    reward = torch.tensor([1.0, 1, 5, 2, 2, 9]).view(1, 3, 2, 1)
    ended = torch.tensor([0, 0, 1, 0, 1, 0]).bool().view(1, 3, 2, 1)
    episodes = Episodes()
    found = [episodes.summary(part(reward[:, i], ended[:, i])) for i in range(3)]
    assert found[0] == {"train/reward": 1.0}, "none has ended"
    assert found[1] == {"train/reward": 3.5, "train/episode_length": 3.0, "train/episode_return": 7.0}
    assert found[2] == {"train/reward": 5.5, "train/episode_length": 2.0, "train/episode_return": 4.0}


@pytest.mark.parametrize("window", [1, 3, 8, 24])
@pytest.mark.parametrize("chance", [0.02, 0.3, 0.9, 1.0])
def test_windows_change_no_episode(window, chance):
    """Against episodes counted one by one."""
    rng = torch.Generator().manual_seed(0)
    reward, ended = torch.randn(2, 24, 3, generator=rng), torch.rand(2, 24, 3, generator=rng) < chance
    expected = []  # length and return of each episode, by the step at which it ends
    for m in range(2):
        for n in range(3):
            length, total = 0, 0.0
            for t in range(24):
                length, total = length + 1, total + float(reward[m, t, n])
                if ended[m, t, n]:
                    expected.append((t, length, total))
                    length, total = 0, 0.0
    episodes = Episodes()
    for begin in range(0, 24, window):
        end = begin + window
        found = episodes.summary(part(reward[:, begin:end], ended[:, begin:end]))
        saved, episodes = episodes.state_dict(), Episodes()
        episodes.load_state_dict(saved)
        inside = [(length, total) for t, length, total in expected if begin <= t < end]
        assert ("train/episode_length" in found) == bool(inside)
        if inside:
            lengths, returns = torch.tensor(inside, dtype=torch.float64).mean(0).tolist()
            assert found["train/episode_length"] == pytest.approx(lengths)
            assert found["train/episode_return"] == pytest.approx(returns, abs=1e-6)
