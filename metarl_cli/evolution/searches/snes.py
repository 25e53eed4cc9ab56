"""SNES: the separable natural evolution strategy, one deviation per gene (Schaul 2011, doi:10.1145/2001576.2001692).

    x = mean + sigma s,  s ~ N(0, I)                        u_k = max(0, ln(P/2 + 1) - ln k) / (their sum) - 1/P, best first
    mean += lr_mean sigma sum u s                           sigma *= exp(lr_sigma / 2 sum u (s^2 - 1))

Defaults of the paper: lr_mean = 1, lr_sigma = (3 + ln G) / (5 sqrt(G)). Time and memory are linear in G, so it
suits genomes too large for a full covariance. Differs from the paper: ties share utilities.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from metarl_cli.config.base import StrictModel
from metarl_cli.evolution.interfaces import Search as Base
from metarl_cli.evolution.searches.fitness import check, metrics, preserve_rng, sanitize, shape_by_rank
from metarl_cli.interfaces import State


class Config(StrictModel):
    """The population and the learning rates of SNES."""

    population: int = Field(ge=2, description="genomes of a generation; the paper's number is 4 + 3 ln G")
    sigma: float = Field(gt=0, description="initial standard deviation, in units of each gene's scale")
    lr_mean: float = Field(gt=0, description="learning rate of the mean; the paper's is 1")
    lr_sigma: float | None = Field(
        gt=0, description="learning rate of the deviations; none: the paper's, (3 + ln G) / (5 sqrt(G))"
    )


class SNES(Base):
    """SNES: an uncorrelated Gaussian with adaptive mean and standard deviations."""

    def __init__(self, config: Config, start: Tensor, scale: Tensor, rng: torch.Generator):
        check(start, scale)
        self.config, self.mean, self.scale, self.rng = config, start, scale, rng  # [G]
        self.sigma = config.sigma * scale  # [G]
        genes = len(start)
        self.lr_sigma = config.lr_sigma or (3 + math.log(genes)) / (5 * math.sqrt(genes))

    def ask(self) -> Tensor:
        """Draw the genomes ``[P, G]``; they stay the same until :meth:`tell`."""
        with preserve_rng(self.rng):
            return self.mean + self.sigma * self._noise()

    def tell(self, fitness: Tensor) -> dict[str, float]:
        """Update the mean and the deviations from the fitness ``[P]``; returns metrics."""
        noise = self._noise()
        genomes = self.mean + self.sigma * noise
        fitness = sanitize(fitness, genomes)
        measured = metrics(fitness, genomes, self.scale, float((self.sigma / self.scale).mean()))
        utility = shape_by_rank(fitness, utilities(len(fitness))).to(noise.dtype)
        self.mean = self.mean + self.config.lr_mean * self.sigma * (utility @ noise)
        self.sigma = self.sigma * (self.lr_sigma / 2 * (utility @ (noise.square() - 1))).exp()
        return measured

    def _noise(self) -> Tensor:
        shape = (self.config.population, len(self.mean))
        return torch.randn(shape, generator=self.rng, dtype=self.mean.dtype, device=self.mean.device)

    def best(self) -> Tensor:
        """Return the mean ``[G]``."""
        return self.mean

    @override
    def state_dict(self) -> State:
        return {"mean": self.mean, "sigma": self.sigma, "rng": self.rng.get_state()}

    @override
    def load_state_dict(self, state: State) -> None:
        self.mean, self.sigma = state["mean"].to(self.scale), state["sigma"].to(self.scale)
        self.rng.set_state(state["rng"].cpu())


def utilities(num: int) -> Tensor:
    """Return the paper's utilities ``[P]`` of ``num`` ranks, best first; they sum to zero."""
    raw = (math.log(num / 2 + 1) - torch.arange(1, num + 1, dtype=torch.float64).log()).clamp(min=0)
    return raw / raw.sum() - 1 / num


Search = SNES
