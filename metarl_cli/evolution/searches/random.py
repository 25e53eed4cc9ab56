"""Random search: individuals drawn once, and never changed by what they are worth (Bergstra & Bengio 2012).

What any other search has to beat. With ``redraw`` each generation is a new one, and the genome for use is the best so far;
without, the first goes on, and it is the best of the last generation.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from metarl_cli.config.base import StrictModel
from metarl_cli.evolution.searches.population import check, metrics, preserve_rng, sanitize
from metarl_cli.interfaces import Search as Base
from metarl_cli.interfaces import State


class Config(StrictModel):
    """How many are drawn, and from where."""

    population: int = Field(ge=1, description="genomes of a generation")
    spread: float = Field(gt=0, description="deviation from the start, in units of each gene's scale")
    redraw: bool = Field(description="draw a new generation each time; else the first stays")


class Random(Base):
    """Draws around the start."""

    def __init__(self, config: Config, start: Tensor, scale: Tensor, rng: torch.Generator):
        check(start, scale)
        self.config, self.start, self.scale, self.rng = config, start, scale, rng
        self.fittest, self.worth = start, -float("inf")

    def ask(self) -> Tensor:
        """The generation ``[P, G]``; the same until :meth:`tell`."""
        with preserve_rng(self.rng):
            shape = (self.config.population, len(self.start))
            noise = torch.randn(shape, generator=self.rng, dtype=self.start.dtype, device=self.start.device)
            return self.start + self.config.spread * self.scale * noise

    descends = True

    @property
    def parents(self) -> Tensor:
        """Return each individual itself."""
        return torch.arange(self.config.population, device=self.start.device)

    def tell(self, fitness: Tensor) -> dict[str, float]:
        """Remember the best."""
        genomes = self.ask()
        fitness = sanitize(fitness, genomes)
        found = metrics(fitness, genomes, self.scale, self.config.spread)
        if not self.config.redraw or float(fitness.max()) > self.worth:
            self.fittest, self.worth = genomes[fitness.argmax()], float(fitness.max())
        if self.config.redraw:
            torch.randn(genomes.shape, generator=self.rng, dtype=self.start.dtype, device=self.start.device)
        return found

    def best(self) -> Tensor:
        """The best genome ``[G]``; the start before any."""
        return self.fittest

    def state_dict(self) -> State:
        return {"start": self.start, "fittest": self.fittest, "worth": self.worth, "rng": self.rng.get_state()}

    def load_state_dict(self, state: State) -> None:
        self.start, self.fittest = state["start"].to(self.scale), state["fittest"].to(self.scale)
        self.worth = state["worth"]
        self.rng.set_state(state["rng"].cpu())


Search = Random
