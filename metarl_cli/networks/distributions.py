"""Distributions over a family's actions, made of a network's outputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metarl_cli.interfaces import Distribution, Params
from metarl_cli.spaces import ActionSpace, Choices, Continuous

STD = 0.6  # of a fresh Gaussian policy, where the bounds are -1 and 1


class Greedy:
    """The action of the greatest value, with certainty.

    Args:
        values: ``[..., A]`` of each action, or ``[..., D, bins]`` of each bin of D dimensions; -inf where it cannot be taken.
        actions: the actions that the values belong to.
    """

    def __init__(self, values: Tensor, actions: Choices):
        self.values, self.actions = values, actions

    def sample(self, rng: torch.Generator) -> Tensor:
        return self.mode()

    def mode(self) -> Tensor:
        return self.actions.decode(self.values.argmax(-1))

    def log_prob(self, action: Tensor) -> Tensor:
        hit = self.actions.index(action) == self.values.argmax(-1)
        hit = hit.all(-1) if len(self.actions.value_shape) > 1 else hit
        return torch.where(hit, 0.0, -torch.inf)

    def entropy(self) -> Tensor:
        return self.values.new_zeros(self.values.shape[: -len(self.actions.value_shape)])


class Categorical:
    """One of A actions.

    Args:
        logits: ``[..., A]``, -inf for an action that cannot be taken.
    """

    def __init__(self, logits: Tensor):
        self.logits = logits

    def sample(self, rng: torch.Generator) -> Tensor:
        """Draw by an exponential race: the smallest of Exp(1) / p is action a with probability p_a."""
        noise = torch.empty_like(self.logits).exponential_(generator=rng)
        return (self.logits - noise.log()).argmax(-1)

    def mode(self) -> Tensor:
        return self.logits.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        return self.logits.log_softmax(-1).gather(-1, action[..., None])[..., 0]

    def entropy(self) -> Tensor:
        log_p = self.logits.log_softmax(-1)
        return -(log_p.exp() * log_p.clamp(min=-1e9)).sum(-1)  # 0 log 0 = 0


class Gaussian:
    """A vector of D entries, each normal around an output, with a deviation that is the same everywhere.

    An action beyond the bounds is cut off by the environment, not in the likelihood.

    Args:
        mean: ``[..., D]``, in units in which the bounds are -1 and 1.
        log_std: ``[D]``, the logarithm of the deviation in these units.
        actions: the bounds.
    """

    def __init__(self, mean: Tensor, log_std: Tensor, actions: Continuous):
        self.mean, self.log_std, self.actions = mean, log_std, actions

    def sample(self, rng: torch.Generator) -> Tensor:
        noise = torch.randn(self.mean.shape, generator=rng, dtype=self.mean.dtype, device=self.mean.device)
        return self.actions.decode(self.mean + self.log_std.exp() * noise)

    def mode(self) -> Tensor:
        return self.actions.decode(self.mean)

    def log_prob(self, action: Tensor) -> Tensor:
        z = (self.actions.encode(action) - self.mean) * (-self.log_std).exp()
        return -(z.square() / 2 + self.log_std + math.log(2 * math.pi) / 2).sum(-1)

    def entropy(self) -> Tensor:
        return (self.log_std + (1 + math.log(2 * math.pi)) / 2).sum().expand(self.mean.shape[:-1])


class PolicyHead:
    """From a network's outputs ``[..., outputs]`` to the distribution that fits the family's actions."""

    def __init__(self, actions: ActionSpace):
        self.actions, self.outputs = actions, actions.size

    def init(self, device: torch.device) -> Params:
        """Return weights of its own, beside the network's: the deviation of a Gaussian."""
        if isinstance(self.actions, Continuous):
            return {"log_std": torch.full((self.outputs,), math.log(STD), device=device)}
        return {}

    def __call__(self, params: Params, outputs: Tensor, legal: Tensor | None = None) -> Distribution:
        """Return a categorical distribution over the ``legal`` actions, or a Gaussian one."""
        if isinstance(self.actions, Continuous):
            return Gaussian(outputs, params["log_std"], self.actions)
        return Categorical(outputs if legal is None else outputs.masked_fill(~legal, -torch.inf))
