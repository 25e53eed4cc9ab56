"""Distributions over actions that a policy's outputs stand for: what is sampled, how likely it was, what is best.

A *choice* is what the distribution gives and scores: the number of an action, or a vector in which -1 and 1 are the bounds.
An *action* is what the family takes.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from metarl_cli.interfaces import Params
from metarl_cli.spaces import Spec, bounds

STD = 0.6  # of a fresh Gaussian policy, where the bounds are -1 and 1


class Distribution(Protocol):
    """How a policy acts; ``outputs [..., outputs]`` are a network's, -inf for an action that cannot be taken."""

    outputs: int

    def init(self, device: torch.device) -> Params:
        """Weights of its own, beside the network's."""
        ...

    def sample(self, params: Params, outputs: Tensor, rng: torch.Generator) -> Tensor:
        """A random choice each."""
        ...

    def mode(self, outputs: Tensor) -> Tensor:
        """The likeliest choice each."""
        ...

    def log_prob(self, params: Params, outputs: Tensor, choice: Tensor) -> Tensor:
        """The logarithm of each choice's probability (density), ``[...]``."""
        ...

    def entropy(self, params: Params, outputs: Tensor) -> Tensor:
        """``[...]`` [nats]."""
        ...

    def action(self, choice: Tensor) -> Tensor:
        """The family's actions of choices."""
        ...


class Categorical:
    """One of A actions; outputs are logits, with -inf for what cannot be taken."""

    def __init__(self, spec: Spec):
        self.outputs = spec.num_actions

    def init(self, device: torch.device) -> Params:
        return {}

    def sample(self, params: Params, outputs: Tensor, rng: torch.Generator) -> Tensor:
        """By an exponential race: the smallest of Exp(1) / p is action a with probability p_a."""
        noise = torch.empty_like(outputs).exponential_(generator=rng)
        return (outputs - noise.log()).argmax(-1)

    def mode(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(-1)

    def log_prob(self, params: Params, outputs: Tensor, choice: Tensor) -> Tensor:
        return outputs.log_softmax(-1).gather(-1, choice[..., None])[..., 0]

    def entropy(self, params: Params, outputs: Tensor) -> Tensor:
        log_p = outputs.log_softmax(-1)
        return -(log_p.exp() * log_p.clamp(min=-1e9)).sum(-1)  # 0 log 0 = 0

    def action(self, choice: Tensor) -> Tensor:
        return choice


class Gaussian:
    """A vector of D entries, each normal around an output, with a learned deviation that is the same everywhere.

    The bounds are -1 and 1; what lies beyond is cut off when the family acts, not in the likelihood.
    """

    def __init__(self, spec: Spec):
        assert spec.box is not None
        self.box, self.outputs = spec.box, len(spec.box.low)

    def init(self, device: torch.device) -> Params:
        return {"log_std": torch.full((self.outputs,), math.log(STD), device=device)}

    def sample(self, params: Params, outputs: Tensor, rng: torch.Generator) -> Tensor:
        noise = torch.randn(outputs.shape, generator=rng, dtype=outputs.dtype, device=outputs.device)
        return outputs + params["log_std"].exp() * noise

    def mode(self, outputs: Tensor) -> Tensor:
        return outputs

    def log_prob(self, params: Params, outputs: Tensor, choice: Tensor) -> Tensor:
        z = (choice - outputs) * (-params["log_std"]).exp()
        return -(z.square() / 2 + params["log_std"] + math.log(2 * math.pi) / 2).sum(-1)

    def entropy(self, params: Params, outputs: Tensor) -> Tensor:
        return (params["log_std"] + (1 + math.log(2 * math.pi)) / 2).sum().expand(outputs.shape[:-1])

    def action(self, choice: Tensor) -> Tensor:
        low, high = bounds(self.box, choice.device)
        return low + (high - low) * (choice.clamp(-1, 1) + 1) / 2


def distribution(spec: Spec) -> Distribution:
    """What fits a family's actions."""
    return Categorical(spec) if spec.box is None else Gaussian(spec)
