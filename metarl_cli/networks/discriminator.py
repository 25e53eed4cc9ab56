"""An adversarial learner of rewards: a discriminator between what was demonstrated and what a policy does (AIRL).

    D(s, a, s' | z) = exp f / (exp f + π(a | s, z))       f(s, s' | z) = r(s' | z) + γ V(s' | z) - V(s | z)
    loss            -E_demonstrated log D - E_policy log(1 - D)

(Fu 2018, arXiv:1710.11248, equations 3 and 4; the context z: Yu 2019, arXiv:1909.09314, equation 7.) The logit of D is
``f - log π``. At the optimum D is 1/2, so that f is the logarithm of the demonstrator's policy: its advantage under the reward.
The reward is of the place reached alone; the shaping V takes up what depends on the way, so that r holds in other environments.
At the end of an episode V is 0.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metarl_cli.config.base import StrictModel
from metarl_cli.interfaces import Params, Transitions
from metarl_cli.networks.layers import layers, linear
from metarl_cli.spaces import Spec


class RewardConfig(StrictModel):
    """The networks of the reward and of its shaping."""

    hidden: list[Annotated[int, Field(gt=0)]] = Field(min_length=1, description="units of each hidden layer")


class Discriminator:
    """Functions of the weights ``reward.*`` and ``shaping.*``, one network for all tasks, which is given their contexts.

    Args:
        config: see :class:`RewardConfig`.
        spec: the family's.
        size: Z, the entries of a context.
        gamma: the discount of the shaping.
    """

    def __init__(self, config: RewardConfig, spec: Spec, size: int, gamma: float):
        (entries,) = spec.obs_shape
        self.sizes, self.gamma, self.scale = [size + entries, *config.hidden], gamma, spec.obs_scale

    def init(self, rng: torch.Generator) -> Params:
        """Draw fresh weights."""
        params: Params = {}
        for name in ("reward", "shaping"):
            params |= layers(name, self.sizes, rng) | linear(f"{name}.out", 1, self.sizes[-1], 0.1, rng)
        return params

    def _number(self, name: str, params: Params, obs: Tensor, context: Tensor) -> Tensor:
        """Return the output ``[M, ...]`` of a network for ``obs [M, ..., O]`` and ``context [M, Z]``."""
        obs = obs / obs.new_tensor(self.scale) if self.scale else obs
        beside = context.view(len(context), *[1] * (obs.dim() - 2), -1).expand(*obs.shape[:-1], -1)
        x = torch.cat([beside, obs], -1)
        for i in range(len(self.sizes) - 1):
            x = F.silu(F.linear(x, params[f"{name}.{i}.weight"], params[f"{name}.{i}.bias"]))
        return F.linear(x, params[f"{name}.out.weight"], params[f"{name}.out.bias"])[..., 0]

    def reward(self, params: Params, place: Tensor, context: Tensor) -> Tensor:
        """Return the rewards ``[M, ...]`` of reaching ``place [M, ..., O]`` in tasks of contexts ``[M, Z]``."""
        return self._number("reward", params, place, context)

    def advantage(self, params: Params, seen: Transitions, context: Tensor) -> Tensor:
        """Return ``f [M, T, N]`` of transitions."""
        ahead = self._number("shaping", params, seen.next_obs, context).masked_fill(seen.terminated, 0)
        before = self._number("shaping", params, seen.obs, context)
        return self.reward(params, seen.next_obs, context) + self.gamma * ahead - before

    def loss(
        self,
        params: Params,
        context: Tensor,
        demonstrated: Transitions,
        demonstrated_log_prob: Tensor,
        collected: Transitions,
        collected_log_prob: Tensor,
    ) -> Tensor:
        """Return the loss of each task ``[M]``: the cross-entropy of D, demonstrated steps and the policy's at equal shares.

        Args:
            params: the weights.
            context: ``[M, Z]``.
            demonstrated: demonstrations ``[M, T, N, ...]``.
            demonstrated_log_prob: log π of the actions that were demonstrated ``[M, T, N]``.
            collected: transitions of the policy ``[M, T, N, ...]``.
            collected_log_prob: log π of its actions ``[M, T, N]``.
        """
        real = F.softplus(demonstrated_log_prob - self.advantage(params, demonstrated, context))
        false = F.softplus(self.advantage(params, collected, context) - collected_log_prob)
        return mean_over_steps(real, demonstrated.weight) + mean_over_steps(false, collected.weight)


def mean_over_steps(values: Tensor, weight: Tensor) -> Tensor:
    """Return the mean ``[M]`` over the steps ``[M, T, N]`` of each task."""
    return (values * weight).sum((1, 2)) / weight.sum((1, 2))
