"""A policy gradient: a stochastic policy, and advantages over a baseline that is linear in features of the observation.

    advantage  A_t = sum over l of (gamma lambda)^l delta_{t+l},  delta_t = r_t + gamma V_{t+1} - V_t      (Schulman 2016)
    baseline   V_t = w . (o, o^2, t, t^2, t^3, 1), by least squares on the returns of the same experience   (Duan 2016)
    loss       -mean of  ratio:  A_t pi(a_t) / pi_old(a_t)      log:  A_t log pi(a_t)      dice:  A_t (m_t - m_{t-1})

Generalised advantages: arXiv:1506.02438; the baseline: arXiv:1604.06778. The gradients of the three losses are equal where the
policy is the one that acted; their second derivatives, which a meta-gradient needs, are not. That of ``log`` lacks a part;
``ratio`` has most of it (ProMP, Rothfuss 2019, arXiv:1810.06784); that of ``dice`` is right in expectation, and noisier
(Loaded DiCE, Farquhar 2019, arXiv:1909.10549): m_t is the product of the ratios of an episode's steps up to t.

Advantages of a task have mean 0 and deviation 1. An episode that is cut off bootstraps nothing: the baseline knows the time.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from metarl_cli.config.base import StrictModel
from metarl_cli.experience.returns import generalized_advantages
from metarl_cli.interfaces import Batch, Params, Transitions
from metarl_cli.interfaces import Learner as Base
from metarl_cli.networks.distributions import PolicyHead, divergence
from metarl_cli.networks.q_network import NetworkConfig, QNetwork
from metarl_cli.spaces import Distribution, Spec

RIDGE = 1e-3  # added to the diagonal of the baseline's equations
LARGEST = 10.0  # of an entry of the observation among the baseline's features
TIME = 100.0  # [steps] that the baseline counts as one


class Config(StrictModel):
    """The network and the loss of a policy gradient."""

    network: NetworkConfig
    gamma: float = Field(ge=0, lt=1, description="discount per step")
    estimator: Literal["ratio", "log", "dice"] = Field(description="loss whose gradient is the policy gradient")
    least_std: float = Field(gt=0, description="smallest deviation of a Gaussian policy, where the bounds are -1 and 1")


class PolicyGradient(Base):
    """A policy-gradient learner for one task, or for many at once.

    Args:
        config: see :class:`Config`.
        spec: the family's spec.
    """

    stochastic = True
    off_policy = False
    stacked = True

    def __init__(self, config: Config, spec: Spec):
        self.config, self.spec, self.actions = config, spec, spec.actions
        self.head = PolicyHead(spec.actions)
        self.network = QNetwork(config.network, spec.obs_shape, (self.head.outputs,), spec.obs_scale)

    @override
    def init(self, rng: torch.Generator) -> Params:
        return self.network.init(rng) | self.head.init(rng.device)

    @override
    def pack(self, params: Params) -> Params:
        # the policy or the network of a subclass takes the weights as they are
        own = type(self).policy is not PolicyGradient.policy or not isinstance(self.network, QNetwork)
        return params if own else self.network.pack(params)

    @override
    def policy(self, params: Params, obs: Tensor) -> Distribution:
        out, head = self.network(params, obs), params
        if "log_std" in params:
            head = params | {"log_std": params["log_std"].clamp(min=math.log(self.config.least_std))}
        return self.head(head, out, self.spec.actions.legal(obs))

    def log_prob(self, params: Params, batch: Transitions) -> Tensor:
        """Return the log-probability of the actions ``[..., T, N]``."""
        if params["head.weight"].dim() == 2:
            return self.policy(params, batch.obs).log_prob(batch.action)
        obs, action = batch.obs.flatten(1, 2), batch.action.flatten(1, 2)
        return self.policy(params, obs).log_prob(action).view_as(batch.reward)

    def divergence(self, params: Params, other: Params, batch: Transitions) -> Tensor:
        """Return the mean divergence ``[M]`` of M policies from those of ``other``, over all actions of the situations."""
        obs = batch.obs.flatten(1, 2)
        each = divergence(self.policy(other, obs), self.policy(params, obs)).view_as(batch.reward)
        return (each * batch.weight).sum((1, 2)) / batch.weight.sum((1, 2))

    @override
    @torch.no_grad()
    def prepare(
        self, params: Params, slow: Params, batch: Transitions, gamma: float | Tensor | None = None, lambda_: float = 0.0
    ) -> Batch:
        """Compute the advantages of the actions, and their log-probability under ``params``, which have acted.

        ``lambda_`` is that of generalised advantages.

        Returns:
            The experience with ``advantage [..., T, N]``, 0 at padding, divided by its ``deviation [...]``; and ``log_prob
            [..., T, N]``. All are constants: nothing is differentiable in ``slow``.
        """
        discount = self.config.gamma if gamma is None else gamma
        weight = batch.weight
        scale = weight / weight.sum((-2, -1), keepdim=True)
        advantage = advantages(batch.reward, self.baseline(batch, discount), weight, discount, lambda_)
        advantage = advantage - (advantage * scale).sum((-2, -1), keepdim=True)
        deviation = (advantage.square() * scale).sum((-2, -1), keepdim=True).sqrt()
        deviation = deviation + 1e-8
        signal = {"advantage": advantage * weight / deviation, "log_prob": self.log_prob(params, batch)}
        return Batch(batch, signal | {"deviation": deviation[..., 0, 0]})

    def baseline(self, batch: Transitions, gamma: float | Tensor) -> Tensor:
        """Return the value of each step ``[..., T, N]``, fitted to the discounted returns of each task's own experience."""
        reward, weight = batch.reward, batch.weight
        returns = advantages(reward, torch.zeros_like(reward), weight, gamma, 1.0)
        obs = batch.obs.flatten(reward.dim()).double()
        if batch.obs.dtype == torch.uint8:
            obs = obs / 255
        obs = obs.clamp(-LARGEST, LARGEST)
        time = torch.arange(reward.shape[-2], device=reward.device, dtype=obs.dtype)[:, None, None] / TIME
        time = time.expand(*reward.shape, 1)
        features = torch.cat([obs, obs.square(), time, time**2, time**3, torch.ones_like(time)], -1)
        rows = (features * weight[..., None]).flatten(-3, -2)
        square = rows.mT @ rows
        square = square + RIDGE * torch.eye(square.shape[-1], dtype=square.dtype, device=square.device)
        fitted = torch.linalg.solve(square, rows.mT @ (returns * weight).double().flatten(-2)[..., None])
        value: Tensor = features.flatten(-3, -2) @ fitted
        return value.view_as(reward).to(reward.dtype)

    @override
    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Return the loss of each task, ``[...]``."""
        weight, advantage = batch.experience.weight, batch.signal["advantage"]
        log_prob = self.log_prob(params, batch.experience)
        change = (log_prob - batch.signal["log_prob"]) * weight
        if self.config.estimator == "log":
            gain = log_prob
        elif self.config.estimator == "ratio":
            gain = change.exp()
        else:
            product = change.cumsum(-2)
            gain = product.exp() - (product - change).exp()
        return -(gain * advantage * weight).sum((-2, -1)) / weight.sum((-2, -1))


def advantages(reward: Tensor, value: Tensor, weight: Tensor, gamma: float | Tensor, lambda_: float) -> Tensor:
    """Compute generalised advantages ``[..., T, N]``; ``gamma`` is one discount, or one for each task ``[M]``."""
    discount = gamma[..., None] if isinstance(gamma, Tensor) else gamma
    reward, value, weight = (x.movedim(-2, 0) for x in (reward, value, weight))
    return generalized_advantages(reward, value, weight, discount, lambda_).movedim(0, -2)


Learner = PolicyGradient
