"""A genetic algorithm on real genomes, with elites, selection of parents, crossover and mutation.

Selection:  tournament   the best of k drawn at random (Goldberg & Deb 1991)
            roulette     by rank: the expected number of children falls linearly from ``pressure`` for the best to
                         2 - ``pressure`` for the worst (Baker 1985), so the sign and scale of returns do not matter
            truncation   drawn uniformly from the best share
Crossover:  uniform      each gene from a random parent; the second child has the genes of the other one (Syswerda 1989)
            averaging    c = w a + (1 - w) b and its mirror image, one w ~ U(0, 1) for the pair
            sbx          simulated binary: c = (a + b) / 2 ± beta (a - b) / 2, P(beta) of index ``eta`` (Deb & Agrawal 1995)
Mutation:   x += sigma scale N(0, 1) on each gene with probability ``mutation``

The deep genetic algorithm (Such 2017, arXiv:1712.06567) is one setting: truncation, no crossover, one elite, mutation of every
gene. Each generation evaluates its elites again, because fitness is noisy.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import override

from metarl_cli.config.base import Share, StrictModel
from metarl_cli.evolution.interfaces import Search as Base
from metarl_cli.evolution.searches.fitness import check, metrics, sanitize, shape_by_rank
from metarl_cli.interfaces import State


class Config(StrictModel):
    """The selection of parents, and the variation of children."""

    population: int = Field(ge=2, description="genomes of a generation")
    spread: float = Field(ge=0, description="standard deviation of the first generation, in units of each gene's scale")
    with_start: bool = Field(description="include the start in the first generation")
    patience: int = Field(ge=0, description="generations before the first selection, with a constant population")
    elites: int = Field(ge=0, description="best genomes that survive unchanged")
    selection: Literal["tournament", "roulette", "truncation"] = Field(description="selection of parents")
    tournament: int = Field(ge=1, description="individuals per tournament")
    pressure: float = Field(ge=1, le=2, description="expected children of the best by roulette; 1 is uniform selection")
    truncation: float = Field(gt=0, le=1, description="share of a generation that truncation selects as parents")
    crossover: Literal["uniform", "averaging", "sbx"] = Field(description="crossover of two parents into two children")
    crossover_rate: Share = Field(description="probability of crossover of a pair; otherwise the children are copies")
    eta: float = Field(ge=0, description="index of simulated binary crossover; the greater, the closer to the parents")
    mutation: Share = Field(description="probability that a gene mutates")
    sigma: float = Field(ge=0, description="standard deviation of a mutation, in units of the gene's scale")
    sigma_decay: float = Field(gt=0, le=1, description="factor on sigma after each generation")

    @model_validator(mode="after")
    def _check_elites(self) -> Self:
        if self.elites >= self.population:
            raise ValueError(f"elites={self.elites} leave no room for children in a population of {self.population}")
        return self


class Genetic(Base):
    """The genetic algorithm; its result is the best genome of the last generation."""

    def __init__(self, config: Config, start: Tensor, scale: Tensor, rng: torch.Generator):
        check(start, scale)
        self.config, self.scale, self.rng, self.warmup = config, scale, rng, config.patience
        self.elite = start  # [G]
        self.generation = 0
        noise = torch.randn(config.population, len(start), generator=rng, dtype=start.dtype, device=start.device)
        if config.with_start:
            noise[0] = 0
        self.population = start + config.spread * scale * noise  # [P, G]
        self.ancestors = torch.arange(config.population, device=start.device)  # [P] parents in the last generation

    descends = True

    @property
    @override
    def parents(self) -> Tensor:
        return self.ancestors

    def ask(self) -> Tensor:
        """Return the generation ``[P, G]``, elites first."""
        return self.population

    def tell(self, fitness: Tensor) -> dict[str, float]:
        """Create the next generation from the fitness ``[P]`` of the current one; returns metrics."""
        config, population, rng = self.config, self.population, self.rng
        fitness = sanitize(fitness, population)
        sigma = config.sigma * config.sigma_decay**self.generation
        measured = metrics(fitness, population, self.scale, sigma)
        best = fitness.argsort(descending=True, stable=True)
        self.elite = population[best[0]]
        self.generation += 1
        if self.generation <= self.warmup:
            return measured

        children = config.population - config.elites
        pairs = (children + 1) // 2
        chosen = self._parents(fitness, 2 * pairs)
        mothers, fathers = population[chosen].chunk(2)
        crossover = torch.rand(pairs, 1, generator=rng, device=population.device) < config.crossover_rate
        one, other = self._cross(mothers, fathers)
        one, other = torch.where(crossover, one, mothers), torch.where(crossover, other, fathers)
        mutated = mutate(torch.cat([one, other])[:children], config.mutation, sigma * self.scale, rng)
        self.population = torch.cat([population[best[: config.elites]], mutated])
        self.ancestors = torch.cat([best[: config.elites], chosen[:children]])  # one of two parents each
        return measured

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
        """Return the best genome ``[G]`` of the last generation; before any, the start."""
        return self.elite

    @override
    def state_dict(self) -> State:
        return {
            "population": self.population,
            "parents": self.ancestors,
            "elite": self.elite,
            "generation": self.generation,
            "rng": self.rng.get_state(),
        }

    @override
    def load_state_dict(self, state: State) -> None:
        self.population, self.elite = state["population"].to(self.scale), state["elite"].to(self.scale)
        self.ancestors = state["parents"].to(self.scale.device)
        self.generation = state["generation"]
        self.rng.set_state(state["rng"].cpu())


def tournament(fitness: Tensor, num: int, size: int, rng: torch.Generator) -> Tensor:
    """Select parents ``[num]``: each is the best of ``size`` individuals drawn with replacement, by ``fitness [P]``."""
    drawn = torch.randint(len(fitness), (num, size), generator=rng, device=fitness.device)
    return drawn.gather(1, fitness[drawn].argmax(1, keepdim=True))[:, 0]


def roulette(fitness: Tensor, num: int, pressure: float, rng: torch.Generator) -> Tensor:
    """Draw parents ``[num]`` by the rank of ``fitness [P]``, weighted from ``pressure`` (best) to 2 - ``pressure`` (worst)."""
    share = shape_by_rank(fitness, torch.linspace(pressure, 2 - pressure, len(fitness), dtype=fitness.dtype))
    return torch.multinomial(share, num, replacement=True, generator=rng)


def truncation(fitness: Tensor, num: int, share: float, rng: torch.Generator) -> Tensor:
    """Draw parents ``[num]`` uniformly from the best ``share`` of ``fitness [P]``."""
    kept = fitness.argsort(descending=True, stable=True)[: max(1, round(share * len(fitness)))]
    return kept[torch.randint(len(kept), (num,), generator=rng, device=fitness.device)]


def uniform(a: Tensor, b: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Create two children of each pair ``[K, G]``: one takes each gene from a random parent, the other from the other."""
    from_a = _rand(a, rng) < 0.5
    return torch.where(from_a, a, b), torch.where(from_a, b, a)


def averaging(a: Tensor, b: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Create two children of each pair ``[K, G]``, on the line between the parents and symmetric about its middle."""
    weight = _rand(a[:, :1], rng)
    return weight * a + (1 - weight) * b, weight * b + (1 - weight) * a


def simulated_binary(a: Tensor, b: Tensor, eta: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Create two children of each pair ``[K, G]``, symmetric about the middle, with the spread of binary crossover.

    As in the authors' program, each gene is crossed with probability 1/2 and exchanged with probability 1/2.
    """
    u = _rand(a, rng)
    beta = torch.where(u < 0.5, 2 * u, 0.5 / (1 - u)) ** (1 / (eta + 1))
    beta = torch.where(_rand(a, rng) < 0.5, beta, 1.0)
    middle, reach = (a + b) / 2, beta * (a - b) / 2
    return uniform(middle + reach, middle - reach, rng)


def mutate(genomes: Tensor, rate: float, size: Tensor, rng: torch.Generator) -> Tensor:
    """Add noise of standard deviation ``size [G]`` to each gene of ``genomes [K, G]`` with probability ``rate``."""
    noise = torch.randn(genomes.shape, generator=rng, dtype=genomes.dtype, device=genomes.device)
    return torch.where(_rand(genomes, rng) < rate, genomes + size * noise, genomes)


def _rand(genomes: Tensor, rng: torch.Generator) -> Tensor:
    """Draw uniform numbers of the shape, dtype and device of ``genomes``."""
    return torch.rand(genomes.shape, generator=rng, dtype=genomes.dtype, device=genomes.device)


Search = Genetic
