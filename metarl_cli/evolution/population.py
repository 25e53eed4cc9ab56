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

from metarl_cli.config.base import Group, Part, StrictModel
from metarl_cli.config.registry import ConfigError, load
from metarl_cli.evolution.lineage import markdown
from metarl_cli.evolution.searches.population import by_rank
from metarl_cli.experience.rollout import Act
from metarl_cli.interfaces import Adaptation, Family, Learner, Life, Params, Portrait, Search, State, Task, Traits
from metarl_cli.networks.q_network import structured
from metarl_cli.seeding import CommonNumbers, numpy_rng, torch_rng


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


class Evolution:
    """The base of searches over genomes.

    Args:
        config: see :class:`EvolutionConfig`.
        tasks: training tasks, drawn once.
        learner: how one task is learned.
        family: where tasks come from.
        iterations: generations of the run.
        seed: the run's seed; every stream derives from it by name.

    Raises:
        ValueError: where the parts do not fit together.
    """

    learns = True
    uses_learner = True
    adapts_by = "gradient"

    def __init__(
        self,
        config: EvolutionConfig,
        tasks: int,
        learner: Learner,
        family: Family,
        iterations: int,
        seed: int,
        device: torch.device,
    ):
        self.config, self.learner, self.family, self.seed, self.device = config, learner, family, seed, device
        self.lifetime = config.lifetime.module.Lifetime(config.lifetime.config, learner, family, device)
        self.genome = Genes(config.genome, learner, torch_rng(seed, "init", device=device))
        self._check_traits()
        self.search: Search = config.search.module.Search(
            config.search.config, self.genome.start, self.genome.scale, torch_rng(seed, "search", device=device)
        )
        if (patience := getattr(self.search, "patience", 0)) and iterations < patience + 2:
            raise ValueError(
                f"algo.search.patience ({patience}) is too long: no generation would live after a selection "
                f"in train.iterations ({iterations}); at most {max(iterations - 2, 0)}"
            )
        self.task = family.sample_tasks(tasks, "train", numpy_rng(seed, "tasks", "train"))
        self.held_out = family.sample_tasks(config.validation.tasks, "validation", numpy_rng(seed, "tasks", "candidates"))
        self.champion = self.genome.start[None]  # [S, G] one genome for each adaptation step, or for all
        self.iteration = self.env_steps = 0

    def _check_traits(self) -> None:
        """Raises ValueError where a part of the genome says something that no lifetime asks for, or may not be."""
        module = self.config.lifetime.name
        sample = self.genome.express(self.genome.start[None])
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
        with CommonNumbers(copies):
            env = self.family.make(tile(task, copies), episodes, rng)
        params, alive = life.params, torch.arange(copies, device=self.device)
        act, take = self._policy(params), getattr(env, "take", None)
        returns, lengths = torch.zeros(2, copies, len(first(task)), episodes, device=self.device)
        total, length = returns.clone(), lengths.clone()  # of those alive
        running = torch.ones_like(total, dtype=torch.bool)
        for _ in range(steps or self.family.spec.horizon):
            action = act(env.obs)
            with CommonNumbers(len(alive)):
                step = env.step(action)
            total += step.reward.view_as(total) * running
            length += running
            running &= ~(step.terminated | step.truncated).view_as(running)
            left = running.flatten(1).any(1)
            num = int(left.sum())
            if num == 0:
                break
            if take is not None and 2 * num <= len(alive) and num * len(first(task)) > 1:  # one row has other bits
                returns[alive], lengths[alive] = total, length
                alive, total, length, running = (x[left] for x in (alive, total, length, running))
                rows = left.repeat_interleave(len(first(task)))
                take(rows)
                params = {k: v[left if len(v) == len(left) else rows] for k, v in params.items()}
                act = self._policy(params)
        returns[alive], lengths[alive] = total, length
        return returns.double().mean(2), lengths.sum(2).long().flatten()

    def _policy(self, params: Params) -> Act:
        """Greedy actions of P individuals on R rows: those of one individual are a batch to its network."""
        num = len(first(params))

        def act(obs: Tensor) -> Tensor:
            action = self.learner.act(params, obs.reshape(num, -1, *obs.shape[2:]), 0.0)
            return action.reshape(*obs.shape[:2], *action.shape[2:])

        return act

    def _begin(self, genomes: Tensor, task: Task, rng: torch.Generator, **more: Any) -> Any:
        """Lives of P individuals on M tasks at their beginning; ``more`` for the lifetime."""
        copies, num = len(genomes), len(first(task))
        traits = self._express(genomes, num)
        params, structure = traits.pop("init", None), traits.pop("structure", {})
        if params is None:  # as many fresh networks as tasks, the same for every individual
            params = {k: v.repeat(copies, *[1] * (v.dim() - 1)) for k, v in fresh(self.learner, num, rng).items()}
        if structure:
            params = structured(params, structure)
        with CommonNumbers(copies):  # but not where weights are drawn: their axes are no rows
            return self.lifetime.begin(params, traits, tile(task, copies), rng, **more)

    def _express(self, genomes: Tensor, num: int) -> Traits:
        """What genomes say, a row for each of ``num`` tasks (initial weights: for all); the rest is the lifetime's own."""
        traits, default = self.genome.express(genomes), self.lifetime.default
        rows = {
            kind: values if kind == "init" else {k: v.repeat_interleave(num, 0) for k, v in values.items()}
            for kind, values in traits.items()
        }
        return {kind: default.get(kind, {}) | rows.get(kind, {}) for kind in default.keys() | rows.keys()}

    # -- meta-testing

    def adapt(self, task: Task, steps: int, rng: torch.Generator) -> Iterator[Adaptation]:
        """The champion's lifetime on M tasks; beyond the length of a lifetime it goes on as it ended."""
        yield from self._adapt(task, steps, rng, self.champion)

    def adapt_from_scratch(self, task: Task, steps: int, rng: torch.Generator) -> Iterator[Adaptation]:
        """A lifetime without a genome: fresh weights, and the settings of ``algo.lifetime``."""
        yield from self._adapt(task, steps, rng, None)

    @torch.no_grad()
    def _adapt(self, task: Task, steps: int, rng: torch.Generator, schedule: Tensor | None) -> Iterator[Adaptation]:
        num = len(first(task))
        life: Any
        if schedule is None:
            life = self.lifetime.begin(fresh(self.learner, num, rng), self.lifetime.default, task, rng)
        else:
            life = self._begin(schedule[:1], task, rng)
            schedule = schedule[:, None]
        for step in range(steps + 1 if self.lifetime.steps else 1):
            if step > 0:
                self._grow(life, step, schedule)
            params = {k: v.expand(num, *v.shape[1:]) if len(v) == 1 else v for k, v in life.params.items()}
            yield Adaptation(step, life.gradient_steps, round(float(life.env_steps.double().mean())), params)

    def _grow(self, life: Any, step: int, schedules: Tensor | None) -> None:
        """The ``step``-th adaptation step of P lives by the schedules ``[S, P, G]``, or without a genome."""
        life.grow()

    def act(self, params: Params, obs: Tensor) -> Tensor:
        return self.learner.act(params, obs, 0.0)

    def learned(self) -> None:
        return None

    # -- looking

    def portrait(self) -> Portrait:
        """The population in numbers people understand, the champion among them."""
        population = self.genome.read(self.search.ask())
        histograms = {f"genome/{name}": values for name, values in population.items()}
        champion = self.genome.read(self.champion)  # [S]
        rows = [
            [name, *(f"{float(x):.4g}" for x in (champion[name][-1], values.min(), values.median(), values.max()))]
            for name, values in population.items()
        ]
        texts = {"genome/champion": markdown(["", "champion", "least of the population", "median", "greatest"], rows)}
        return Portrait(histograms, texts, {})

    # -- saving

    def weights(self) -> State:
        return {"champion": self.champion}

    def load_weights(self, state: State) -> None:
        champion = state["champion"].to(self.device)
        if champion.shape[1:] != self.genome.start.shape:
            raise ValueError(f"a genome has {len(self.genome.start)} genes, not {champion.shape[-1]}")
        self.champion = champion

    def state_dict(self) -> State:
        return {
            "weights": self.weights(),
            "search": self.search.state_dict(),
            "iteration": self.iteration,
            "env_steps": self.env_steps,
        }

    def load_state_dict(self, state: State) -> None:
        self.load_weights(state["weights"])
        self.search.load_state_dict(state["search"])
        self.iteration, self.env_steps = state["iteration"], state["env_steps"]


class Genes:
    """A genome of several parts, one after another in the vector of genes."""

    def __init__(self, parts: dict[str, Group], learner: Learner, rng: torch.Generator):
        self.parts = {}
        for name, group in parts.items():
            self.parts[name] = group.module.Genome(group.config, learner, rng)
        self.sizes = [len(part.start) for part in self.parts.values()]
        self.start = torch.cat([part.start for part in self.parts.values()])  # [G]
        self.scale = torch.cat([part.scale for part in self.parts.values()])

    def express(self, genes: Tensor) -> Traits:
        """What ``genes [P, G]`` say, all parts together."""
        traits: Traits = {}
        for part, mine in zip(self.parts.values(), torch.split(genes, self.sizes, 1), strict=True):
            for kind, values in part.express(mine).items():
                traits[kind] = traits.get(kind, {}) | values
        return traits

    def read(self, genes: Tensor) -> dict[str, Tensor]:
        """``{part/name: [P]}`` in numbers people understand."""
        parts = zip(self.parts.items(), torch.split(genes, self.sizes, 1), strict=True)
        return {f"{name}/{key}": value for (name, part), mine in parts for key, value in part.read(mine).items()}


def fresh(learner: Learner, num: int, rng: torch.Generator) -> Params:
    """``num`` networks, each with weights of its own."""
    networks = [learner.init(rng) for _ in range(num)]
    return {k: torch.stack([network[k] for network in networks]) for k in networks[0]}


def first(rows: dict[str, Tensor]) -> Tensor:
    """One of the tensors, for what all have in common."""
    return next(iter(rows.values()))


def tile(task: Task, copies: int) -> Task:
    """The tasks once for each individual, ``[P M]``."""
    return {name: value.repeat(copies, *[1] * (value.dim() - 1)) for name, value in task.items()}


def _mean_rank(returns: Tensor) -> Tensor:
    """The mean over tasks of an individual's rank, from ``returns [P, M]``: the best has P, equals share."""
    ranks = torch.linspace(len(returns), 1, len(returns), dtype=returns.dtype)
    return torch.stack([by_rank(column, ranks) for column in returns.unbind(1)], 1).mean(1)
