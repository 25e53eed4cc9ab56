"""Genes are learning rates: one for each weight tensor, and how it changes over a lifetime.

    rate(t) = base * exp(a + b * (t - 1/2)),   t from 0 to 1, the progress of the lifetime

What MAML++ (Antoniou 2019, arXiv:1810.09502) learns by gradient, a rate per layer and step, evolved.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from metarl_cli.config.base import StrictModel
from metarl_cli.interfaces import Learner, Traits


class Config(StrictModel):
    """How large a step is."""

    scale: float = Field(gt=0, description="size of a change of the logarithm of a rate")
    schedule: bool = Field(description="whether rates change over the lifetime, or stay")


class Rates:
    """The logarithm of each tensor's rate over the base rate, in the middle of the lifetime, and its slope."""

    def __init__(self, config: Config, learner: Learner, rng: torch.Generator):
        self.config, self.names = config, list(learner.init(rng))
        size = len(self.names) * (2 if config.schedule else 1)
        self.start = torch.zeros(size, device=rng.device)
        self.scale = torch.full((size,), config.scale, device=rng.device)

    def decode(self, genes: Tensor) -> Traits:
        """``rates``: of each tensor ``[P, 2]``, logarithm and slope."""
        level = genes[:, : len(self.names)]
        slope = genes[:, len(self.names) :] if self.config.schedule else torch.zeros_like(level)
        return {"rates": {name: torch.stack([level[:, i], slope[:, i]], 1) for i, name in enumerate(self.names)}}

    def describe(self, genes: Tensor) -> dict[str, Tensor]:
        """Factors on the base rate, at the beginning and the end of the lifetime."""
        found = {}
        for name, trait in self.decode(genes)["rates"].items():
            level, slope = trait.unbind(1)
            if self.config.schedule:
                found[f"{name} rate, first"] = torch.exp(level - slope / 2)
                found[f"{name} rate, last"] = torch.exp(level + slope / 2)
            else:
                found[f"{name} rate"] = torch.exp(level)
        return found


Genome = Rates
