"""Genes of the network's architecture: the number of layers, the units of each, and the activation.

Every individual is a subnetwork of the largest network: masks remove the units and layers that it lacks. So networks of
different architectures are rows of one tensor, and a network can grow without forgetting: ``q_network.grow``.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from metarl_cli.config.base import StrictModel
from metarl_cli.evolution.genomes.genes import fold
from metarl_cli.evolution.interfaces import Traits
from metarl_cli.interfaces import Learner
from metarl_cli.networks.q_network import ACTIVATIONS, STRUCTURE, STRUCTURE_WIDTH


class Config(StrictModel):
    """The range of architectures; the largest is ``learner.network.hidden``, with layers of one size."""

    scale: float = Field(gt=0, description="size of a mutation, as a share of the whole range")
    narrowest: int = Field(gt=0, description="units of the narrowest layer")
    activations: bool = Field(description="vary the activation too")


class Architecture:
    """The part of a genome with the depth, the width of each layer, and the activation if it varies.

    Raises:
        ValueError: if the learner's network has layers of different sizes, layer norm, or no more units than ``narrowest``.
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

    def _decode(self, genes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the depth ``[P]``, the widths ``[P, layers]`` and the index of the activation ``[P]``."""
        places = fold(genes)
        depth = 1 + (places[:, 0] * self.layers).long().clamp(max=self.layers - 1)
        narrow, wide = math.log(self.config.narrowest), math.log(self.widest)
        width = torch.exp(narrow + (wide - narrow) * places[:, 1 : 1 + self.layers]).round().long()
        if not self.config.activations:
            return depth, width, torch.full_like(depth, self.activation)
        return depth, width, (places[:, -1] * len(ACTIVATIONS)).long().clamp(max=len(ACTIVATIONS) - 1)

    def decode(self, genes: Tensor) -> Traits:
        """Return the trait ``structure``: masks for :class:`metarl_cli.networks.q_network.QNetwork`."""
        depth, width, activation = self._decode(genes)
        units = torch.arange(self.widest, device=genes.device)
        layers = torch.arange(self.layers, device=genes.device)
        structure = {
            STRUCTURE[0]: (layers < depth[:, None]).to(genes),
            STRUCTURE[1]: torch.nn.functional.one_hot(activation, len(ACTIVATIONS)).to(genes),
        }
        for i in range(self.layers):
            # the mask of an absent layer has no effect: such a layer is the identity
            structure[f"{STRUCTURE_WIDTH}{i}"] = (units < width[:, i, None]).to(genes)
        return {"structure": structure}

    def describe(self, genes: Tensor) -> dict[str, Tensor]:
        """Return the number of layers, the units of each (0 for absent layers), and the index of the activation."""
        depth, width, activation = self._decode(genes)
        values = {"layers": depth} | {f"units {i + 1}": width[:, i] * (depth > i) for i in range(self.layers)}
        return values | ({"activation": activation} if self.config.activations else {})


Genome = Architecture
