"""Genes are the network's shape: how many layers, how many units in each, which activation.

Every individual is a part of one network, the largest: units and layers that it does not have are masked out. So networks of
different shapes are rows of one tensor, and one can grow into another without forgetting: ``q_network.grow``.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from metarl_cli.config.base import StrictModel
from metarl_cli.evolution.genomes.genes import fold
from metarl_cli.interfaces import Learner, Traits
from metarl_cli.networks.q_network import ACTIVATIONS, STRUCTURE, STRUCTURE_WIDTH


class Config(StrictModel):
    """What shapes there are; the largest is ``learner.network.hidden``, layers of one size."""

    scale: float = Field(gt=0, description="size of a change, as a share of the whole range")
    narrowest: int = Field(gt=0, description="units of the narrowest layer")
    activations: bool = Field(description="whether the activation varies too")


class Architecture:
    """Genes: depth, the width of each layer, and the activation if it varies.

    Raises:
        ValueError: if the learner's network has layers of different sizes or layer norm, or is narrower than the narrowest.
    """

    def __init__(self, config: Config, learner: Learner, rng: torch.Generator):
        layers = learner.layers
        if layers is None:
            raise ValueError("algo.genome.architecture needs a learner whose network can vary its structure (learner=dqn)")
        self.config, self.layers, self.widest = config, len(layers.widths), layers.widths[0]
        if set(layers.widths) != {self.widest} or layers.normalised:
            raise ValueError("algo.genome.architecture needs learner.network.hidden of one size, and layer_norm=false")
        if not config.narrowest < self.widest:
            raise ValueError(
                f"algo.genome.architecture.narrowest ({config.narrowest}) must be below the widest layer ({self.widest})"
            )
        self.activation = list(ACTIVATIONS).index(layers.activation)
        self.start = torch.full((1 + self.layers + config.activations,), 0.5, device=rng.device)
        self.scale = torch.full_like(self.start, config.scale)

    def _read(self, genes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Depth ``[P]``, widths ``[P, layers]`` and number of the activation ``[P]``."""
        places = fold(genes)
        depth = 1 + (places[:, 0] * self.layers).long().clamp(max=self.layers - 1)
        narrow, wide = math.log(self.config.narrowest), math.log(self.widest)
        width = torch.exp(narrow + (wide - narrow) * places[:, 1 : 1 + self.layers]).round().long()
        if not self.config.activations:
            return depth, width, torch.full_like(depth, self.activation)
        return depth, width, (places[:, -1] * len(ACTIVATIONS)).long().clamp(max=len(ACTIVATIONS) - 1)

    def decode(self, genes: Tensor) -> Traits:
        """``structure``, as :class:`metarl_cli.networks.q_network.QNetwork` reads it."""
        depth, width, activation = self._read(genes)
        units = torch.arange(self.widest, device=genes.device)
        layers = torch.arange(self.layers, device=genes.device)
        structure = {
            STRUCTURE[0]: (layers < depth[:, None]).to(genes),
            STRUCTURE[1]: torch.nn.functional.one_hot(activation, len(ACTIVATIONS)).to(genes),
        }
        for i in range(self.layers):
            # a layer that passes on the one below is as wide as it: masks of units count where there is a layer
            structure[f"{STRUCTURE_WIDTH}{i}"] = (units < width[:, i, None]).to(genes)
        return {"structure": structure}

    def describe(self, genes: Tensor) -> dict[str, Tensor]:
        """Layers, units of each, and the number of the activation; the units of layers that are not there are 0."""
        depth, width, activation = self._read(genes)
        found = {"layers": depth} | {f"units {i + 1}": width[:, i] * (depth > i) for i in range(self.layers)}
        return found | ({"activation": activation} if self.config.activations else {})


Genome = Architecture
