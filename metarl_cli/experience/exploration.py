"""Epsilon-greedy exploration; a random action may last for several steps.

This is temporally extended exploration (Dabney 2021, arXiv:2006.01782) with a fixed duration.
"""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from metarl_cli.interfaces import Policy, State, Step
from metarl_cli.spaces import ActionSpace


class EpsilonGreedy(Policy):
    """A policy in which a share epsilon of all steps is random; a random action lasts ``repeat`` steps.

    Args:
        policy: the policy of all other steps; its actions are sampled if it is stochastic.
        actions: the action space of random actions.
        epsilon: the share of random steps: one number, one per task ``[M]``, or one per environment ``[M, N]``.
        repeat: duration of a random action [steps].
    """

    stochastic = True

    def __init__(self, policy: Policy, actions: ActionSpace, epsilon: float | Tensor, repeat: int = 1):
        self.policy, self.actions, self.repeat = policy, actions, repeat
        self.always = not isinstance(epsilon, Tensor) and epsilon >= 1  # the inner policy is then not evaluated
        self.never = not isinstance(epsilon, Tensor) and epsilon == 0
        self.share = epsilon[:, None] if isinstance(epsilon, Tensor) and epsilon.dim() == 1 else epsilon

    @override
    def start(self, num_envs: int, rng: torch.Generator, greedy: bool = False) -> State:
        inner = self.policy.start(num_envs, rng, greedy=not self.policy.stochastic)
        return {"policy": inner, "rng": rng, "held": None, "left": None}

    @override
    def act(self, state: State, obs: Tensor) -> tuple[Tensor, State]:
        if self.repeat > 1:
            return self._act_and_hold(state, obs)
        if self.always:
            return self.actions.random(obs, state["rng"]), state
        action, inner = self.policy.act(state["policy"], obs)
        if self.never:
            return action, {**state, "policy": inner}
        explore = torch.rand(obs.shape[:2], generator=state["rng"], device=obs.device) < self.share
        random = self.actions.random(obs, state["rng"])
        return torch.where(_align(explore, action), random, action), {**state, "policy": inner}

    def _act_and_hold(self, state: State, obs: Tensor) -> tuple[Tensor, State]:
        rng, repeat, held, left = state["rng"], self.repeat, state["held"], state["left"]
        random = self.actions.random(obs, rng)
        if held is None:
            held, left = random, torch.zeros(obs.shape[:2], dtype=torch.long, device=obs.device)
            # the first step may be in the middle of a random action with 0 to repeat - 1 steps left, so that the share of
            # random steps is epsilon from the start
            part = torch.randint(repeat, left.shape, generator=rng, device=obs.device)
            left = torch.where(torch.rand(left.shape, generator=rng, device=obs.device) < self.share, part, left)
        # probability that a random action starts at a step outside of one, so that a share epsilon of all steps is random
        starts = self.share / (self.share + repeat * (1 - self.share))
        begin = (left == 0) & (torch.rand(left.shape, generator=rng, device=obs.device) < starts)
        left = torch.where(begin, repeat, left)
        held = torch.where(_align(begin, random), random, held)
        legal = self.actions.legal(obs)
        if legal is not None:  # the held action may have become illegal
            held = torch.where(legal.gather(-1, held[..., None])[..., 0], held, random)
        state = {**state, "held": held, "left": (left - 1).clamp(min=0)}
        if self.always:
            return held, state
        action, inner = self.policy.act(state["policy"], obs)
        return torch.where(_align(left > 0, action), held, action), {**state, "policy": inner}

    @override
    def observe(self, state: State, obs: Tensor, action: Tensor, step: Step) -> State:
        return state if self.always else {**state, "policy": self.policy.observe(state["policy"], obs, action, step)}


def _align(mask: Tensor, action: Tensor) -> Tensor:
    """Reshape ``mask [M, N]`` so that it broadcasts against ``action``."""
    return mask[(...,) + (None,) * (action.dim() - mask.dim())]
