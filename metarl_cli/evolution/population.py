"""The base of evolutionary algorithms: decoding of genomes, measurement of learners, adaptation by the champion, saving.

The genome (``genomes/``), the lifetime (``lifetimes/``) and the search (``searches/``) are groups of the configuration; the
constructor refuses combinations that do not fit. The subclasses in ``algos/evolve.py`` and ``algos/adrl.py`` evaluate a
generation and choose its champion.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from metarl_cli.adaptation.gradient import NetworkPolicy, load_network_policy
from metarl_cli.config.base import Group, Part, StrictModel
from metarl_cli.config.footprint import BYTES, blank_network, blank_transitions, bytes_per_env, bytes_per_task, peak, size_of
from metarl_cli.config.registry import ConfigError, load
from metarl_cli.evolution.interfaces import Cost, Life, Search, Traits
from metarl_cli.evolution.lineage import markdown
from metarl_cli.evolution.measuring import Measuring
from metarl_cli.evolution.searches.fitness import shape_by_rank
from metarl_cli.interfaces import (
    Adapted,
    Algorithm,
    Budget,
    Context,
    Diagnostics,
    Family,
    Footprint,
    Holding,
    Learner,
    State,
    Task,
    num_tasks,
)
from metarl_cli.networks.q_network import structured
from metarl_cli.networks.stacked import fresh, sound
from metarl_cli.progress import timed
from metarl_cli.seeding import CommonRandomNumbers, numpy_rng, torch_rng


class FitnessConfig(StrictModel):
    """The evaluation of a generation."""

    tasks: int = Field(gt=0, description="M, training tasks of a generation, the same for every individual")
    episodes: int = Field(gt=0, description="greedy episodes on each task after the lifetime")
    steps: int | None = Field(gt=0, description="length after which an episode is cut off [steps]; none: the horizon")
    ranks: bool = Field(description="mean over tasks of the rank instead of the return, for returns of different scales")


class ValidationConfig(StrictModel):
    """The choice of the champion, which adapts to new tasks."""

    every: int = Field(gt=0, description="generations between choices of the champion")
    candidates: int = Field(ge=0, description="number of fittest individuals to validate; 0: no validation")
    tasks: int = Field(gt=0, description="validation tasks")
    episodes: int = Field(gt=0, description="greedy episodes on each validation task after the lifetime")


INDIVIDUAL = 256  # bytes of an individual with a few genes


class EvolutionConfig(StrictModel):
    """The genome, the lifetime and the search of evolution, with its evaluation."""

    genome: Annotated[dict[str, Group], Part("genome", many=True)] = Field(
        min_length=1, description="parts of the genome: name -> a part, as in conf/algo/genome"
    )
    lifetime: Annotated[Group, Part("lifetime")] = Field(description="learning of an individual, as in conf/algo/lifetime")
    search: Annotated[Group, Part("search")] = Field(description="search over genomes, as in conf/algo/search")
    fitness: FitnessConfig
    validation: ValidationConfig


class Evolution(Algorithm):
    """The base of searches over genomes.

    Args:
        config: see :class:`EvolutionConfig`.
        tasks: number of training tasks, drawn once.
        context: the family, the learner, the seed, the device and the iterations of the run.

    Raises:
        ValueError: if the genome, the lifetime, the search and the learner do not fit together.
    """

    adapts_by = "gradient"
    saved = ("search",)

    def __init__(self, config: EvolutionConfig, tasks: int, context: Context):
        self.config, self.context = config, context
        learner, family, seed, device = context.learner, context.family, context.seed, context.device
        self.learner, self.family, self.seed, self.device = learner, family, seed, device
        self.lifetime = config.lifetime.module.Lifetime(config.lifetime.config, learner, family, device)
        self.trained_steps = self.lifetime.steps or None
        self.measure, self.measure_fitness = Measuring(learner, compile=False), Measuring(learner, context.compile)
        self.genome = Genes(config.genome, learner, torch_rng(seed, "init", device=device))
        self._check_traits()
        self.search: Search = config.search.module.Search(
            config.search.config, self.genome.start, self.genome.scale, torch_rng(seed, "search", device=device)
        )
        if self.search.warmup and context.iterations < self.search.warmup + 2:
            raise ValueError(
                f"algo.search.patience ({self.search.warmup}) is too long: no generation would live after a selection "
                f"in train.iterations ({context.iterations}); at most {max(context.iterations - 2, 0)}"
            )
        self.task = family.sample_tasks(tasks, "train", numpy_rng(seed, "tasks", "train"))
        self.held_out = family.sample_tasks(config.validation.tasks, "validation", numpy_rng(seed, "tasks", "candidates"))
        self.champion = self.genome.start[None]  # [S, G] one genome for each adaptation step, or for all
        self.iteration = self.env_steps = 0

    @override
    @classmethod
    def cost_of_building(cls, config: EvolutionConfig, context: Context) -> Footprint:
        weights = size_of(blank_network(context.learner))
        genes = weights if any(group.name == "init" for group in config.genome.values()) else 0.0
        search = config.search.values
        held = [Holding("algo.search.population", 3 * int(search.get("population", 0)) * max(genes, INDIVIDUAL))]
        for name, each in (("fitness", config.fitness), ("validation", config.validation)):
            held.append(Holding(f"algo.{name}.tasks", each.tasks * bytes_per_task(context.family)))
        if search.get("covariance") == "full":  # three matrices in float64
            held.append(Holding("algo.search.covariance", 6 * genes**2 / BYTES))
        return Footprint([*held, Holding("learner.network", 4 * weights)])

    def cost_of_lives(self, copies: int, tasks: int, episodes: int) -> float:
        """Return the bytes that the lifetimes of P individuals on M tasks take, with the measurement at their end."""
        network = blank_network(self.learner)
        rows = copies * tasks
        weights = {name: value.expand(rows, *value.shape) for name, value in network.items()}
        obs = blank_transitions(self.family.spec, rows, 1, episodes).obs[:, 0]
        act = peak(lambda: self.learner.policy(weights, obs).mode()) if weights else 0.0
        life: Cost = self.lifetime.cost(weights, copies)
        return life.held + max(life.passing, act + rows * episodes * bytes_per_env(self.family))

    @override
    def cost_of_adapting(self, tasks: int, episodes: int) -> float:
        return self.cost_of_lives(1, tasks, episodes)

    @override
    def numbers_of_adapting(self) -> dict[str, int]:
        sizes: dict[str, int] = self.lifetime.sizes("algo.lifetime")
        return sizes

    def _check_traits(self) -> None:
        """Raise ValueError for traits that the lifetime does not read, and for values outside its limits."""
        module = self.config.lifetime.name
        sample = self.genome.decode(self.genome.start[None])
        if unused := sample.keys() - self.lifetime.traits - {"init", "structure"}:
            raise ValueError(f"algo.genome: {', '.join(sorted(unused))} mean nothing in algo.lifetime.module={module}")
        if "init" in sample and "structure" in sample:
            raise ValueError("algo.genome: initial weights and architecture do not go together")
        known = self.lifetime.default.get("hyper", {})
        for part, group in self.config.genome.items():
            ranges = group.values.get("ranges", {})
            if unknown := ranges.keys() - known.keys():
                names = f"no {', '.join(sorted(unknown))} in algo.lifetime.module={module}; known: {', '.join(known)}"
                raise ValueError(f"algo.genome.{part}.ranges: {names}")
            for end in ("low", "high") if ranges else ():
                lifetime = self.config.lifetime.values
                lifetime.get("hyper", lifetime).update({name: span[end] for name, span in ranges.items()})
                try:
                    load("lifetime", lifetime, "algo.lifetime")
                except ConfigError as error:
                    text = "; ".join(problem.text for problem in error.problems)
                    raise ValueError(f"algo.genome.{part}.ranges go too far at their {end} end: {text}") from error

    # -- one generation

    @torch.no_grad()
    def train_step(self) -> dict[str, float]:
        """Evaluate one generation, update the search and choose the champion."""
        genomes = self.search.ask()
        returns, spent = self._live(genomes)
        self.env_steps += spent
        scores, mean = self._score(returns), returns.mean(1)
        fitness = _mean_rank(scores) if self.config.fitness.ranks else scores.mean(1)
        quartiles = torch.quantile(mean, torch.tensor([0.25, 0.5, 0.75], dtype=mean.dtype, device=mean.device)).tolist()
        metrics = {
            "fitness/best": float(mean.max()),
            "fitness/mean": float(mean.mean()),
            "fitness/quantile_25": quartiles[0],
            "fitness/median": quartiles[1],
            "fitness/quantile_75": quartiles[2],
        }
        metrics |= timed("search")(self.search.tell)(fitness)
        self.iteration += 1
        return metrics | self._choose(genomes, fitness)

    @abstractmethod
    def _live(self, genomes: Tensor) -> tuple[Tensor, int]:
        """Run the lifetimes of a generation ``[P, G]``; returns its returns ``[P, M]`` in float64 and the environment steps."""

    def _score(self, returns: Tensor) -> Tensor:
        """Return the part of the returns ``[P, M]`` that fitness rewards."""
        return returns

    @abstractmethod
    def _choose(self, genomes: Tensor, fitness: Tensor) -> dict[str, float]:
        """Choose the champion after a generation ``[P, G]`` with this fitness ``[P]``; returns metrics."""

    @timed("measuring fitness")
    def _measure(
        self, life: Life, task: Task, copies: int, episodes: int, steps: int | None, name: str
    ) -> tuple[Tensor, Tensor]:
        """Measure the mean greedy return ``[P, M]`` of learners in float64; returns the environment steps ``[P M]`` too."""
        rng = torch_rng(self.seed, name, "episodes", str(self.iteration), device=self.device)
        with CommonRandomNumbers(copies):
            env = self.family.make(tile(task, copies), episodes, rng)
        env.one_episode()
        drawn, horizon = rng.get_state(), self.family.spec.horizon
        # validation, which is rare, would be compiled for numbers of individuals of its own
        measure = self.measure_fitness if name == "fitness" else self.measure
        returns, lengths = measure(env, life.params, copies, min(steps or horizon, horizon))
        if not env.draws and not torch.equal(drawn, rng.get_state()):
            raise RuntimeError(f"{env.name}: the dynamics draw random numbers: set stochastic = True in the class")
        return returns.double().mean(2), lengths.sum(2).long().flatten()

    def _begin(self, genomes: Tensor, task: Task, rng: torch.Generator, lifetime: Any = None, **more: Any) -> Any:
        """Begin the lifetimes of P individuals on M tasks; ``more`` are arguments of the lifetime."""
        copies, num = len(genomes), num_tasks(task)
        traits = self._express(genomes, num)
        params, structure = traits.pop("init", None), traits.pop("structure", {})
        if params is None:  # a fresh network for each task, shared by all individuals
            params = tile(fresh(self.learner, num, rng), copies)
        if structure:
            params = structured(params, structure)
        with CommonRandomNumbers(copies):  # but not where weights are drawn: their axes are not rows
            return (lifetime or self.lifetime).begin(params, traits, tile(task, copies), rng, **more)

    def _express(self, genomes: Tensor, num: int) -> Traits:
        """Return the traits of genomes, a row for each of ``num`` tasks, completed by the lifetime's defaults."""
        traits, default = self.genome.decode(genomes), self.lifetime.default
        rows = {
            kind: values if kind == "init" else {k: v.repeat_interleave(num, 0) for k, v in values.items()}
            for kind, values in traits.items()
        }
        return {kind: default.get(kind, {}) | rows.get(kind, {}) for kind in default.keys() | rows.keys()}

    # -- meta-testing

    def adapt(self, task: Task, budget: Budget, rng: torch.Generator, family: Family | None = None) -> Iterator[Adapted]:
        """Run the champion's lifetime on M tasks; after its end, the last settings stay in force."""
        yield from self._adapt(task, budget, rng, self.champion, family)

    def adapt_from_scratch(self, task: Task, budget: Budget, rng: torch.Generator) -> Iterator[Adapted]:
        """Run a lifetime without a genome: fresh weights and the settings of ``algo.lifetime``."""
        yield from self._adapt(task, budget, rng, None)

    @override
    def load_policy(self, state: State, task: Task) -> NetworkPolicy:
        return load_network_policy(self.learner, state)

    @torch.no_grad()
    def _adapt(
        self, task: Task, budget: Budget, rng: torch.Generator, schedule: Tensor | None, family: Family | None = None
    ) -> Iterator[Adapted]:
        num, lifetime = num_tasks(task), self.lifetime
        if family is not None or budget.episodes is not None:
            lifetime = lifetime.at(family or self.family, budget.episodes)
        life: Any
        if schedule is None:
            life = lifetime.without_genome().begin(fresh(self.learner, num, rng), lifetime.default, task, rng)
        else:
            life = self._begin(schedule[:1], task, rng, lifetime=lifetime)
            schedule = schedule[:, None]
        for step in range(budget.steps + 1 if self.lifetime.steps else 1):
            if step > 0:
                self._learn(life, step, schedule)
            params = {k: v.expand(num, *v.shape[1:]) if len(v) == 1 else v for k, v in life.params.items()}
            yield Adapted(
                step, life.gradient_steps, round(float(life.env_steps.double().mean())), NetworkPolicy(self.learner, params)
            )

    def _learn(self, life: Any, step: int, schedules: Tensor | None) -> None:
        """Run the adaptation step ``step`` of P individuals by the schedules ``[S, P, G]``, or without a genome."""
        life.learn()

    # -- diagnostics

    def diagnostics(self) -> Diagnostics:
        """Return histograms of the population's genes and a table with the champion's, both in natural units."""
        population = self.genome.describe(self.search.ask())
        histograms = {f"genome/{name}": values for name, values in population.items()}
        champion = self.genome.describe(self.champion)  # [S]
        rows = [
            [name, *(f"{float(x):.4g}" for x in (champion[name][-1], values.min(), values.median(), values.max()))]
            for name, values in population.items()
        ]
        texts = {"genome/champion": markdown(["", "champion", "population minimum", "median", "maximum"], rows)}
        return Diagnostics(histograms, texts, {})

    # -- saving

    @override
    def weights(self) -> State:
        return {"champion": self.champion}

    @override
    def load_weights(self, state: State) -> None:
        champion = sound(state["champion"], "champion", self.genome.start).to(self.device)
        if champion.shape[1:] != self.genome.start.shape:
            raise ValueError(f"a genome has {len(self.genome.start)} genes, not {champion.shape[-1]}")
        self.champion = champion


class Genes:
    """A genome of several parts, concatenated in the vector of genes."""

    def __init__(self, parts: dict[str, Group], learner: Learner, rng: torch.Generator):
        self.parts = {}
        for name, group in parts.items():
            self.parts[name] = group.module.Genome(group.config, learner, rng)
        self.sizes = [len(part.start) for part in self.parts.values()]
        self.start = torch.cat([part.start for part in self.parts.values()])  # [G]
        self.scale = torch.cat([part.scale for part in self.parts.values()])

    def decode(self, genes: Tensor) -> Traits:
        """Return the traits of ``genes [P, G]``, merged over all parts."""
        traits: Traits = {}
        for part, own in zip(self.parts.values(), torch.split(genes, self.sizes, 1), strict=True):
            for kind, values in part.decode(own).items():
                traits[kind] = traits.get(kind, {}) | values
        return traits

    def describe(self, genes: Tensor) -> dict[str, Tensor]:
        """Return the genes ``[P, G]`` in natural units, ``{part/name: [P]}``."""
        parts = zip(self.parts.items(), torch.split(genes, self.sizes, 1), strict=True)
        return {f"{name}/{key}": value for (name, part), own in parts for key, value in part.describe(own).items()}


def tile(rows: Task, copies: int) -> Task:
    """Repeat tasks, or their networks, for each individual, ``[P M, ...]``."""
    return {name: value.repeat(copies, *[1] * (value.dim() - 1)) for name, value in rows.items()}


def _mean_rank(returns: Tensor) -> Tensor:
    """Compute the mean over tasks of each individual's rank in ``returns [P, M]``: the best has P, ties share their ranks."""
    ranks = torch.linspace(len(returns), 1, len(returns), dtype=returns.dtype)
    return torch.stack([shape_by_rank(column, ranks) for column in returns.unbind(1)], 1).mean(1)
