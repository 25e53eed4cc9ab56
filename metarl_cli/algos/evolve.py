"""The evolutionary meta-optimiser: a population of learners, judged by what they have learned at the end of their lifetimes.

    generation    genomes g_1 ... g_P from the search
    express       what each says: initial weights, learning rates, hyper-parameters, architecture, optimiser
    lifetime      each learns each of M training tasks: P x M learners, rows of one tensor
    fitness       the return after the lifetime, mean over the tasks; the same tasks and random numbers for all
    search        moves on: selection, crossover and mutation; or up the estimated gradient
    validation    the fittest are measured on tasks that no fitness has seen; the best of those is what is used on new tasks

What varies (``genomes/``), how it learns (``lifetimes/``) and how the population moves (``searches/``) are groups of the
configuration; what does not go together is said before anything starts:

| algorithm | values | paper |
|---|---|---|
| evo_dqn | lifetime.module=gradient, search.module=genetic | ES-MAML's problem, Song 2020, arXiv:1910.01215 |
| es_dqn | lifetime.module=gradient, search.module=openai_es | ES-MAML, Song 2020, arXiv:1910.01215 |
| adrl | inherit=true | SEARL, Franke 2021, arXiv:2009.01555 |
| learned_optimizer | genome.optimizer.module=optimizer | in the spirit of Metz 2020, arXiv:2009.11243 |
| evo_hyper | genome.hyper.module=hyper | - |

With ``inherit`` there is one lifetime for all generations: a generation lives through one adaptation step of it, and a child
goes on from its parent's weights, optimiser, and place in its lifetime (population-based training, Jaderberg 2017,
arXiv:1711.09846). What comes out is a schedule: the settings along the winner's line of descent.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from metarl_cli.building import ConfigError, Part, load
from metarl_cli.inner_loop import Act
from metarl_cli.lifetimes.dqn import Life as ContinuedLife
from metarl_cli.lineage import draw_lineage, markdown
from metarl_cli.networks import structured
from metarl_cli.ranks import Ranks
from metarl_cli.searches.population import by_rank
from metarl_cli.seeding import CommonNumbers, numpy_rng, torch_rng
from metarl_cli.types import Adaptation, Family, Learner, Life, Params, Portrait, Search, State, StrictModel, Task, Traits


class FitnessConfig(StrictModel):
    """What a generation is judged by."""

    tasks: int = Field(gt=0, description="M, training tasks of a generation, the same for every individual")
    episodes: int = Field(gt=0, description="greedy episodes after the lifetime on each task")
    steps: int | None = Field(gt=0, description="longest part of such an episode that counts [steps]; none: all of it")
    ranks: bool = Field(description="mean over tasks of the rank among individuals, for returns that do not compare")


class ValidationConfig(StrictModel):
    """How the individual is chosen that is used on new tasks."""

    every: int = Field(gt=0, description="generations between choices")
    candidates: int = Field(ge=0, description="fittest individuals that are tried beside the search's own best; 0: take that")
    tasks: int = Field(gt=0, description="validation tasks they are tried on")
    episodes: int = Field(gt=0, description="greedy episodes after the lifetime on each")
    folds: int = Field(ge=0, description="k: try on the k-th of the training tasks left out of this generation; 0: no folds")


class Config(StrictModel):
    """Evolution of what learns."""

    tasks: int = Field(gt=0, description="training tasks, drawn once")
    genome: Annotated[dict[str, dict[str, Any]], Part("genome", many=True)] = Field(
        min_length=1, description="what varies: name -> a part, as in conf/algo/genome"
    )
    lifetime: Annotated[dict[str, Any], Part("lifetime")] = Field(
        description="how an individual learns, as in conf/algo/lifetime"
    )
    search: Annotated[dict[str, Any], Part("search")] = Field(description="how the population moves, as in conf/algo/search")
    inherit: bool = Field(description="one lifetime for all generations: children go on from what their parents have learned")
    fitness: FitnessConfig
    validation: ValidationConfig
    chunk: int | None = Field(gt=0, description="individuals evaluated at once, to bound memory; none: all")

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        folds = self.validation.folds
        if folds == 1 or folds > self.tasks:
            raise ValueError(f"validation.folds ({folds}) must be 0, or from 2 to the number of tasks ({self.tasks})")
        left = self.tasks - (-(-self.tasks // folds) if folds else 0)
        if self.fitness.tasks > left:
            raise ValueError(f"fitness.tasks ({self.fitness.tasks}) must not be above the training tasks it has ({left})")
        if self.inherit and folds:
            raise ValueError("validation.folds go with lifetimes that begin anew, not with inherit")
        if self.inherit and self.lifetime.get("module") != "dqn":
            raise ValueError("inherit needs lifetime.module=dqn: other lifetimes do not go on")
        if self.inherit and self.search.get("module") not in ("genetic", "random"):
            raise ValueError("inherit needs a search whose individuals descend from one another: genetic, or random")
        return self


class Evolve:
    """A search over genomes.

    Args:
        config: see :class:`Config`.
        learner: how one task is learned.
        family: where tasks come from.
        iterations: length of the whole run [generations].
        seed: the run's seed; every stream derives from it by name.

    Raises:
        ValueError: where the parts do not fit together.
    """

    learns = True

    def __init__(self, config: Config, learner: Learner, family: Family, iterations: int, seed: int, device: torch.device):
        self.config, self.learner, self.family, self.seed, self.device = config, learner, family, seed, device
        self.ranks = Ranks()
        module, parsed = load("lifetime", config.lifetime, "algo.lifetime")
        self.lifetime = module.Lifetime(parsed, learner, family, device)
        self.genome = Genes(config.genome, learner, torch_rng(seed, "init", device=device))
        self._check_traits()
        module, parsed = load("search", config.search, "algo.search")
        self.search: Search = module.Search(
            parsed, self.genome.start, self.genome.scale, torch_rng(seed, "search", device=device)
        )
        self.task = family.sample_tasks(config.tasks, "train", numpy_rng(seed, "tasks", "train"))
        self.held_out = family.sample_tasks(config.validation.tasks, "validation", numpy_rng(seed, "tasks", "candidates"))
        self.champion = self.genome.start[None]  # [S, G] one genome for each adaptation step, or for all
        self.iteration = self.env_steps = 0
        self.lives: ContinuedLife | None = None
        self.line = self.genome.start[:0].reshape(0, 0, 0)  # [S, P, G] with inherit: each individual's line of descent
        if config.inherit and self.ranks.size > 1:
            raise ValueError("algo.inherit goes with a single process: weights would have to travel")
        if config.inherit and config.lifetime["steps"] != iterations:
            raise ValueError(
                f"with algo.inherit, a generation is one adaptation step: algo.lifetime.steps ({config.lifetime['steps']}) "
                f"must be train.iterations ({iterations})"
            )

    def _check_traits(self) -> None:
        """Raises ValueError where a part of the genome says something that no lifetime asks for, or may not be."""
        module = self.config.lifetime["module"]
        sample = self.genome.express(self.genome.start[None])
        if unused := sample.keys() - self.lifetime.traits - {"init", "structure"}:
            raise ValueError(f"algo.genome: {', '.join(sorted(unused))} mean nothing in algo.lifetime.module={module}")
        if "init" in sample and "structure" in sample:
            raise ValueError("algo.genome: initial weights and architecture do not go together")
        if "init" in sample and self.config.inherit:
            raise ValueError("algo.genome: initial weights mean nothing with algo.inherit: children have their parents'")
        known = self.lifetime.default.get("hyper", {})
        for part, values in self.config.genome.items():
            ranges = values.get("ranges", {})
            if unknown := ranges.keys() - known.keys():
                said = f"no {', '.join(sorted(unknown))} in algo.lifetime.module={module}; known: {', '.join(known)}"
                raise ValueError(f"algo.genome.{part}.ranges: {said}")
            for end in ("low", "high"):
                lifetime = copy.deepcopy(self.config.lifetime)
                lifetime.get("hyper", lifetime).update({name: span[end] for name, span in ranges.items()})
                try:
                    load("lifetime", lifetime, "algo.lifetime")
                except ConfigError as error:
                    wrong = "; ".join(error.problems)
                    raise ValueError(f"algo.genome.{part}.ranges go too far at their {end} end: {wrong}") from error

    # -- one generation

    @torch.no_grad()
    def train_step(self) -> dict[str, float]:
        """Evaluate the population on this generation's tasks and let the search move on."""
        config = self.config
        genomes = self.search.ask()
        train, left_out = self._folds()
        numbers = numpy_rng(self.seed, "generation", str(self.iteration)).permutation(len(train))[: config.fitness.tasks]
        task = _rows(self.task, train[torch.as_tensor(numbers, device=self.device)])
        if config.inherit:
            returns, spent = self._live_on(genomes)
        else:
            returns, spent = self._evaluate(genomes, task, config.fitness.episodes, config.fitness.steps, "fitness")
        self.env_steps += spent
        fitness = _mean_rank(returns) if config.fitness.ranks else returns.mean(1)
        mean = returns.mean(1)
        quartiles = torch.quantile(mean, torch.tensor([0.25, 0.5, 0.75], dtype=mean.dtype, device=mean.device)).tolist()
        metrics = {
            "fitness/best": float(mean.max()),
            "fitness/mean": float(mean.mean()),
            "fitness/quantile_25": quartiles[0],
            "fitness/median": quartiles[1],
            "fitness/quantile_75": quartiles[2],
        }
        if config.inherit:
            self._note_lines(genomes, fitness)
        metrics |= self.search.tell(fitness)
        self.iteration += 1
        if self.iteration % config.validation.every == 0 or (self.iteration == 1 and not config.inherit):
            metrics |= self._choose_line(fitness) if config.inherit else self._choose(genomes, fitness, left_out)
        return metrics

    def _folds(self) -> tuple[Tensor, Tensor]:
        """The training tasks that fitness is taken from now, and those left out."""
        rows = torch.arange(self.config.tasks, device=self.device)
        if not (folds := self.config.validation.folds):
            return rows, rows[:0]
        out = rows % folds == self.iteration // self.config.validation.every % folds
        return rows[~out], rows[out]

    def _choose(self, genomes: Tensor, fitness: Tensor, left_out: Tensor) -> dict[str, float]:
        """Measure the fittest, the search's own best and the champion so far on other tasks; the best of them is champion."""
        config = self.config.validation
        if not config.candidates:
            self.champion = self.search.best()[None].clone()
            return {}
        fittest = fitness.argsort(descending=True, stable=True)[: config.candidates]
        candidates = torch.cat([self.champion, self.search.best()[None], genomes[fittest]])
        task = _rows(self.task, left_out) if len(left_out) else self.held_out
        returns, _ = self._evaluate(candidates, task, config.episodes, None, "validation")
        found = returns.mean(1)
        self.champion = candidates[found.argmax()][None].clone()
        return {"validation/champion": float(found.max()), "validation/candidates": float(found[2:].mean())}

    def _evaluate(self, genomes: Tensor, task: Task, episodes: int, steps: int | None, name: str) -> tuple[Tensor, int]:
        """Returns ``[P, M]`` after the lifetime, in float64, and the environment steps spent; by all processes together."""
        num, mine = len(genomes), self.ranks.mine(len(genomes))
        size = self.config.chunk or max(len(mine), 1)
        found = torch.zeros(num, len(_first(task)) + 1, dtype=torch.float64, device=self.device)
        for rows in torch.split(mine.to(self.device), size) if len(mine) else ():
            if len(rows) * len(_first(task)) == 1:
                rows = rows.repeat(2)  # products of a single row take another path in BLAS, to other bits
            rng = torch_rng(self.seed, name, "life", str(self.iteration), device=self.device)
            life = self._begin(genomes[rows], task, rng)
            with CommonNumbers(len(rows)):
                for _ in range(self.lifetime.steps):
                    life.grow()
            returns, lengths = self._measure(life, task, len(rows), episodes, steps, name)
            found[rows, :-1] = returns
            found[rows, -1] = (life.env_steps + lengths).reshape(len(rows), -1).sum(1).double()
        found = self.ranks.sum(found)
        return found[:, :-1], int(found[:, -1].sum())

    def _measure(
        self, life: Life, task: Task, copies: int, episodes: int, steps: int | None, name: str
    ) -> tuple[Tensor, Tensor]:
        """Mean greedy return ``[P, M]`` of the learners as they are now, in float64, and the steps ``[P M]`` it took.

        Individuals whose episodes are over are no longer stepped where the environment can go on without them: as random
        numbers are common, that changes nothing for the others.
        """
        rng = torch_rng(self.seed, name, "episodes", str(self.iteration), device=self.device)
        with CommonNumbers(copies):
            env = self.family.make(_tile(task, copies), episodes, rng)
        params, alive = life.params, torch.arange(copies, device=self.device)
        act, take = self._policy(params), getattr(env, "take", None)
        returns, lengths = torch.zeros(2, copies, len(_first(task)), episodes, device=self.device)
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
            if take is not None and 2 * num <= len(alive) and num * len(_first(task)) > 1:  # one row has other bits
                returns[alive], lengths[alive] = total, length
                alive, total, length, running = (x[left] for x in (alive, total, length, running))
                rows = left.repeat_interleave(len(_first(task)))
                take(rows)
                params = {k: v[left if len(v) == len(left) else rows] for k, v in params.items()}
                act = self._policy(params)
        returns[alive], lengths[alive] = total, length
        return returns.double().mean(2), lengths.sum(2).long().flatten()

    def _policy(self, params: Params) -> Act:
        """Greedy actions of P individuals on R rows: those of one individual are a batch to its network."""
        num = len(_first(params))

        def act(obs: Tensor) -> Tensor:
            action = self.learner.act(params, obs.reshape(num, -1, *obs.shape[2:]), 0.0)
            return action.reshape(*obs.shape[:2], *action.shape[2:])

        return act

    def _begin(self, genomes: Tensor, task: Task, rng: torch.Generator, shared: bool = False) -> Any:
        """Lives of P individuals on M tasks at their beginning."""
        copies, num = len(genomes), len(_first(task))
        traits = self.genome.express(genomes)
        structure = {k: v.repeat_interleave(num, 0) for k, v in traits.pop("structure", {}).items()}
        params = traits.pop("init", None)
        if params is None:  # as many fresh networks as tasks, the same for every individual
            params = {k: v.repeat(copies, *[1] * (v.dim() - 1)) for k, v in fresh(self.learner, num, rng).items()}
        if structure:
            params = structured(params, structure)
        more = (copies,) if shared else ()
        with CommonNumbers(copies):  # but not where weights are drawn: their axes are no rows
            return self.lifetime.begin(params, self._complete(traits, num), _tile(task, copies), rng, *more)

    def _complete(self, traits: Traits, num: int) -> Traits:
        """A row of each trait for each of ``num`` tasks; what the genome leaves open is the lifetime's own."""
        default = self.lifetime.default
        whole = {kind: default.get(kind, {}) | traits.get(kind, {}) for kind in default.keys() | traits.keys()}
        return {
            kind: {k: v.repeat_interleave(num, 0) if len(v) > 1 or num == 1 else v for k, v in values.items()}
            for kind, values in whole.items()
        }

    # -- one lifetime for all generations

    def _live_on(self, genomes: Tensor) -> tuple[Tensor, int]:
        """One adaptation step of every individual's life, on the same training tasks throughout."""
        task = _rows(self.task, torch.arange(self.config.fitness.tasks, device=self.device))
        if self.lives is None:
            self.lives = self._begin(genomes, task, torch_rng(self.seed, "lives", device=self.device), shared=True)
        else:
            self._inherit(genomes)
        before = int(self.lives.env_steps.sum())
        with CommonNumbers(len(genomes)):
            self.lives.grow()
        returns, lengths = self._measure(
            self.lives, task, len(genomes), self.config.fitness.episodes, self.config.fitness.steps, "fitness"
        )
        return returns, int(self.lives.env_steps.sum()) - before + int(lengths.sum())

    def _inherit(self, genomes: Tensor) -> None:
        """Children go on from their parents' lives."""
        assert self.lives is not None
        num = self.config.fitness.tasks
        parents = self.search.parents  # type: ignore[attr-defined]
        rows = (parents[:, None] * num + torch.arange(num, device=self.device)).flatten()
        traits = self.genome.express(genomes)
        structure = {k: v.repeat_interleave(num, 0) for k, v in traits.pop("structure", {}).items()}
        self.lives.become(rows, self._complete(traits, num), structure)

    def _note_lines(self, genomes: Tensor, fitness: Tensor) -> None:
        """Put this generation at the end of each individual's line of descent; the fittest's is the champion for now."""
        if self.iteration == 0:
            self.line = genomes[None].clone()
        else:
            self.line = torch.cat([self.line[:, self.search.parents], genomes[None]])  # type: ignore[attr-defined]
        self.champion = self.line[:, fitness.argmax()].clone()

    def _choose_line(self, fitness: Tensor) -> dict[str, float]:
        """Let fresh learners live by the settings of the fittest on validation tasks; the best settings are the champion.

        Of each of the fittest both its whole line of descent, a schedule, and what it is now, for a whole lifetime. What
        counts is the mean return over the last quarter of the lifetime, for a DQN's return goes up and down.
        """
        config = self.config.validation
        if not config.candidates:
            return {}
        fittest = fitness.argsort(descending=True, stable=True)[: config.candidates]
        lines = self.line[:, fittest]  # [S, C, G]
        schedules = torch.cat([lines, lines[-1:].expand_as(lines)], 1)
        task, copies = self.held_out, schedules.shape[1]
        life = self._begin(schedules[0], task, torch_rng(self.seed, "validation", "life", device=self.device))
        measured = []
        for step in range(len(schedules)):
            if step > 0:
                self._turn(life, schedules[step], len(_first(task)))
            with CommonNumbers(copies):
                life.grow()
            if step >= len(schedules) * 3 // 4:
                measured.append(self._measure(life, task, copies, config.episodes, None, "validation")[0])
        found = torch.stack(measured).mean((0, 2))
        self.champion = schedules[:, found.argmax()].clone()
        return {"validation/champion": float(found.max()), "validation/candidates": float(found.mean())}

    # -- meta-testing

    def adapt(self, task: Task, steps: int, rng: torch.Generator) -> Iterator[Adaptation]:
        """The champion's lifetime on M tasks; beyond the length of a lifetime it goes on as it ended."""
        yield from self._adapt(task, steps, rng, self.champion)

    def adapt_from_scratch(self, task: Task, steps: int, rng: torch.Generator) -> Iterator[Adaptation]:
        """A lifetime without a genome: fresh weights, and the settings of ``algo.lifetime``."""
        yield from self._adapt(task, steps, rng, None)

    @torch.no_grad()
    def _adapt(self, task: Task, steps: int, rng: torch.Generator, schedule: Tensor | None) -> Iterator[Adaptation]:
        num = len(_first(task))
        life: Any
        if schedule is None:
            life = self.lifetime.begin(fresh(self.learner, num, rng), self.lifetime.default, task, rng)
        else:
            life = self._begin(schedule[:1], task, rng)
        for step in range(steps + 1 if self.lifetime.steps else 1):
            if step > 0:
                if schedule is not None and 1 < step <= len(schedule):
                    self._turn(life, schedule[step - 1][None], num)
                life.grow()
            params = {k: v.expand(num, *v.shape[1:]) if len(v) == 1 else v for k, v in life.params.items()}
            yield Adaptation(step, life.gradient_steps, round(float(life.env_steps.double().mean())), params)

    def _turn(self, life: ContinuedLife, genomes: Tensor, num: int) -> None:
        """P individuals go on with the settings ``[P, G]`` of the next generation of their schedules, each on ``num`` tasks."""
        traits = self.genome.express(genomes)
        structure = {k: v.repeat_interleave(num, 0) for k, v in traits.pop("structure", {}).items()}
        life.become(torch.arange(len(genomes) * num, device=self.device), self._complete(traits, num), structure)

    def act(self, params: Params, obs: Tensor) -> Tensor:
        return self.learner.act(params, obs, 0.0)

    def learned(self) -> None:
        return None

    # -- looking

    def portrait(self) -> Portrait:
        """The population in numbers people understand, the champion among them; with ``inherit`` the line it comes from."""
        population = self.genome.read(self.search.ask())
        histograms = {f"genome/{name}": values for name, values in population.items()}
        champion = self.genome.read(self.champion)  # [S]
        rows = [
            [name, *(f"{float(x):.4g}" for x in (champion[name][-1], values.min(), values.median(), values.max()))]
            for name, values in population.items()
        ]
        texts = {"genome/champion": markdown(["", "champion", "least of the population", "median", "greatest"], rows)}
        figures = {}
        if len(self.line) > 1:
            generations, num, genes = self.line.shape
            every = self.genome.read(self.line.reshape(-1, genes))
            lines = {name: values.reshape(generations, num) for name, values in every.items()}
            texts["genome/schedule"] = markdown(
                ["step", *champion],
                [[str(i), *(f"{float(v[i]):.4g}" for v in champion.values())] for i in range(len(self.champion))],
            )
            figures["genome/lineage"] = draw_lineage(lines, champion)
        return Portrait(histograms, texts, figures)

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
            "lives": None if self.lives is None else self.lives.state_dict(),
            "line": self.line,
            "iteration": self.iteration,
            "env_steps": self.env_steps,
        }

    def load_state_dict(self, state: State) -> None:
        self.load_weights(state["weights"])
        self.search.load_state_dict(state["search"])
        self.iteration, self.env_steps = state["iteration"], state["env_steps"]
        self.line = state["line"].to(self.device)
        if state["lives"] is not None:
            genomes = self.search.ask()
            task = _rows(self.task, torch.arange(self.config.fitness.tasks, device=self.device))
            self.lives = self._begin(genomes, task, torch_rng(self.seed, "lives", device=self.device), shared=True)
            self.lives.load_state_dict(state["lives"])


class Genes:
    """A genome of several parts, one after another in the vector of genes."""

    def __init__(self, parts: dict[str, dict[str, Any]], learner: Learner, rng: torch.Generator):
        self.parts = {}
        for name, values in parts.items():
            module, config = load("genome", values, f"algo.genome.{name}")
            self.parts[name] = module.Genome(config, learner, rng)
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


def _first(rows: dict[str, Tensor]) -> Tensor:
    return next(iter(rows.values()))


def _rows(task: Task, numbers: Tensor) -> Task:
    return {name: value[numbers] for name, value in task.items()}


def _tile(task: Task, copies: int) -> Task:
    """The tasks once for each individual, ``[P M]``."""
    return {name: value.repeat(copies, *[1] * (value.dim() - 1)) for name, value in task.items()}


def _mean_rank(returns: Tensor) -> Tensor:
    """The mean over tasks of an individual's rank, from ``returns [P, M]``: the best has P, equals share."""
    ranks = torch.linspace(len(returns), 1, len(returns), dtype=returns.dtype)
    return torch.stack([by_rank(column, ranks) for column in returns.unbind(1)], 1).mean(1)


Algo = Evolve
