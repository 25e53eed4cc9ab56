"""CMA-ES: a Gaussian that learns its covariance from successful steps (Hansen 2016, arXiv:1604.00772), by the package cma.

Genomes are ``start + scale * z``; ``cma`` searches over z in float64 on the CPU, with noise from this project's generator. A
full covariance takes G^2 memory and G^3 time for its occasional decompositions, which suits up to a thousand genes. A diagonal
covariance (Ros & Hansen 2008) is linear in both.

The state holds the attributes of ``cma`` that determine its next generation, as plain tensors; nothing is pickled.
"""

from __future__ import annotations

from functools import reduce
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from metarl_cli.config.base import StrictModel
from metarl_cli.errors import UserError
from metarl_cli.evolution.interfaces import Search as Base
from metarl_cli.evolution.searches.fitness import check, metrics, preserve_rng, sanitize
from metarl_cli.interfaces import State


class Config(StrictModel):
    """The parameters of CMA-ES that it does not set itself."""

    population: int = Field(ge=4, description="genomes of a generation; the usual number is 4 + 3 ln G")
    sigma: float = Field(gt=0, description="initial standard deviation, in units of each gene's scale")
    covariance: Literal["full", "diagonal"] = Field(description="learned covariance: G^2 numbers, or G")


# The attributes of cma's object that change and determine the next generation.
STATE = {
    "full": (
        *("mean", "sigma", "pc", "countiter", "adapt_sigma.ps"),
        *("sm.C", "sm.B", "sm.D", "sm.count_tell", "sm.last_update"),
    ),
    "diagonal": ("mean", "sigma", "pc", "countiter", "adapt_sigma.ps", "sigma_vec.scaling", "sigma_vec.is_identity"),
}


class CMAES(Base):
    """CMA-ES of ``cma``, with cumulative step-size adaptation and negative weights.

    Raises:
        UserError: if the package ``cma`` is not installed.
    """

    def __init__(self, config: Config, start: Tensor, scale: Tensor, rng: torch.Generator):
        check(start, scale)
        try:
            import cma
        except ImportError as error:
            raise UserError("this search needs the package cma: pip install cma") from error
        self.config, self.start, self.scale, self.rng = config, start, scale, rng
        options = {
            "popsize": config.population,
            "CMA_diagonal": config.covariance == "diagonal",
            "CMA_mirrors": 0,
            "conditioncov_alleviate": False,  # it would change the coordinates of the mean
            "AdaptSigma": cma.sigma_adaptation.CMAAdaptSigmaCSA,
            "randn": self._randn,
            "seed": np.nan,  # leaves numpy's global generator alone
            "verbose": -9,
        }
        self.cma = cma.CMAEvolutionStrategy(np.zeros(len(start)), config.sigma, options)

    def _randn(self, *shape: int) -> NDArray[np.float64]:
        drawn = torch.randn(shape, generator=self.rng, dtype=torch.float64, device=self.rng.device)
        noise: NDArray[np.float64] = drawn.numpy(force=True)
        return noise

    def ask(self) -> Tensor:
        """Draw the genomes ``[P, G]``; they stay the same until :meth:`tell`."""
        with preserve_rng(self.rng):
            return self._genomes(np.stack(self.cma.ask()))

    def tell(self, fitness: Tensor) -> dict[str, float]:
        """Update the Gaussian from the fitness ``[P]``; returns metrics."""
        points = self.cma.ask()
        genomes = self._genomes(np.stack(points))
        fitness = sanitize(fitness, genomes)
        measured = metrics(fitness, genomes, self.scale, float(np.mean(self.cma.stds)))
        self.cma.tell(points, (-fitness).tolist())  # cma minimises
        return measured

    def _genomes(self, points: NDArray[np.float64]) -> Tensor:
        return self.start + self.scale * torch.from_numpy(points).to(self.start)

    def best(self) -> Tensor:
        """Return the mean ``[G]``."""
        return self._genomes(self.cma.mean)

    @override
    def state_dict(self) -> State:
        values = {name: reduce(getattr, name.split("."), self.cma) for name in STATE[self.config.covariance]}
        return {
            "start": self.start,
            "cma": {name: _plain(value) for name, value in values.items()},
            "rng": self.rng.get_state(),
        }

    @override
    def load_state_dict(self, state: State) -> None:
        self.ask()  # cma creates its timer in the first ask(), and tell() needs it
        self.start = state["start"].to(self.scale)
        self.rng.set_state(state["rng"].cpu())
        for name in STATE[self.config.covariance]:
            value = state["cma"][name]
            *path, last = name.split(".")
            array = value.cpu().clone().numpy() if isinstance(value, Tensor) else value
            setattr(reduce(getattr, path, self.cma), last, array)
        self.cma.mean_old = self.cma.mean  # tell() needs the attribute, but not its value


def _plain(value: Any) -> Tensor | float | int | bool:
    """Copy an array with its strides, which the order of sums depends on; or return a plain number."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value).clone()
    number: float | int | bool = value.item() if isinstance(value, np.generic) else value
    return number


Search = CMAES
