"""The interfaces of evolution: genomes, lifetimes and searches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from metarl_cli.interfaces import Family, Params, State, Task

Traits = dict[str, Params]  # kind of trait -> its values, leading with [P], or [R] once each is a row of its own


class Genome(Protocol):
    """What a vector of genes means: one part of what an individual is, with genes of its own.

    Built by ``Genome(config, learner, rng)``.
    """

    start: Tensor  # [G] to begin a search at
    scale: Tensor  # [G] the natural size of a change of each gene

    def decode(self, genes: Tensor) -> Traits:
        """The traits of the genes ``[P, G]``: ``init``, ``structure``, ``rates``, ``hyper`` or ``optimizer``."""
        ...

    def describe(self, genes: Tensor) -> dict[str, Tensor]:
        """The genes in numbers people understand, ``{name: [P]}``."""
        ...


class Life(Protocol):
    """R learners in their lifetimes, each on its own task."""

    params: Params  # [R, ...], or [P, ...] as long as P individuals are the same on each of their R / P tasks
    gradient_steps: int  # so far
    env_steps: Tensor  # [R] so far

    def learn(self) -> None:
        """Go through one adaptation step."""
        ...


class LastingLife(Life, Protocol):
    """A life over many generations: it goes on with other genes, and from a checkpoint."""

    rows: int  # R

    def inherit(self, parents: Tensor, traits: Traits, structure: Params) -> None:
        """Continue each row r as a copy of the row ``parents[r]``, with the traits and the network's structure of row r."""
        ...

    def state_dict(self) -> State:
        """Everything the lives go on from."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Go on from what :meth:`state_dict` returned."""
        ...


class Cost(NamedTuple):
    """The bytes of lifetimes: what stays until their end, and the most that comes and goes."""

    held: float
    passing: float


class Lifetime(Protocol):
    """How an individual learns a task; built by ``Lifetime(config, learner, family, device)``."""

    steps: int  # adaptation steps of a whole lifetime, after which fitness is measured
    inherits: ClassVar[bool]  # whether its lives are :class:`LastingLife`
    traits: frozenset[str]  # the kinds of traits it reads, in addition to ``init`` and ``structure``
    default: Traits  # of a learner without a genome, of each kind in ``traits`` it has; leading with [1]

    def begin(self, params: Params, traits: Traits, task: Task, rng: torch.Generator) -> Life:
        """Put learners with these weights and ``traits [R]`` to the tasks ``[R]``.

        Where it ``inherits``, there is an argument ``copies``: P, the individuals among the R rows.
        """
        ...

    def without_genome(self) -> Lifetime:
        """The same lifetime for learners that nothing was evolved for: none of its steps is beyond what they are made for."""
        ...

    def cost(self, params: Params, copies: int) -> Cost:
        """The memory of the lifetimes of R networks ``[R, ...]``, without content, of P individuals."""
        ...

    def sizes(self, key: str) -> dict[str, int]:
        """The numbers that this memory grows with, by their keys; ``key`` is that of the lifetime's configuration."""
        ...

    def at(self, family: Family, episodes: int | None) -> Lifetime:
        """The same lifetime in the environments of another family, with so many episodes of support if given.

        Raises:
            UserError: if the lifetime cannot take place there.
        """
        ...


class Search(ABC):
    """The way a population of P genomes, vectors of G genes, moves towards greater fitness.

    Built by ``Search(config, start, scale, rng)``: the genome ``[G]`` to start at, the natural size ``[G]`` of each gene's
    change, and the generator that it owns; the state goes into one built with the same ``config`` and ``scale``.
    """

    warmup: int = 0  # generations before the first selection
    descends: ClassVar[bool] = False  # whether individuals descend from one another, as ``parents`` says

    @abstractmethod
    def ask(self) -> Tensor:
        """The genomes ``[P, G]`` to evaluate now; the same ones until :meth:`tell`."""

    @abstractmethod
    def tell(self, fitness: Tensor) -> dict[str, float]:
        """Update the search from the fitness ``[P]`` of the last population: higher is better, not finite is worst.

        Returns metrics ``{"search/name": value}``.

        Raises:
            ValueError: if there is not one number per genome, or none is finite.
        """

    @abstractmethod
    def best(self) -> Tensor:
        """The genome ``[G]`` to use now."""

    @property
    def parents(self) -> Tensor:
        """The number ``[P]`` that the parent of each individual had in the generation before."""
        raise NotImplementedError(f"individuals of {type(self).__name__} do not descend from one another")

    @abstractmethod
    def state_dict(self) -> State:
        """Everything the search goes on from, its generator included; between ``ask`` and ``tell`` too."""

    @abstractmethod
    def load_state_dict(self, state: State) -> None:
        """Go on from what :meth:`state_dict` returned."""
