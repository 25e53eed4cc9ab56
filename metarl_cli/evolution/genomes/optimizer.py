"""Genes are the weights of a small network that is the optimiser: the learned update rule of the inner loop.

A search starts at Adam's rule: the genes of the direct connection from Adam's direction are 1, all others 0.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from metarl_cli.config.base import StrictModel
from metarl_cli.interfaces import Learner, Traits
from metarl_cli.networks.optimizers import Learned


class Config(StrictModel):
    """The size of the rule."""

    hidden: int = Field(gt=0, description="units of its hidden layer")
    scale: float = Field(gt=0, description="size of a change of a weight from inputs")


class Optimizer:
    """The weights of :class:`metarl_cli.networks.optimizers.Learned`; its inner weights are drawn, the rest is Adam."""

    def __init__(self, config: Config, learner: Learner, rng: torch.Generator):
        inputs, hidden, device = Learned.FEATURES, config.hidden, rng.device
        self.shapes = {"direct": (inputs,), "inner": (inputs, hidden), "outer": (hidden, 2)}
        direct = torch.zeros(inputs, device=device)
        direct[Learned.ADAM] = 1
        inner = torch.randn(inputs * hidden, generator=rng, device=device) / inputs**0.5
        self.start = torch.cat([direct, inner, torch.zeros(2 * hidden, device=device)])
        self.scale = torch.full_like(self.start, config.scale)

    def decode(self, genes: Tensor) -> Traits:
        """``optimizer``: the weights, ``[P, ...]`` each."""
        parts = torch.split(genes, [torch.Size(shape).numel() for shape in self.shapes.values()], dim=1)
        return {"optimizer": {n: g.reshape(-1, *s) for (n, s), g in zip(self.shapes.items(), parts, strict=True)}}

    def describe(self, genes: Tensor) -> dict[str, Tensor]:
        """The direct weights of its inputs."""
        names = ("gradient", "mean 2", "mean 10", "mean 100", "weight", "progress", "bias", "head", "one")
        return {f"direct: {name}": genes[:, i] for i, name in enumerate(names)}


Genome = Optimizer
