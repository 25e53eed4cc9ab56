"""OpenAI-ES: the gradient of fitness smoothed by Gaussian noise, from antithetic pairs (Salimans 2017, arXiv:1703.03864).

    x± = mean ± sigma scale eps        grad = 1 / (2 K sigma) sum over K pairs of (F(x+) - F(x-)) eps

Fitness shaping replaces fitness by centred ranks, from 1/2 for the best to -1/2 for the worst. Adam (Kingma 2015,
arXiv:1412.6980) ascends the gradient, with steps in units of each gene's scale. Differs from the paper: weight decay is
decoupled from Adam (Loshchilov 2019, arXiv:1711.05101), so that it does not depend on the scale of fitness; ties share ranks.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from metarl_cli.config.base import StrictModel
from metarl_cli.evolution.interfaces import Search as Base
from metarl_cli.evolution.searches.fitness import check, metrics, preserve_rng, sanitize, shape_by_rank
from metarl_cli.interfaces import State


class Config(StrictModel):
    """The noise, the shaping of fitness and the optimiser of the mean."""

    population: int = Field(ge=2, multiple_of=2, description="genomes of a generation, in antithetic pairs")
    sigma: float = Field(gt=0, description="standard deviation of the noise, in units of each gene's scale")
    sigma_decay: float = Field(gt=0, le=1, description="factor on sigma after each generation")
    shaping: Literal["centred_ranks", "none"] = Field(description="fitness shaping: centred ranks, or the value itself")
    lr: float = Field(gt=0, description="Adam's learning rate, in units of each gene's scale")
    beta1: float = Field(ge=0, lt=1, description="Adam's decay rate of the mean gradient")
    beta2: float = Field(ge=0, lt=1, description="Adam's decay rate of the mean squared gradient")
    epsilon: float = Field(gt=0, description="Adam's constant in the denominator")
    weight_decay: float = Field(ge=0, description="share, times lr, by which the mean shrinks towards zero in a generation")


class OpenAIES(Base):
    """OpenAI-ES: gradient ascent of the mean of a Gaussian of given size."""

    def __init__(self, config: Config, start: Tensor, scale: Tensor, rng: torch.Generator):
        check(start, scale)
        self.config, self.mean, self.scale, self.rng = config, start, scale, rng  # [G]
        self.first = self.second = torch.zeros_like(start)  # [G] Adam's moments
        self.generation = 0

    @property
    def sigma(self) -> float:
        """Return the current standard deviation of the noise, in units of ``scale``."""
        return self.config.sigma * self.config.sigma_decay**self.generation

    def ask(self) -> Tensor:
        """Draw the genomes ``[P, G]``: mean + noise, then mean - noise; they stay the same until :meth:`tell`."""
        with preserve_rng(self.rng):
            return self._genomes(self._noise())

    def tell(self, fitness: Tensor) -> dict[str, float]:
        """Update the mean from the fitness ``[P]``; returns metrics."""
        config, noise = self.config, self._noise()
        genomes = self._genomes(noise)
        fitness = sanitize(fitness, genomes)
        measured = metrics(fitness, genomes, self.scale, self.sigma)
        if config.shaping == "centred_ranks":
            fitness = shape_by_rank(fitness, torch.linspace(0.5, -0.5, len(fitness), dtype=fitness.dtype))
        grad = gradient(noise, fitness.to(noise.dtype), self.sigma)

        self.generation += 1
        self.first = config.beta1 * self.first + (1 - config.beta1) * grad
        self.second = config.beta2 * self.second + (1 - config.beta2) * grad.square()
        first = self.first / (1 - config.beta1**self.generation)
        second = self.second / (1 - config.beta2**self.generation)
        step = first / (second.sqrt() + config.epsilon)
        self.mean = (1 - config.lr * config.weight_decay) * self.mean + config.lr * self.scale * step
        return measured | {"search/gradient": float(grad.norm())}

    def _noise(self) -> Tensor:
        shape = (self.config.population // 2, len(self.mean))
        return torch.randn(shape, generator=self.rng, dtype=self.mean.dtype, device=self.mean.device)

    def _genomes(self, noise: Tensor) -> Tensor:
        return self.mean + self.sigma * self.scale * torch.cat([noise, -noise])

    def best(self) -> Tensor:
        """Return the mean ``[G]``."""
        return self.mean

    @override
    def state_dict(self) -> State:
        return {
            "mean": self.mean,
            "first": self.first,
            "second": self.second,
            "generation": self.generation,
            "rng": self.rng.get_state(),
        }

    @override
    def load_state_dict(self, state: State) -> None:
        self.mean, self.first, self.second = (state[name].to(self.scale) for name in ("mean", "first", "second"))
        self.generation = state["generation"]
        self.rng.set_state(state["rng"].cpu())


def gradient(noise: Tensor, fitness: Tensor, sigma: float) -> Tensor:
    """Estimate the gradient ``[G]`` of smoothed fitness from ``noise [K, G]`` and ``fitness [2K]`` of mean ± noise."""
    above, below = fitness.chunk(2)
    return (above - below) @ noise / (len(fitness) * sigma)


Search = OpenAIES
