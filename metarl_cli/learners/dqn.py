"""DQN: Q-learning with a network (Mnih 2015, doi:10.1038/nature14236), as pure functions of the weights of ONE task.

    y = r + gamma * (1 - terminated) * max_a' Q_target(s', a')         loss = mean (Q(s, a) - y)^2, or Huber

Double DQN (van Hasselt 2016, arXiv:1509.06461): the bootstrap action is chosen by the network that learns. Along a
trajectory the target may be the Q(lambda) return. The true successor stands in ``next_obs`` also at a time limit, and only
termination stops the bootstrap.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

from metarl_cli.networks import NetworkConfig, QNetwork
from metarl_cli.returns import lambda_returns
from metarl_cli.types import Params, Returns, Spec, StrictModel, Transitions


class Config(StrictModel):
    """What a DQN is, apart from when and on what it learns."""

    network: NetworkConfig
    gamma: float = Field(ge=0, lt=1, description="discount per step")
    double: bool = Field(description="choose the bootstrap action by the learning network (Double DQN)")
    loss: Literal["huber", "squared"] = Field(description="loss of the temporal difference")
    reward_scale: float = Field(gt=0, description="rewards are multiplied by this; 1 - gamma keeps values near one")


class DQN:
    """A Q-learner for one task; ``act`` alone takes the weights of many."""

    def __init__(self, config: Config, spec: Spec):
        self.config, self.spec = config, spec
        self.network = QNetwork(config.network, spec)

    def init(self, rng: torch.Generator) -> Params:
        """Fresh weights of one network."""
        return self.network.init(rng)

    def act(self, params: Params, obs: Tensor, epsilon: float, rng: torch.Generator | None = None) -> Tensor:
        """Epsilon-greedy actions ``[M, N]``; ``params`` lead with [M], ``obs`` is ``[M, N, ...]``; greedy needs no ``rng``."""
        if epsilon >= 1:
            return torch.randint(self.spec.num_actions, obs.shape[:2], generator=rng, device=obs.device)
        with torch.no_grad():
            action = vmap(self.network)(params, obs).argmax(-1)
        if epsilon > 0:
            explore = torch.rand(action.shape, generator=rng, device=obs.device) < epsilon
            anything = torch.randint(self.spec.num_actions, action.shape, generator=rng, device=obs.device)
            action = torch.where(explore, anything, action)
        return action

    def targets(self, params: Params, target_params: Params, batch: Transitions, returns: Returns | None = None) -> Tensor:
        """What Q(s, a) should be, ``[T, N]``: the one-step target, or ``returns``, for which T is time.

        DQN holds targets fixed: the caller gives them to ``loss`` as numbers. They are left differentiable in
        ``target_params`` for a meta-gradient, which sees how the initialisation moves them.
        """
        gamma = self.config.gamma if returns is None or returns.gamma is None else returns.gamma
        lambda_ = 0.0 if returns is None else returns.lambda_
        value = self.network(target_params, batch.next_obs)
        chooser = self.network(params, batch.next_obs) if self.config.double and params is not target_params else value
        value = value.gather(-1, chooser.argmax(-1, keepdim=True))[..., 0]
        reward = batch.reward * self.config.reward_scale
        return lambda_returns(reward, value, batch.terminated, batch.ended, gamma, lambda_)

    def loss(self, params: Params, batch: Transitions, target: Tensor) -> Tensor:
        """The scalar loss of one task, the mean over its experience; ``target [T, N]``."""
        q = self.network(params, batch.obs).gather(-1, batch.action[..., None])[..., 0]
        error = F.huber_loss(q, target, reduction="none") if self.config.loss == "huber" else (q - target).square()
        return (error * batch.weight).sum() / batch.weight.sum()


Learner = DQN
