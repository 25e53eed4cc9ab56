"""Genes of a learned optimiser: the weights of a small network that computes the updates of the inner loop.

The search starts at Adam's rule: the direct weight of Adam's direction is 1, and the other weights to the output are 0.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from metarl_cli.config.base import StrictModel
from metarl_cli.evolution.interfaces import Traits
from metarl_cli.interfaces import Learner
from metarl_cli.networks.optimizers import Learned


class Config(StrictModel):
    """The size of the network, and of mutations."""

    hidden: int = Field(gt=0, description="units of the hidden layer")
    scale: float = Field(gt=0, description="size of a mutation of a weight")


class Optimizer:
    """The part of a genome with the weights of :class:`metarl_cli.networks.optimizers.Learned`.

    The hidden layer starts with random input weights and zero output weights.
    """

    def __init__(self, config: Config, learner: Learner, rng: torch.Generator):
        inputs, hidden, device = Learned.FEATURES, config.hidden, rng.device
        self.shapes = {"direct": (inputs,), "inner": (inputs, hidden), "outer": (hidden, 2)}
        direct = torch.zeros(inputs, device=device)
        direct[Learned.ADAM] = 1
        inner = torch.randn(inputs * hidden, generator=rng, device=device) / inputs**0.5
        self.start = torch.cat([direct, inner, torch.zeros(2 * hidden, device=device)])
        self.scale = torch.full_like(self.start, config.scale)

    def decode(self, genes: Tensor) -> Traits:
        """Return the trait ``optimizer``: the weights, ``[P, ...]`` each."""
        parts = torch.split(genes, [torch.Size(shape).numel() for shape in self.shapes.values()], dim=1)
        return {"optimizer": {n: g.reshape(-1, *s) for (n, s), g in zip(self.shapes.items(), parts, strict=True)}}

    def describe(self, genes: Tensor) -> dict[str, Tensor]:
        """Return the direct weight ``[P]`` of each input."""
        names = ("gradient", "mean 2", "mean 10", "mean 100", "weight", "progress", "bias", "head", "one")
        return {f"direct: {name}": genes[:, i] for i, name in enumerate(names)}


Genome = Optimizer
