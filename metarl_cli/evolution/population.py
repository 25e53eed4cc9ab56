"""What every evolution shares: genomes and what they make of a lifetime, how learners are measured, the champion, saving.

What varies (``genomes/``), how it learns (``lifetimes/``) and how the population moves (``searches/``) are groups of the
configuration; what does not go together is said before anything starts. What a generation lives through, and how its champion
is chosen, is the algorithm's: ``algos/evolve.py``, ``algos/adrl.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from metarl_cli.adaptation.gradient import NetworkPolicy
from metarl_cli.config.base import Group, Part, StrictModel
from metarl_cli.config.registry import ConfigError, load
from metarl_cli.evolution.lineage import markdown
from metarl_cli.evolution.searches.population import shape_by_rank
from metarl_cli.experience.rollout import Moment, rollout
from metarl_cli.interfaces import (
    Adapted,
    Algorithm,
    Budget,
    Context,
    Diagnostics,
    Env,
    Family,
    Learner,
    Life,
    Params,
    Search,
    State,
    Step,
    Task,
    Traits,
    num_tasks,
)
from metarl_cli.networks.q_network import structured
from metarl_cli.networks.stacked import first, fresh, select_rows
from metarl_cli.seeding import CommonRandomNumbers, numpy_rng, torch_rng


class FitnessConfig(StrictModel):
    """What a generation is judged by."""

    tasks: int = Field(gt=0, description="M, training tasks of a generation, the same for every individual")
    episodes: int = Field(gt=0, description="greedy episodes after the lifetime on each task")
    steps: int | None = Field(gt=0, description="longest part of such an episode that counts [steps]; none: all of it")
    ranks: bool = Field(description="mean over tasks of the rank among individuals, for returns that do not compare")


class ValidationConfig(StrictModel):
    """How the individual is chosen that is used on new tasks."""

    every: int = Field(gt=0, description="generations between choices")
    candidates: int = Field(ge=0, description="fittest individuals that are tried; 0: no validation")
    tasks: int = Field(gt=0, description="validation tasks they are tried on")
    episodes: int = Field(gt=0, description="greedy episodes after the lifetime on each")


class EvolutionConfig(StrictModel):
    """Evolution of what learns."""

    genome: Annotated[dict[str, Group], Part("genome", many=True)] = Field(
        min_length=1, description="what varies: name -> a part, as in conf/algo/genome"
    )
    lifetime: Annotated[Group, Part("lifetime")] = Field(description="how an individual learns, as in conf/algo/lifetime")
    search: Annotated[Group, Part("search")] = Field(description="how the population moves, as in conf/algo/search")
    fitness: FitnessConfig
    validation: ValidationConfig


class Evolution(Algorithm):
    """The base of searches over genomes.

    Args:
        config: see :class:`EvolutionConfig`.
        tasks: training tasks, drawn once.
        context: what it is built with.

    Raises:
        ValueError: where the parts do not fit together.
    """

    adapts_by = "gradient"
    saved = ("search",)

    def __init__(self, config: EvolutionConfig, tasks: int, context: Context):
        self.config, self.context = config, context
        learner, family, seed, device = context.learner, context.family, context.seed, context.device
        self.learner, self.family, self.seed, self.device = learner, family, seed, device
        self.lifetime = self._lifetime(family)
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

    def _lifetime(self, family: Family) -> Any:
        """Return the lifetime of individuals in the environments of ``family``."""
        lifetime = self.config.lifetime
        return lifetime.module.Lifetime(lifetime.config, self.learner, family, self.device)

    def _check_traits(self) -> None:
        """Raises ValueError where a part of the genome says something that no lifetime asks for, or may not be."""
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
                said = f"no {', '.join(sorted(unknown))} in algo.lifetime.module={module}; known: {', '.join(known)}"
                raise ValueError(f"algo.genome.{part}.ranges: {said}")
            for end in ("low", "high") if ranges else ():
                lifetime = self.config.lifetime.values
                lifetime.get("hyper", lifetime).update({name: span[end] for name, span in ranges.items()})
                try:
                    load("lifetime", lifetime, "algo.lifetime")
                except ConfigError as error:
                    wrong = "; ".join(problem.text for problem in error.problems)
                    raise ValueError(f"algo.genome.{part}.ranges go too far at their {end} end: {wrong}") from error

    # -- one generation

    @torch.no_grad()
    def train_step(self) -> dict[str, float]:
        """Let a generation live, and the search move on."""
        genomes = self.search.ask()
        returns, spent = self._live(genomes)
        self.env_steps += spent
        judged, mean = self._judged(returns), returns.mean(1)
        fitness = _mean_rank(judged) if self.config.fitness.ranks else judged.mean(1)
        quartiles = torch.quantile(mean, torch.tensor([0.25, 0.5, 0.75], dtype=mean.dtype, device=mean.device)).tolist()
        metrics = {
            "fitness/best": float(mean.max()),
            "fitness/mean": float(mean.mean()),
            "fitness/quantile_25": quartiles[0],
            "fitness/median": quartiles[1],
            "fitness/quantile_75": quartiles[2],
        }
        metrics |= self.search.tell(fitness)
        self.iteration += 1
        return metrics | self._choose(genomes, fitness)

    def _live(self, genomes: Tensor) -> tuple[Tensor, int]:
        """The returns ``[P, M]`` by which a generation ``[P, G]`` is judged, in float64, and the environment steps spent."""
        raise NotImplementedError

    def _judged(self, returns: Tensor) -> Tensor:
        """What of the returns ``[P, M]`` counts."""
        return returns

    def _choose(self, genomes: Tensor, fitness: Tensor) -> dict[str, float]:
        """Choose the champion after a generation ``[P, G]`` of this fitness ``[P]``; returns what happened."""
        raise NotImplementedError

    def _measure(
        self, life: Life, task: Task, copies: int, episodes: int, steps: int | None, name: str
    ) -> tuple[Tensor, Tensor]:
        """Mean greedy return ``[P, M]`` of the learners as they are now, in float64, and the steps ``[P M]`` it took.

        Individuals whose episodes are over are no longer stepped where the environment can go on without them: as random
        numbers are common, that changes nothing for the others.
        """
        rng = torch_rng(self.seed, name, "episodes", str(self.iteration), device=self.device)
        with CommonRandomNumbers(copies):
            env = self.family.make(tile(task, copies), episodes, rng)
        params, alive = life.params, torch.arange(copies, device=self.device)
        moments = self._rollout(env, params, copies)
        returns, lengths = torch.zeros(2, copies, num_tasks(task), episodes, device=self.device)
        total, length = returns.clone(), lengths.clone()  # of those alive
        running = torch.ones_like(total, dtype=torch.bool)
        for _ in range(steps or self.family.spec.horizon):
            step = next(moments).step
            total += step.reward.view_as(total) * running
            length += running
            running &= ~step.ended.view_as(running)
            left = running.flatten(1).any(1)
            num = int(left.sum())
            if num == 0:
                break
            if env.can_select_rows and 2 * num <= len(alive) and num * num_tasks(task) > 1:  # one row has other bits
                returns[alive], lengths[alive] = total, length
                alive, total, length, running = (x[left] for x in (alive, total, length, running))
                rows = left.repeat_interleave(num_tasks(task))
                env.select_rows(rows)
                params = select_rows(params, left if len(first(params)) == len(left) else rows)
                moments = self._rollout(env, params, num)
        returns[alive], lengths[alive] = total, length
        return returns.double().mean(2), lengths.sum(2).long().flatten()

    def _rollout(self, env: Env, params: Params, copies: int) -> Iterator[Moment]:
        """Act greedily; the environments of every copy draw the same random numbers."""
        policy = NetworkPolicy(self.learner, params)
        return rollout(Common(env, copies), policy, policy.start(env.obs.shape[1], torch.Generator()))

    def _begin(self, genomes: Tensor, task: Task, rng: torch.Generator, lifetime: Any = None, **more: Any) -> Any:
        """Lives of P individuals on M tasks at their beginning; ``more`` for the lifetime."""
        copies, num = len(genomes), num_tasks(task)
        traits = self._express(genomes, num)
        params, structure = traits.pop("init", None), traits.pop("structure", {})
        if params is None:  # as many fresh networks as tasks, the same for every individual
            params = tile(fresh(self.learner, num, rng), copies)
        if structure:
            params = structured(params, structure)
        with CommonRandomNumbers(copies):  # but not where weights are drawn: their axes are no rows
            return (lifetime or self.lifetime).begin(params, traits, tile(task, copies), rng, **more)

    def _express(self, genomes: Tensor, num: int) -> Traits:
        """Return the traits of genomes, a row for each of ``num`` tasks; what genomes lack is the lifetime's own."""
        traits, default = self.genome.decode(genomes), self.lifetime.default
        rows = {
            kind: values if kind == "init" else {k: v.repeat_interleave(num, 0) for k, v in values.items()}
            for kind, values in traits.items()
        }
        return {kind: default.get(kind, {}) | rows.get(kind, {}) for kind in default.keys() | rows.keys()}

    # -- meta-testing

    def adapt(self, task: Task, budget: Budget, rng: torch.Generator, family: Family | None = None) -> Iterator[Adapted]:
        """Go through the champion's lifetime on M tasks; beyond its length it goes on as it ended."""
        yield from self._adapt(task, budget.steps, rng, self.champion, family)

    def adapt_from_scratch(self, task: Task, budget: Budget, rng: torch.Generator) -> Iterator[Adapted]:
        """Go through a lifetime without a genome: fresh weights, and the settings of ``algo.lifetime``."""
        yield from self._adapt(task, budget.steps, rng, None)

    def load_policy(self, state: State, task: Task) -> tuple[NetworkPolicy, None]:
        return NetworkPolicy(self.learner, state["params"]), None

    @torch.no_grad()
    def _adapt(
        self, task: Task, steps: int, rng: torch.Generator, schedule: Tensor | None, family: Family | None = None
    ) -> Iterator[Adapted]:
        num, lifetime = num_tasks(task), self._lifetime(family) if family else self.lifetime
        life: Any
        if schedule is None:
            life = lifetime.begin(fresh(self.learner, num, rng), lifetime.default, task, rng)
        else:
            life = self._begin(schedule[:1], task, rng, lifetime=lifetime)
            schedule = schedule[:, None]
        for step in range(steps + 1 if self.lifetime.steps else 1):
            if step > 0:
                self._learn(life, step, schedule)
            params = {k: v.expand(num, *v.shape[1:]) if len(v) == 1 else v for k, v in life.params.items()}
            yield Adapted(
                step, life.gradient_steps, round(float(life.env_steps.double().mean())), NetworkPolicy(self.learner, params)
            )

    def _learn(self, life: Any, step: int, schedules: Tensor | None) -> None:
        """The ``step``-th adaptation step of P lives by the schedules ``[S, P, G]``, or without a genome."""
        life.learn()

    # -- looking

    def diagnostics(self) -> Diagnostics:
        """Return the population in numbers people understand, the champion among them."""
        population = self.genome.describe(self.search.ask())
        histograms = {f"genome/{name}": values for name, values in population.items()}
        champion = self.genome.describe(self.champion)  # [S]
        rows = [
            [name, *(f"{float(x):.4g}" for x in (champion[name][-1], values.min(), values.median(), values.max()))]
            for name, values in population.items()
        ]
        texts = {"genome/champion": markdown(["", "champion", "least of the population", "median", "greatest"], rows)}
        return Diagnostics(histograms, texts, {})

    # -- saving

    def weights(self) -> State:
        return {"champion": self.champion}

    def load_weights(self, state: State) -> None:
        champion = state["champion"].to(self.device)
        if champion.shape[1:] != self.genome.start.shape:
            raise ValueError(f"a genome has {len(self.genome.start)} genes, not {champion.shape[-1]}")
        self.champion = champion


class Genes:
    """A genome of several parts, one after another in the vector of genes."""

    def __init__(self, parts: dict[str, Group], learner: Learner, rng: torch.Generator):
        self.parts = {}
        for name, group in parts.items():
            self.parts[name] = group.module.Genome(group.config, learner, rng)
        self.sizes = [len(part.start) for part in self.parts.values()]
        self.start = torch.cat([part.start for part in self.parts.values()])  # [G]
        self.scale = torch.cat([part.scale for part in self.parts.values()])

    def decode(self, genes: Tensor) -> Traits:
        """Return the traits of ``genes [P, G]``, all parts together."""
        traits: Traits = {}
        for part, own in zip(self.parts.values(), torch.split(genes, self.sizes, 1), strict=True):
            for kind, values in part.decode(own).items():
                traits[kind] = traits.get(kind, {}) | values
        return traits

    def describe(self, genes: Tensor) -> dict[str, Tensor]:
        """Return ``{part/name: [P]}`` in numbers people understand."""
        parts = zip(self.parts.items(), torch.split(genes, self.sizes, 1), strict=True)
        return {f"{name}/{key}": value for (name, part), own in parts for key, value in part.describe(own).items()}


class Common(Env):
    """An environment whose P copies of the same rows draw the same random numbers."""

    def __init__(self, env: Env, copies: int):
        self.env, self.copies, self.obs = env, copies, env.obs

    def step(self, action: Tensor) -> Step:
        with CommonRandomNumbers(self.copies):
            step = self.env.step(action)
        self.obs = step.obs
        return step


def tile(rows: Task, copies: int) -> Task:
    """Repeat tasks, or their networks, once for each individual, ``[P M, ...]``."""
    return {name: value.repeat(copies, *[1] * (value.dim() - 1)) for name, value in rows.items()}


def _mean_rank(returns: Tensor) -> Tensor:
    """The mean over tasks of an individual's rank, from ``returns [P, M]``: the best has P, equals share."""
    ranks = torch.linspace(len(returns), 1, len(returns), dtype=returns.dtype)
    return torch.stack([shape_by_rank(column, ranks) for column in returns.unbind(1)], 1).mean(1)
