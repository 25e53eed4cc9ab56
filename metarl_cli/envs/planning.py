"""Planning where the states are few: what is known of an environment beside its rewards, and what to do for given rewards.

    soft      V[t](s) = 1/β log Σ_a exp β Q[t](s, a)        Q[t](s, a) = R(s, a) + Σ_s' P(s' | s, a) V[t+1](s'),  V[H] = 0
              π[t](a | s) = exp β (Q[t](s, a) - V[t](s))

This is maximum causal entropy (Ziebart 2010, cs.cmu.edu/~bziebart/publications/thesis-bziebart.pdf): the policy of the
greatest return among those of equal entropy. β is the rationality of whoever acts; as it grows, the policy becomes optimal.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from typing_extensions import override

from metarl_cli.interfaces import Policy, State, Step


class Process(NamedTuple):
    """What is known of the environments of M tasks: everything but the rewards.

    A reward is a number for each of X places: for each state that a step leads to (X = S), or for each pair of a state and an
    action (X = S A).
    """

    transition: Tensor  # [M, S, A, S] probabilities
    features: Tensor  # [M, X, F] numbers that tell what a place is like
    horizon: int  # H, steps of an episode
    rationality: float  # β of whoever demonstrates

    def reward(self, places: Tensor) -> Tensor:
        """Return the expected rewards ``[M, S, A]`` for rewards of places ``[M, X]``."""
        num, states, actions = self.transition.shape[:3]
        if places.shape[1] == states * actions:
            return places.view(num, states, actions)
        return expected(self.transition, places)

    def choices(self, places: Tensor) -> Tensor:
        """Return the log-probabilities ``[M, H, S, A]`` of whoever wants the rewards of places ``[M, X]``."""
        return soft_value_iteration(self.transition, self.reward(places), self.horizon, self.rationality)[1].movedim(0, 1)

    def plan(self, places: Tensor) -> Tensor:
        """Return the probabilities ``[M, H, S, A]``, 0 and 1, of the best actions for rewards of places ``[M, X]``."""
        _, best = value_iteration(self.transition, self.reward(places), self.horizon)
        return one_hot(best.movedim(0, 1), self.transition.shape[2]).to(places.dtype)


def expected(transition: Tensor, value: Tensor) -> Tensor:
    """Return the expectation ``[M, S, A]`` of values ``[M, S]`` of the states that steps lead to."""
    num, states, actions, _ = transition.shape
    if num > 1 and transition.stride(0) == 0:  # the same for all tasks, as one view: a single product, several times as fast
        return (value @ transition[0].reshape(states * actions, states).T).view(num, states, actions)
    mean = torch.bmm(transition.reshape(num, states * actions, states), value[..., None])
    return mean.view(num, states, actions)


def value_iteration(transition: Tensor, reward: Tensor, horizon: int) -> tuple[Tensor, Tensor]:
    """Compute the optimal undiscounted values and actions of an episode, backwards from its last step (Bellman 1957).

    ``V[H](s) = 0`` and ``V[t](s) = max_a R(s, a) + Σ_s' P(s' | s, a) V[t+1](s')``; the index is the step, not the steps to go.

    Args:
        transition: ``P [M, S, A, S]``.
        reward: ``R [M, S, A]``, expected.
        horizon: H, the steps of an episode.

    Returns:
        The values ``V [H+1, M, S]`` and the optimal actions ``[H, M, S]``, the first of equally good ones.
    """
    values, actions = [reward.new_zeros(reward.shape[:2])], []
    for _ in range(horizon):
        best = (reward + torch.einsum("msan,mn->msa", transition, values[-1])).max(-1)
        values.append(best.values)
        actions.append(best.indices)
    return torch.stack(values[::-1]), torch.stack(actions[::-1])


def soft_value_iteration(transition: Tensor, reward: Tensor, horizon: int, rationality: float) -> tuple[Tensor, Tensor]:
    """Compute the soft values and the soft-optimal policy of an episode; differentiable in the rewards.

    Args:
        transition: ``P [M, S, A, S]``.
        reward: ``R [M, S, A]``, expected.
        horizon: H, the steps of an episode.
        rationality: β.

    Returns:
        The values ``V [H+1, M, S]`` and the log-probabilities ``[H, M, S, A]``.
    """
    values, choices = [reward.new_zeros(reward.shape[:2])], []
    for _ in range(horizon):
        worth = rationality * (reward + expected(transition, values[-1]))
        total = worth.logsumexp(-1)
        values.append(total / rationality)
        choices.append(worth - total[..., None])
    return torch.stack(values[::-1]), torch.stack(choices[::-1])


def policy_values(transition: Tensor, reward: Tensor, table: Tensor) -> Tensor:
    """Compute the expected returns ``[M, S]`` of an episode from each state, for probabilities of actions ``[M, H, S, A]``."""
    value = reward.new_zeros(reward.shape[:2])
    for t in reversed(range(table.shape[1])):
        value = (table[:, t] * (reward + expected(transition, value))).sum(-1)
    return value


class TablePolicy(Policy):
    """The policies of M tasks as tables, one for each step of an episode; observations are states, one-hot.

    Args:
        table: the probabilities of actions ``[M, H, S, A]``.
    """

    def __init__(self, table: Tensor):
        self.table = table
        self.stochastic = bool(((table > 0) & (table < 1)).any())

    @override
    def start(self, num_envs: int, rng: torch.Generator, greedy: bool = True) -> State:
        clock = torch.zeros(len(self.table), num_envs, dtype=torch.long, device=self.table.device)
        return {"rng": None if greedy else rng, "clock": clock}

    @override
    def act(self, state: State, obs: Tensor) -> tuple[Tensor, State]:
        now = state["clock"].clamp(max=self.table.shape[1] - 1)
        row = self.table[torch.arange(len(now), device=now.device)[:, None], now, obs.argmax(-1)]  # [M, N, A]
        if state["rng"] is None:
            return row.argmax(-1), state
        drawn = torch.multinomial(row.flatten(0, 1), 1, generator=state["rng"])
        return drawn.view(row.shape[:2]), state

    @override
    def observe(self, state: State, obs: Tensor, action: Tensor, step: Step) -> State:
        return {**state, "clock": torch.where(step.ended, 0, state["clock"] + 1)}

    @override
    def state_dict(self) -> State:
        return {"table": self.table}
