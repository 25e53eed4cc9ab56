"""Distributions over a family's actions, parametrised by the outputs of a network."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from metarl_cli.interfaces import Params
from metarl_cli.spaces import ActionSpace, Choices, Continuous, Distribution, constant

STD = 0.6  # initial standard deviation of a Gaussian policy, in units in which the bounds are -1 and 1
INSIDE = 1 - 1e-6  # a squashed action at a bound counts as this near to it: its vector before squashing is infinite
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(32)  # for means over a standard normal variable
QUADRATURE = tuple(NODES.tolist()), tuple((WEIGHTS / WEIGHTS.sum()).tolist())


class Greedy(Distribution):
    """The action with the greatest value, with probability 1.

    Args:
        values: one per action ``[..., A]``, or one per bin of D dimensions ``[..., D, bins]``; -inf for illegal actions.
        actions: the action space of the values.
    """

    def __init__(self, values: Tensor, actions: Choices):
        self.values, self.actions = values, actions

    @override
    def sample(self, rng: torch.Generator) -> Tensor:
        return self.mode()

    @override
    def mode(self) -> Tensor:
        return self.actions.decode(self.values.argmax(-1))

    @override
    def log_prob(self, action: Tensor) -> Tensor:
        hit = self.actions.index(action) == self.values.argmax(-1)
        hit = hit.all(-1) if len(self.actions.value_shape) > 1 else hit
        return torch.where(hit, 0.0, -torch.inf)

    @override
    def entropy(self) -> Tensor:
        return self.values.new_zeros(self.values.shape[: -len(self.actions.value_shape)])

    @override
    def numbers(self) -> dict[str, Tensor]:
        """Return the values of the actions."""
        return {"values": self.values}


class Categorical(Distribution):
    """A categorical distribution over A actions.

    Args:
        logits: ``[..., A]``, -inf for illegal actions.
    """

    def __init__(self, logits: Tensor):
        self.logits = logits

    @property
    def log_p(self) -> Tensor:
        """The log-probabilities ``[..., A]``; over the first axis the log-softmax of a few actions is several times as fast."""
        return self.logits.movedim(-1, 0).log_softmax(0).movedim(0, -1)

    @override
    def sample(self, rng: torch.Generator) -> Tensor:
        """Draw by an exponential race: the smallest of Exp(1) / p is action a with probability p_a."""
        noise = torch.empty_like(self.logits).exponential_(generator=rng)
        return (self.logits - noise.log()).argmax(-1)

    @override
    def mode(self) -> Tensor:
        return self.logits.argmax(-1)

    @override
    def log_prob(self, action: Tensor) -> Tensor:
        return self.log_p.gather(-1, action[..., None])[..., 0]

    @override
    def entropy(self) -> Tensor:
        log_p = self.log_p
        return -(log_p.exp() * log_p.clamp(min=-1e9)).sum(-1)  # 0 log 0 = 0

    @override
    def numbers(self) -> dict[str, Tensor]:
        """Return the logits of the actions."""
        return {"logits": self.logits}


class Gaussian(Distribution):
    """A diagonal Gaussian over action vectors; its standard deviation does not depend on the observation.

    The environment clips actions to the bounds; the likelihood is that of the action before clipping.

    Args:
        mean: ``[..., D]``, in units in which the bounds are -1 and 1.
        log_std: ``[D]``, the logarithm of the standard deviation, in the same units.
        actions: the action space, with the bounds.
    """

    def __init__(self, mean: Tensor, log_std: Tensor, actions: Continuous):
        self.mean, self.log_std, self.actions = mean, log_std, actions

    @override
    def sample(self, rng: torch.Generator) -> Tensor:
        noise = torch.randn(self.mean.shape, generator=rng, dtype=self.mean.dtype, device=self.mean.device)
        return self.actions.decode(self.mean + self.log_std.exp() * noise)

    @override
    def mode(self) -> Tensor:
        return self.actions.decode(self.mean)

    @override
    def log_prob(self, action: Tensor) -> Tensor:
        z = (self.actions.encode(action) - self.mean) * (-self.log_std).exp()
        return -(z.square() / 2 + self.log_std + math.log(2 * math.pi) / 2).sum(-1)

    @override
    def entropy(self) -> Tensor:
        return (self.log_std + (1 + math.log(2 * math.pi)) / 2).sum(-1).expand(self.mean.shape[:-1])

    @override
    def numbers(self) -> dict[str, Tensor]:
        """Return the mean and the standard deviation of actions ``[..., D]``, in their own units."""
        low, high = self.actions.bounds(self.mean.device)
        return {"mean": self.mode(), "deviation": (self.log_std.exp() * (high - low) / 2).expand_as(self.mean)}


class SquashedGaussian(Distribution):
    """A diagonal Gaussian over vectors that tanh maps into the bounds of actions (Haarnoja 2018, arXiv:1812.05905, appendix C).

        a = tanh(u),  u ~ N(mean, std²)         log p(a) = log N(u) - sum_d log(1 - a_d²)

    Densities are those of actions in units in which the bounds are -1 and 1.

    Args:
        mean: ``[..., D]``, before squashing.
        log_std: ``[..., D]``, the logarithm of the standard deviation before squashing.
        actions: the action space, with the bounds.
    """

    def __init__(self, mean: Tensor, log_std: Tensor, actions: Continuous):
        self.mean, self.log_std, self.actions = mean, log_std, actions

    def draw(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the actions that standard normal noise ``[..., D]`` leads to, and their log-probability ``[...]``.

        Both are differentiable in the mean and in the deviation.
        """
        u = self.mean + self.log_std.exp() * noise
        return self.actions.decode(u.tanh()), self._log_prob(u, noise)

    def _log_prob(self, u: Tensor, noise: Tensor) -> Tensor:
        return -(noise.square() / 2 + self.log_std + math.log(2 * math.pi) / 2 + _log_slope(u)).sum(-1)

    @override
    def sample(self, rng: torch.Generator) -> Tensor:
        return self.draw(torch.randn(self.mean.shape, generator=rng, dtype=self.mean.dtype, device=self.mean.device))[0]

    @override
    def mode(self) -> Tensor:
        """Return the actions that the likeliest vector before squashing leads to, the median of each entry."""
        return self.actions.decode(self.mean.tanh())

    @override
    def log_prob(self, action: Tensor) -> Tensor:
        u = self.actions.encode(action).clamp(-INSIDE, INSIDE).atanh()
        return self._log_prob(u, (u - self.mean) * (-self.log_std).exp())

    @override
    def entropy(self) -> Tensor:
        """Return the entropy, by Gauss-Hermite quadrature of the part that squashing takes away."""
        nodes, weights = (constant(x, self.mean.dtype, self.mean.device) for x in QUADRATURE)
        u = self.mean[..., None] + self.log_std.exp()[..., None] * nodes
        return (self.log_std + (1 + math.log(2 * math.pi)) / 2 + (_log_slope(u) * weights).sum(-1)).sum(-1)

    @override
    def numbers(self) -> dict[str, Tensor]:
        """Return the mean and the standard deviation before squashing ``[..., D]``."""
        return {"before_tanh.mean": self.mean, "before_tanh.deviation": self.log_std.exp()}


def _log_slope(u: Tensor) -> Tensor:
    """Return log(1 - tanh(u)²), also where tanh(u) is 1 in the numbers of a computer."""
    return 2 * (math.log(2) - u - F.softplus(-2 * u))


def divergence(one: Distribution, other: Distribution) -> Tensor:
    """Return the Kullback-Leibler divergence ``[...]`` [nats] of ``other`` from ``one``, both of the same kind.

    Raises:
        TypeError: if they are not two categorical distributions, nor two Gaussians.
    """
    if isinstance(one, Gaussian) and isinstance(other, Gaussian):
        square = ((one.mean - other.mean).square() + (2 * one.log_std).exp()) * (-2 * other.log_std).exp()
        return (other.log_std - one.log_std + square / 2 - 0.5).sum(-1)
    if isinstance(one, Categorical) and isinstance(other, Categorical):
        log_p = one.log_p
        return (log_p.exp() * (log_p.clamp(min=-1e9) - other.log_p.clamp(min=-1e9))).sum(-1)  # 0 log 0 = 0
    raise TypeError(f"no divergence of {type(other).__name__} from {type(one).__name__}")


class PolicyHead:
    """Map from the outputs of a network, ``[..., outputs]``, to a distribution over the family's actions."""

    def __init__(self, actions: ActionSpace):
        self.actions, self.outputs = actions, actions.size

    def init(self, device: torch.device) -> Params:
        """Return the weights of the head itself: the standard deviation of a Gaussian, else none."""
        if isinstance(self.actions, Continuous):
            return {"log_std": torch.full((self.outputs,), math.log(STD), device=device)}
        return {}

    def __call__(self, params: Params, outputs: Tensor, legal: Tensor | None = None) -> Distribution:
        """Return a categorical distribution over the ``legal`` actions, or a Gaussian where actions are continuous."""
        if isinstance(self.actions, Continuous):
            log_std = params["log_std"]  # [D], or [M, D] of stacked networks with outputs [M, N, D]
            return Gaussian(outputs, log_std if log_std.dim() == 1 else log_std[:, None], self.actions)
        return Categorical(outputs if legal is None else outputs.masked_fill(~legal, -torch.inf))
