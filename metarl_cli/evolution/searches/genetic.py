"""A genetic algorithm on real genomes: elites stay, the fit become parents, parents are crossed, children mutate.

Selection:  tournament   the best of k drawn at random (Goldberg & Deb 1991)
            roulette     by fitness *ranked*: the expected children fall in a line from ``pressure`` for the best to
                         2 - ``pressure`` for the worst (Baker 1985), so that neither sign nor size of returns matters
            truncation   any of the best share
Crossover:  uniform      each gene from either parent, the second child has the other (Syswerda 1989)
            averaging    c = w a + (1 - w) b and its mirror image, one w ~ U(0, 1) for the pair
            sbx          simulated binary: c = (a + b) / 2 ± beta (a - b) / 2, P(beta) of index ``eta`` (Deb & Agrawal 1995)
Mutation:   x += sigma scale N(0, 1) on each gene with probability ``mutation``

The deep genetic algorithm (Such 2017, arXiv:1712.06567) is values of it: truncation, no crossover, one elite, every gene
mutates. Elites are evaluated again with everyone, for fitness is noisy.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from metarl_cli.config.base import Share, StrictModel
from metarl_cli.evolution.searches.population import check, metrics, sanitize, shape_by_rank
from metarl_cli.interfaces import Search as Base
from metarl_cli.interfaces import State


class Config(StrictModel):
    """Who become parents, and what their children are."""

    population: int = Field(ge=2, description="genomes of a generation")
    spread: float = Field(ge=0, description="deviation of the first generation from the start, in units of each gene's scale")
    with_start: bool = Field(description="the start is among the first generation")
    patience: int = Field(ge=0, description="generations before the first selection, in which all stay as they are")
    elites: int = Field(ge=0, description="the best, kept as they are")
    selection: Literal["tournament", "roulette", "truncation"] = Field(description="how parents are chosen")
    tournament: int = Field(ge=1, description="contestants of a tournament")
    pressure: float = Field(ge=1, le=2, description="expected share of the best on the roulette wheel; 1 is chance alone")
    truncation: float = Field(gt=0, le=1, description="the share of a generation that can be parents, by truncation")
    crossover: Literal["uniform", "averaging", "sbx"] = Field(description="how two parents make two children")
    crossover_rate: Share = Field(description="probability that a pair is crossed; else their children are copies")
    eta: float = Field(ge=0, description="index of simulated binary crossover; the greater, the nearer to the parents")
    mutation: Share = Field(description="probability that a gene mutates")
    sigma: float = Field(ge=0, description="deviation of a mutation, in units of the gene's scale")
    sigma_decay: float = Field(gt=0, le=1, description="factor on sigma after each generation")

    @model_validator(mode="after")
    def _room_for_children(self) -> Self:
        if self.elites >= self.population:
            raise ValueError(f"elites={self.elites} leave no room for children in a population of {self.population}")
        return self


class Genetic(Base):
    """The genetic algorithm; its genome for use is the best of the last generation."""

    def __init__(self, config: Config, start: Tensor, scale: Tensor, rng: torch.Generator):
        check(start, scale)
        self.config, self.scale, self.rng, self.warmup = config, scale, rng, config.patience
        self.elite = start  # [G]
        self.generation = 0
        noise = torch.randn(config.population, len(start), generator=rng, dtype=start.dtype, device=start.device)
        if config.with_start:
            noise[0] = 0
        self.population = start + config.spread * scale * noise  # [P, G]
        self.ancestors = torch.arange(config.population, device=start.device)  # [P] see :meth:`parents`

    descends = True

    @property
    def parents(self) -> Tensor:
        return self.ancestors

    def ask(self) -> Tensor:
        """The generation ``[P, G]``, its elites first."""
        return self.population

    def tell(self, fitness: Tensor) -> dict[str, float]:
        """Raise the next generation from this one's fitness ``[P]``."""
        config, population, rng = self.config, self.population, self.rng
        fitness = sanitize(fitness, population)
        sigma = config.sigma * config.sigma_decay**self.generation
        found = metrics(fitness, population, self.scale, sigma)
        best = fitness.argsort(descending=True, stable=True)
        self.elite = population[best[0]]
        self.generation += 1
        if self.generation <= self.warmup:
            return found

        children = config.population - config.elites
        pairs = (children + 1) // 2
        chosen = self._parents(fitness, 2 * pairs)
        mothers, fathers = population[chosen].chunk(2)
        crossed = torch.rand(pairs, 1, generator=rng, device=population.device) < config.crossover_rate
        one, other = self._cross(mothers, fathers)
        one, other = torch.where(crossed, one, mothers), torch.where(crossed, other, fathers)
        born = mutate(torch.cat([one, other])[:children], config.mutation, sigma * self.scale, rng)
        self.population = torch.cat([population[best[: config.elites]], born])
        self.ancestors = torch.cat([best[: config.elites], chosen[:children]])  # of two, the one a child is nearer to
        return found

    def _parents(self, fitness: Tensor, num: int) -> Tensor:
        match self.config.selection:
            case "tournament":
                return tournament(fitness, num, self.config.tournament, self.rng)
            case "roulette":
                return roulette(fitness, num, self.config.pressure, self.rng)
            case "truncation":
                return truncation(fitness, num, self.config.truncation, self.rng)

    def _cross(self, mothers: Tensor, fathers: Tensor) -> tuple[Tensor, Tensor]:
        match self.config.crossover:
            case "uniform":
                return uniform(mothers, fathers, self.rng)
            case "averaging":
                return averaging(mothers, fathers, self.rng)
            case "sbx":
                return simulated_binary(mothers, fathers, self.config.eta, self.rng)

    def best(self) -> Tensor:
        """The best genome ``[G]`` of the last generation; the start before any."""
        return self.elite

    def state_dict(self) -> State:
        return {
            "population": self.population,
            "parents": self.ancestors,
            "elite": self.elite,
            "generation": self.generation,
            "rng": self.rng.get_state(),
        }

    def load_state_dict(self, state: State) -> None:
        self.population, self.elite = state["population"].to(self.scale), state["elite"].to(self.scale)
        self.ancestors = state["parents"].to(self.scale.device)
        self.generation = state["generation"]
        self.rng.set_state(state["rng"].cpu())


def tournament(fitness: Tensor, num: int, size: int, rng: torch.Generator) -> Tensor:
    """Parents ``[num]``: each the best of ``size`` drawn from all of ``fitness [P]`` with replacement."""
    drawn = torch.randint(len(fitness), (num, size), generator=rng, device=fitness.device)
    return drawn.gather(1, fitness[drawn].argmax(1, keepdim=True))[:, 0]


def roulette(fitness: Tensor, num: int, pressure: float, rng: torch.Generator) -> Tensor:
    """Parents ``[num]`` by the rank of ``fitness [P]``, from ``pressure`` for the best to 2 - ``pressure`` for the worst."""
    share = shape_by_rank(fitness, torch.linspace(pressure, 2 - pressure, len(fitness), dtype=fitness.dtype))
    return torch.multinomial(share, num, replacement=True, generator=rng)


def truncation(fitness: Tensor, num: int, share: float, rng: torch.Generator) -> Tensor:
    """Parents ``[num]``, drawn evenly from the best ``share`` of ``fitness [P]``."""
    kept = fitness.argsort(descending=True, stable=True)[: max(1, round(share * len(fitness)))]
    return kept[torch.randint(len(kept), (num,), generator=rng, device=fitness.device)]


def uniform(a: Tensor, b: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two children of each pair ``[K, G]``: each gene of one from either parent, the other's from the other."""
    straight = _rand(a, rng) < 0.5
    return torch.where(straight, a, b), torch.where(straight, b, a)


def averaging(a: Tensor, b: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two children of each pair ``[K, G]``, on the line between their parents and as far from its middle."""
    weight = _rand(a[:, :1], rng)
    return weight * a + (1 - weight) * b, weight * b + (1 - weight) * a


def simulated_binary(a: Tensor, b: Tensor, eta: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two children of each pair ``[K, G]``, about the parents' middle, spread as those of binary strings would be.

    Each gene is crossed with probability 1/2, and exchanged with 1/2, as the authors' program does.
    """
    u = _rand(a, rng)
    beta = torch.where(u < 0.5, 2 * u, 0.5 / (1 - u)) ** (1 / (eta + 1))
    beta = torch.where(_rand(a, rng) < 0.5, beta, 1.0)
    middle, reach = (a + b) / 2, beta * (a - b) / 2
    return uniform(middle + reach, middle - reach, rng)


def mutate(genomes: Tensor, rate: float, size: Tensor, rng: torch.Generator) -> Tensor:
    """``genomes [K, G]`` with noise of deviation ``size [G]`` on each gene with probability ``rate``."""
    noise = torch.randn(genomes.shape, generator=rng, dtype=genomes.dtype, device=genomes.device)
    return torch.where(_rand(genomes, rng) < rate, genomes + size * noise, genomes)


def _rand(like: Tensor, rng: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=rng, dtype=like.dtype, device=like.device)


Search = Genetic
