"""Genes of learning rates: one rate for each weight tensor, and its slope over a lifetime.

    rate(t) = base * exp(a + b * (t - 1/2)),   t from 0 to 1, the progress of the lifetime

Evolution searches for the rates per layer and step that MAML++ (Antoniou 2019, arXiv:1810.09502) learns by gradient.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from metarl_cli.config.base import StrictModel
from metarl_cli.evolution.interfaces import Traits
from metarl_cli.interfaces import Learner


class Config(StrictModel):
    """The size of mutations, and the form of the schedule."""

    scale: float = Field(gt=0, description="size of a mutation of the logarithm of a rate")
    schedule: bool = Field(description="vary the rates over the lifetime; else they are constant")


class Rates:
    """The part of a genome with each tensor's log ratio to the base rate, in mid-lifetime, and its slope."""

    def __init__(self, config: Config, learner: Learner, rng: torch.Generator):
        self.config, self.names = config, list(learner.init(rng))
        size = len(self.names) * (2 if config.schedule else 1)
        self.start = torch.zeros(size, device=rng.device)
        self.scale = torch.full((size,), config.scale, device=rng.device)

    def decode(self, genes: Tensor) -> Traits:
        """Return the trait ``rates``: log ratio and slope ``[P, 2]`` of each tensor."""
        level = genes[:, : len(self.names)]
        slope = genes[:, len(self.names) :] if self.config.schedule else torch.zeros_like(level)
        return {"rates": {name: torch.stack([level[:, i], slope[:, i]], 1) for i, name in enumerate(self.names)}}

    def describe(self, genes: Tensor) -> dict[str, Tensor]:
        """Return the factors ``[P]`` on the base rate, at the beginning and the end of the lifetime."""
        factors = {}
        for name, trait in self.decode(genes)["rates"].items():
            level, slope = trait.unbind(1)
            if self.config.schedule:
                factors[f"{name} rate, first"] = torch.exp(level - slope / 2)
                factors[f"{name} rate, last"] = torch.exp(level + slope / 2)
            else:
                factors[f"{name} rate"] = torch.exp(level)
        return factors


Genome = Rates
