"""Random search: individuals are drawn without regard to fitness (Bergstra & Bengio 2012).

It is the baseline of every other search. With ``redraw``, each generation is new and the result is the best genome so far;
without, the first generation persists and the result is its best genome by the last fitness.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from metarl_cli.config.base import StrictModel
from metarl_cli.evolution.interfaces import Search as Base
from metarl_cli.evolution.searches.fitness import check, metrics, preserve_rng, sanitize
from metarl_cli.interfaces import State


class Config(StrictModel):
    """The size and the spread of a generation."""

    population: int = Field(ge=1, description="genomes of a generation")
    spread: float = Field(gt=0, description="standard deviation around the start, in units of each gene's scale")
    redraw: bool = Field(description="draw a new generation each time; else the first persists")


class Random(Base):
    """Random draws around the start."""

    def __init__(self, config: Config, start: Tensor, scale: Tensor, rng: torch.Generator):
        check(start, scale)
        self.config, self.start, self.scale, self.rng = config, start, scale, rng
        self.fittest, self.fittest_score = start, -float("inf")

    def ask(self) -> Tensor:
        """Draw the generation ``[P, G]``; it stays the same until :meth:`tell`."""
        with preserve_rng(self.rng):
            shape = (self.config.population, len(self.start))
            noise = torch.randn(shape, generator=self.rng, dtype=self.start.dtype, device=self.start.device)
            return self.start + self.config.spread * self.scale * noise

    descends = True

    @property
    def parents(self) -> Tensor:
        """Return the index of each individual: it is its own parent."""
        return torch.arange(self.config.population, device=self.start.device)

    def tell(self, fitness: Tensor) -> dict[str, float]:
        """Remember the best genome; returns metrics."""
        genomes = self.ask()
        fitness = sanitize(fitness, genomes)
        measured = metrics(fitness, genomes, self.scale, self.config.spread)
        if not self.config.redraw or float(fitness.max()) > self.fittest_score:
            self.fittest, self.fittest_score = genomes[fitness.argmax()], float(fitness.max())
        if self.config.redraw:  # advance the generator past this generation
            torch.randn(genomes.shape, generator=self.rng, dtype=self.start.dtype, device=self.start.device)
        return measured

    def best(self) -> Tensor:
        """Return the best genome ``[G]``; before any generation, the start."""
        return self.fittest

    @override
    def state_dict(self) -> State:
        return {"start": self.start, "fittest": self.fittest, "worth": self.fittest_score, "rng": self.rng.get_state()}

    @override
    def load_state_dict(self, state: State) -> None:
        self.start, self.fittest = state["start"].to(self.scale), state["fittest"].to(self.scale)
        self.fittest_score = state["worth"]
        self.rng.set_state(state["rng"].cpu())


Search = Random
