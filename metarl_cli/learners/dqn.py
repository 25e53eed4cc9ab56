"""DQN: Q-learning with a network (Mnih 2015, doi:10.1038/nature14236), as pure functions of the weights of one task or of many.

    y = r + gamma * (1 - terminated) * max_a' Q_target(s', a')         loss = mean (Q(s, a) - y)^2, or Huber

Double DQN (van Hasselt 2016, arXiv:1509.06461): the learning network chooses the bootstrap action. Along a trajectory the
target may be the Q(lambda) return. ``next_obs`` is the true successor, at a time limit too: only termination stops the
bootstrap.

For vector actions each dimension is divided into bins and chosen independently (decoupled Q, Seyde 2022, arXiv:2210.12566):
Q(s, a) = mean over d of Q_d(s, a_d), so that the maximum is the mean of the maxima.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from metarl_cli.config.base import StrictModel
from metarl_cli.experience.returns import lambda_returns
from metarl_cli.interfaces import Batch, Params, Transitions
from metarl_cli.interfaces import Learner as Base
from metarl_cli.networks.distributions import Greedy
from metarl_cli.networks.q_network import NetworkConfig, QNetwork
from metarl_cli.spaces import Choices, Layers, Spec


class Config(StrictModel):
    """The network and the loss of DQN; exploration and replay are the algorithm's."""

    network: NetworkConfig
    bins: int = Field(ge=2, description="values of each action dimension, for vector actions; they include the bounds")
    gamma: float = Field(ge=0, lt=1, description="discount per step")
    double: bool = Field(description="the learning network chooses the bootstrap action (Double DQN)")
    loss: Literal["huber", "squared"] = Field(description="loss of the temporal-difference error")
    reward_scale: float = Field(gt=0, description="factor of rewards; 1 - gamma keeps values near one")


class DQN(Base):
    """A Q-learner for one task.

    Args:
        config: see :class:`Config`.
        spec: the family's spec.
    """

    actions: Choices
    stacked = True

    def __init__(self, config: Config, spec: Spec):
        self.config, self.spec = config, spec
        self.actions = spec.actions.choices(config.bins)
        self.network = QNetwork(config.network, spec.obs_shape, self.actions.value_shape, spec.obs_scale)
        network = config.network
        self.layers = Layers(tuple(network.hidden), network.activation, network.layer_norm)

    @override
    def init(self, rng: torch.Generator) -> Params:
        return self.network.init(rng)

    @override
    def pack(self, params: Params) -> Params:
        # the policy or the network of a subclass takes the weights as they are
        own = type(self).policy is not DQN.policy or not isinstance(self.network, QNetwork)
        return params if own else self.network.pack(params)

    @override
    def policy(self, params: Params, obs: Tensor) -> Greedy:
        """Return the greedy policy; the caller adds exploration."""
        return Greedy(self._allowed(self.network(params, obs), obs), self.actions)

    def _allowed(self, q: Tensor, obs: Tensor) -> Tensor:
        """Return the values, -inf for actions that are illegal in ``obs``."""
        legal = self.spec.actions.legal(obs)
        return q if legal is None else q.masked_fill(~legal, -torch.inf)

    @override
    def prepare(
        self, params: Params, slow: Params, batch: Transitions, gamma: float | Tensor | None = None, lambda_: float = 0.0
    ) -> Batch:
        """Compute the targets ``target [..., T, N]`` of Q(s, a): one-step targets, or Q(lambda) for ``lambda_`` above 0.

        DQN holds targets fixed: they are constants in ``loss``. They are differentiable in ``slow``, so that a meta-gradient
        includes their dependence on the initialisation.
        """
        q = self.network(slow, batch.next_obs)
        chooser = self.network(params, batch.next_obs) if self.config.double and params is not slow else q
        value = self.actions.value(q, self._allowed(chooser, batch.next_obs).argmax(-1))
        discount = self.config.gamma if gamma is None else gamma[..., None, None] if isinstance(gamma, Tensor) else gamma
        reward = batch.reward * self.config.reward_scale
        return Batch(batch, {"target": lambda_returns(reward, value, batch.terminated, batch.ended, discount, lambda_)})

    @override
    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Return the mean loss over the experience of each task, ``[...]``."""
        experience, target = batch.experience, batch.signal["target"]
        q = self.actions.value(self.network(params, experience.obs), self.actions.index(experience.action))
        error = F.huber_loss(q, target, reduction="none") if self.config.loss == "huber" else (q - target).square()
        weight = experience.weight
        return (error * (weight / weight.sum((-2, -1), keepdim=True))).sum((-2, -1))


Learner = DQN
