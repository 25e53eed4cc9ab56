"""Genes of hyper-parameters: learning rate, discount, exploration, batch and target period, each within its range.

Hyper-parameters are rows of tensors, so a population with different settings learns in one batch (population-based training,
Jaderberg 2017, arXiv:1711.09846, without its asynchronous processes).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from metarl_cli.config.base import StrictModel
from metarl_cli.evolution.genomes.genes import fold
from metarl_cli.evolution.interfaces import Traits
from metarl_cli.interfaces import Learner


class Range(StrictModel):
    """The range of a value, and its spacing."""

    low: float = Field(description="least value")
    high: float = Field(description="greatest value")
    spacing: Literal["linear", "log", "complement"] = Field(
        description="equal steps are equal differences, equal ratios, or equal ratios of the distance to one (a discount)"
    )

    @model_validator(mode="after")
    def _check_bounds(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if (self.spacing == "log" and self.low <= 0) or (self.spacing == "complement" and self.high >= 1):
            raise ValueError(f"spacing={self.spacing} does not go with [{self.low:g}, {self.high:g}]")
        return self

    def at(self, place: Tensor) -> Tensor:
        """Return the value at the position ``place``, from 0 (low) to 1 (high)."""
        match self.spacing:
            case "linear":
                return self.low + (self.high - self.low) * place
            case "log":
                return torch.exp(math.log(self.low) + (math.log(self.high) - math.log(self.low)) * place)
            case "complement":
                far, near = math.log(1 - self.low), math.log(1 - self.high)
                return 1 - torch.exp(far + (near - far) * place)


class Config(StrictModel):
    """The hyper-parameters that vary, and their ranges."""

    scale: float = Field(gt=0, description="size of a mutation, as a share of a value's range")
    ranges: dict[str, Range] = Field(min_length=1, description="range of each varying hyper-parameter of the lifetime")


class Hyper:
    """The part of a genome with one gene per hyper-parameter, its position in the range."""

    def __init__(self, config: Config, learner: Learner, rng: torch.Generator):
        self.ranges = config.ranges
        self.start = torch.full((len(self.ranges),), 0.5, device=rng.device)
        self.scale = torch.full_like(self.start, config.scale)

    def decode(self, genes: Tensor) -> Traits:
        """Return the trait ``hyper``: the value ``[P]`` of each hyper-parameter."""
        places = fold(genes).unbind(1)
        return {"hyper": {name: span.at(x) for (name, span), x in zip(self.ranges.items(), places, strict=True)}}

    def describe(self, genes: Tensor) -> dict[str, Tensor]:
        """Return the value ``[P]`` of each hyper-parameter."""
        return self.decode(genes)["hyper"]


Genome = Hyper
