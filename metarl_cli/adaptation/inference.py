"""Adaptation by inference: an encoder reads a support and writes what a network is given of the task; no weights move.

An encoder is a small network over single transitions, whose outputs are pooled so that neither the order nor the number of
transitions matters:

    estimate    rho(mean_n phi(x_n))                              (deep sets: Zaheer 2017, arXiv:1703.06114)
    posterior   N(0, I) prod_n N(mu(x_n), sigma(x_n)²)            (PEARL: Rakelly 2019, arXiv:1903.08254, equation 4)

Each adaptation step collects one more support; all of them are read together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from metarl_cli.adaptation.support import Exploring, RolloutsConfig, collect_rollouts, merged
from metarl_cli.adaptation.vectors import Reader, Vectors
from metarl_cli.config.base import StrictModel
from metarl_cli.interfaces import Adapted, Budget, Family, Params, Policy, Task, Transitions, num_tasks
from metarl_cli.networks.layers import layers, linear
from metarl_cli.spaces import ActionSpace, Spec

PRIOR = 4.0  # the precision of a factor is softplus(-4) = 0.018 at first: 100 of them outweigh the prior a little


class EncoderConfig(StrictModel):
    """The network that reads a support."""

    hidden: list[Annotated[int, Field(gt=0)]] = Field(min_length=1, description="units of each layer over a transition")


class SupportEncoder(Reader):
    """An encoder of supports; weights are named ``encoder.*``.

    Args:
        config: see :class:`EncoderConfig`.
        spec: the family's.
        outputs: F, the numbers it writes.
    """

    def __init__(self, config: EncoderConfig, spec: Spec, outputs: int):
        super().__init__(spec)
        self.config, self.outputs = config, outputs

    def init(self, rng: torch.Generator) -> Params:
        """Draw the initial weights: of ``phi``, and of ``rho`` after it."""
        units = self.config.hidden[-1]
        rho = linear("encoder.rho", units, units, math.sqrt(2), rng)
        return self._phi(rng) | rho | linear("encoder.estimate", self.outputs, units, 1.0, rng)

    def _phi(self, rng: torch.Generator) -> Params:
        return layers("encoder", [self.size, *self.config.hidden], rng)

    def features(self, params: Params, x: Tensor) -> Tensor:
        """Return ``phi [M, T N, H]`` of transitions ``[M, T N, I]``."""
        for i in range(len(self.config.hidden)):
            x = F.silu(F.linear(x, params[f"encoder.{i}.weight"], params[f"encoder.{i}.bias"]))
        return x

    def estimate(self, params: Params, vectors: Vectors) -> Tensor:
        """Return the numbers ``[M, F]`` of each task, from the mean over the weighted transitions of its support."""
        pooled = (self.features(params, vectors.entries) * vectors.weight).sum(1) / vectors.weight.sum(1)
        x = F.silu(F.linear(pooled, params["encoder.rho.weight"], params["encoder.rho.bias"]))
        return F.linear(x, params["encoder.estimate.weight"], params["encoder.estimate.bias"])


class PosteriorEncoder(SupportEncoder):
    """An encoder whose pooled output is a normal distribution over ``outputs`` numbers, the product of one per transition.

    Args:
        config: see :class:`EncoderConfig`.
        spec: the family's.
        outputs: F, the numbers.
        width: the precision of a factor is about softplus(-width) at first; above 3 the posterior is near the prior.
        gain: of the last layer's initial weights.
    """

    def __init__(self, config: EncoderConfig, spec: Spec, outputs: int, width: float = PRIOR, gain: float = 1.0):
        super().__init__(config, spec, outputs)
        self.width, self.gain = width, gain

    @override
    def init(self, rng: torch.Generator) -> Params:
        """Draw the initial weights."""
        return self._phi(rng) | linear("encoder.factor", 2 * self.outputs, self.config.hidden[-1], self.gain, rng)

    def factors(self, params: Params, vectors: Vectors) -> tuple[Tensor, Tensor]:
        """Return the means times precisions, and the precisions ``[M, T N, F]``, of the factor of each transition."""
        x = self.features(params, vectors.entries)
        mean, precision = F.linear(x, params["encoder.factor.weight"], params["encoder.factor.bias"]).chunk(2, -1)
        precision = F.softplus(precision - self.width) * vectors.weight
        return mean * precision, precision

    def posterior(self, params: Params, vectors: Vectors) -> tuple[Tensor, Tensor]:
        """Return the means and the deviations ``[M, F]`` of the posterior of each task."""
        weighted, precision = self.factors(params, vectors)
        total = 1 + precision.sum(1)
        return weighted.sum(1) / total, total.rsqrt()


def divergence(mean: Tensor, deviation: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence ``[M]`` of normal distributions ``[M, F]`` from the standard one [nats]."""
    return 0.5 * (mean.square() + deviation.square() - 1 - 2 * deviation.log()).sum(-1)


@torch.no_grad()
def infer(
    policy: Callable[[Transitions | None], Policy],
    actions: ActionSpace,
    family: Family,
    task: Task,
    budget: Budget,
    support: RolloutsConfig,
    rng: torch.Generator,
    exploring: Exploring | None = None,
) -> Iterator[Adapted]:
    """Yield the policies of M tasks before the first support and after each; every step collects one more.

    Args:
        policy: makes the policies from the supports so far ``[M, T, N, ...]``; from none at first.
        actions: that exploration chooses among.
        family: of the tasks.
        task: the tasks.
        budget: the number of supports, and perhaps of episodes in each.
        support: what is collected.
        rng: of the experience.
        exploring: makes the policies that collect the next support from the supports so far; None: the last policies do.
    """
    if budget.episodes is not None:
        support = support.model_copy(update={"rollouts": budget.episodes})
    now, seen, env_steps = policy(None), list[Transitions](), 0
    yield Adapted(0, 0, 0, now)
    for k in range(1, budget.steps + 1):
        collecting = now if exploring is None else exploring(seen, num_tasks(task))
        seen.append(collect_rollouts(collecting, actions, family, task, support, rng))
        env_steps += round(float(seen[-1].weight.sum()) / len(seen[-1].weight))
        now = policy(merged(seen))
        yield Adapted(k, 0, env_steps, now)
