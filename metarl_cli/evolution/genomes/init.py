"""Genes of the initial weights: evolution searches for weights that adapt well in a few steps.

ES-MAML (Song 2020, arXiv:1910.01215): the fitness of initial weights is the return *after* adaptation; no derivatives.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from metarl_cli.config.base import StrictModel
from metarl_cli.evolution.interfaces import Traits
from metarl_cli.interfaces import Learner, Params


class Config(StrictModel):
    """The sizes of mutations."""

    scale: float = Field(gt=0, description="size of a mutation of a weight, in units of its layer's initial deviation")
    bias_scale: float = Field(gt=0, description="size of a mutation of parameters that start constant: biases, context")


class Init:
    """The part of a genome with all G weights of one network."""

    def __init__(self, config: Config, learner: Learner, rng: torch.Generator):
        params = learner.init(rng)
        self.shapes = {name: value.shape for name, value in params.items()}
        self.start = torch.cat([value.flatten() for value in params.values()])
        sizes = [torch.full_like(value, _size(value, config)).flatten() for value in params.values()]
        self.scale = torch.cat(sizes)

    def decode(self, genes: Tensor) -> Traits:
        """Return the trait ``init``: the weights ``[P, ...]``."""
        parts = torch.split(genes, [shape.numel() for shape in self.shapes.values()], dim=1)
        params: Params = {n: g.reshape(-1, *s) for (n, s), g in zip(self.shapes.items(), parts, strict=True)}
        return {"init": params}

    def describe(self, genes: Tensor) -> dict[str, Tensor]:
        """Return the root mean square ``[P]`` of each layer's weights."""
        weights = self.decode(genes)["init"]
        return {f"{name} rms": w.flatten(1).square().mean(1).sqrt() for name, w in weights.items() if w.dim() > 2}


def _size(value: Tensor, config: Config) -> float:
    spread = float(value.std()) if value.numel() > 1 else 0.0
    return config.scale * spread if spread > 0 else config.bias_scale


Genome = Init
