"""Exploration: the share of random steps is epsilon whatever a random action's length."""

import pytest
import torch
from conftest import compose_train, load

from metarl_cli.adaptation.gradient import NetworkPolicy
from metarl_cli.experience.exploration import EpsilonGreedy
from metarl_cli.interfaces import Policy
from metarl_cli.learners.dqn import DQN
from metarl_cli.seeding import torch_rng
from metarl_cli.spaces import Continuous, Discrete, Spec


def learner(spec: Spec) -> tuple[DQN, dict[str, torch.Tensor]]:
    """A learner whose greedy action is always the first choice."""
    dqn = DQN(load("learner", compose_train("learner.bins=5").learner)[1], spec)
    params = {k: torch.zeros(2, *v.shape) for k, v in dqn.init(torch_rng(0, "init")).items()}
    params["head.bias"] = torch.tensor([9.0, 0, 0, 0, 0]).repeat(2, params["head.bias"].shape[1] // 5)
    return dqn, params


def acted(policy: Policy, obs: torch.Tensor, steps: int) -> torch.Tensor:
    """What a policy does, step after step, where nothing changes: ``[T, M, N, ...]``."""
    state, actions = policy.start(obs.shape[1], torch_rng(0, "act")), []
    for _ in range(steps):
        action, state = policy.act(state, obs)
        actions.append(action)
    return torch.stack(actions)


@pytest.mark.parametrize("repeat", [1, 4, 10])
@pytest.mark.parametrize("epsilon", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("actions", [Discrete(5), Continuous((-1.0, 0.0), (1.0, 2.0))])
def test_a_share_of_epsilon_is_random_and_lasts(actions, epsilon, repeat):
    vectors = isinstance(actions, Continuous)
    dqn, params = learner(Spec(obs_shape=(1,), actions=actions, horizon=10))
    policy, obs = EpsilonGreedy(NetworkPolicy(dqn, params), dqn.actions, epsilon, repeat), torch.zeros(2, 500, 1)
    action = acted(policy, obs, 80)  # [T, M, N] or [T, M, N, D]
    first = torch.tensor(actions.low) if vectors else torch.tensor(0)
    other = action != first
    moved = other.any(-1) if vectors else other
    chance = 1 - (1 / 25 if vectors else 1 / 5)  # that a random action is not the greedy one
    assert float(moved.float().mean()) == pytest.approx(epsilon * chance, abs=0.02)
    assert float(moved[0].float().mean()) == pytest.approx(epsilon * chance, abs=0.04), "from the first step on"
    if epsilon == 1 and repeat > 1:
        changes = (action[1:] != action[:-1]).float().mean((0, 1, 2))
        expected = (1 - 1 / 5) / repeat
        torch.testing.assert_close(changes, torch.full_like(changes, expected), atol=0.02, rtol=0)
