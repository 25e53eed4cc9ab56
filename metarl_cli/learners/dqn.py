"""DQN: Q-learning with a network (Mnih 2015, doi:10.1038/nature14236), as pure functions of the weights of ONE task.

    y = r + gamma * (1 - terminated) * max_a' Q_target(s', a')         loss = mean (Q(s, a) - y)^2, or Huber

Double DQN (van Hasselt 2016, arXiv:1509.06461): the bootstrap action is chosen by the network that learns. Along a
trajectory the target may be the Q(lambda) return. The true successor stands in ``next_obs`` also at a time limit, and only
termination stops the bootstrap.

Where actions are vectors, each dimension is cut into bins and chosen on its own (decoupled Q, Seyde 2022,
arXiv:2210.12566): Q(s, a) = mean over d of Q_d(s, a_d), and so the maximum is the mean of the maxima.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metarl_cli.config.base import StrictModel
from metarl_cli.experience.returns import Returns, lambda_returns
from metarl_cli.interfaces import Params, Transitions
from metarl_cli.networks.q_network import NetworkConfig, QNetwork
from metarl_cli.spaces import Bins, Spec, random_actions


class Config(StrictModel):
    """What a DQN is, apart from when and on what it learns."""

    network: NetworkConfig
    bins: int = Field(ge=2, description="choices of each action dimension, where actions are vectors; the bounds among them")
    gamma: float = Field(ge=0, lt=1, description="discount per step")
    double: bool = Field(description="choose the bootstrap action by the learning network (Double DQN)")
    loss: Literal["huber", "squared"] = Field(description="loss of the temporal difference")
    reward_scale: float = Field(gt=0, description="rewards are multiplied by this; 1 - gamma keeps values near one")


class DQN:
    """A Q-learner for one task; ``act`` alone takes the weights of many."""

    def __init__(self, config: Config, spec: Spec):
        self.config, self.spec = config, spec
        self.bins = None if spec.box is None else Bins(spec.box, config.bins)
        outputs = (spec.num_actions,) if spec.box is None else (len(spec.box.low), config.bins)
        self.network = QNetwork(config.network, spec, outputs)

    def init(self, rng: torch.Generator) -> Params:
        """Fresh weights of one network."""
        return self.network.init(rng)

    def act(self, params: Params, obs: Tensor, epsilon: float | Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Epsilon-greedy actions ``[M, N]``, or ``[M, N, D]``; ``params`` lead with [M], ``obs`` is ``[M, N, ...]``.

        Greedy needs no ``rng``; ``epsilon`` may be one for each task, ``[M]``.
        """
        mixed = isinstance(epsilon, Tensor)
        if not mixed and epsilon >= 1:
            return self._anything(obs, rng)
        with torch.no_grad():
            action = self._values(self._best(self.network.stacked(params, obs), obs))
        if mixed or epsilon > 0:
            share = epsilon[:, None] if isinstance(epsilon, Tensor) else epsilon
            explore = torch.rand(obs.shape[:2], generator=rng, device=obs.device) < share
            anything = self._anything(obs, rng)
            action = torch.where(explore if self.bins is None else explore[..., None], anything, action)
        return action

    def _anything(self, obs: Tensor, rng: torch.Generator | None) -> Tensor:
        """Random actions, of those the learner can choose."""
        if self.bins is None:
            return random_actions(self.spec, obs, rng)
        shape = (*obs.shape[:2], self.network.outputs[0])
        return self._values(torch.randint(self.bins.num, shape, generator=rng, device=obs.device))

    def _values(self, choice: Tensor) -> Tensor:
        return choice if self.bins is None else self.bins.values(choice)

    def _best(self, q: Tensor, obs: Tensor) -> Tensor:
        """The best choices, ``[...]`` or ``[..., D]``, of those one can take in ``obs``."""
        if self.spec.masked:
            q = q.masked_fill(obs[..., -self.spec.num_actions :] == 0, -torch.inf)
        return q.argmax(-1)

    def _value(self, q: Tensor, choice: Tensor) -> Tensor:
        """Q ``[...]`` of choices, from ``q [..., A]`` or ``[..., D, bins]``."""
        value = q.gather(-1, choice[..., None])[..., 0]
        return value if self.bins is None else value.mean(-1)

    def targets(
        self,
        params: Params,
        target_params: Params,
        batch: Transitions,
        returns: Returns | None = None,
        gamma: Tensor | None = None,
    ) -> Tensor:
        """What Q(s, a) should be, ``[T, N]``: the one-step target, or ``returns``, for which T is time.

        ``gamma`` is a discount ``[]`` in the place of theirs and of the learner's own.

        DQN holds targets fixed: the caller gives them to ``loss`` as numbers. They are left differentiable in
        ``target_params`` for a meta-gradient, which sees how the initialisation moves them.
        """
        discount: float | Tensor = self.config.gamma if returns is None or returns.gamma is None else returns.gamma
        discount = discount if gamma is None else gamma
        lambda_ = 0.0 if returns is None else returns.lambda_
        q = self.network(target_params, batch.next_obs)
        chooser = self.network(params, batch.next_obs) if self.config.double and params is not target_params else q
        value = self._value(q, self._best(chooser, batch.next_obs))
        reward = batch.reward * self.config.reward_scale
        return lambda_returns(reward, value, batch.terminated, batch.ended, discount, lambda_)

    def loss(self, params: Params, batch: Transitions, target: Tensor) -> Tensor:
        """The scalar loss of one task, the mean over its experience; ``target [T, N]``."""
        choice = batch.action if self.bins is None else self.bins.index(batch.action)
        q = self._value(self.network(params, batch.obs), choice)
        error = F.huber_loss(q, target, reduction="none") if self.config.loss == "huber" else (q - target).square()
        return (error * batch.weight).sum() / batch.weight.sum()


Learner = DQN
