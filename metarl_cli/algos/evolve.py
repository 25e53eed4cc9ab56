"""The evolutionary meta-optimiser: a population of learners, selected by their return at the end of their lifetimes.

    generation    genomes g_1 ... g_P from the search
    decoding      the traits of each genome: initial weights, learning rates, hyper-parameters, architecture, optimiser
    lifetime      each individual learns each of M training tasks: P x M learners, rows of one tensor
    fitness       the return after the lifetime, mean over tasks; all individuals have the same tasks and random numbers
    search        the next population: by selection, crossover and mutation, or by a step along an estimated gradient
    validation    the fittest are measured on tasks outside their fitness; the best of them, the champion, adapts to new tasks

The genome (``genomes/``), the lifetime (``lifetimes/``) and the search (``searches/``) are groups of the configuration:

| algorithm | values | paper |
|---|---|---|
| evo_dqn | lifetime.module=gradient, search.module=genetic | ES-MAML's problem, Song 2020, arXiv:1910.01215 |
| es_dqn | lifetime.module=gradient, search.module=openai_es | ES-MAML, Song 2020, arXiv:1910.01215 |
| learned_optimizer | genome.optimizer.module=optimizer | in the spirit of Metz 2020, arXiv:2009.11243 |
| evo_hyper | genome.hyper.module=hyper | - |

In ``algos/adrl.py`` the population evolves during its lifetime.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import override

from metarl_cli.adaptation.learning import Learning
from metarl_cli.config.base import Operational
from metarl_cli.config.footprint import factor
from metarl_cli.evolution.lifetimes.gradient import Gradient
from metarl_cli.evolution.population import Evolution, EvolutionConfig, ValidationConfig
from metarl_cli.interfaces import Context, Footprint, Holding, Task, num_tasks
from metarl_cli.networks.q_network import structured
from metarl_cli.seeding import CommonRandomNumbers, numpy_rng, torch_rng


class FoldsConfig(ValidationConfig):
    """Validation on validation tasks, or on folds of the training tasks."""

    folds: int = Field(ge=0, description="k: validate on a k-th of the training tasks, left out of fitness; 0: no folds")


class Config(EvolutionConfig):
    """Evolution with a new lifetime in each generation."""

    tasks: int = Field(gt=0, description="training tasks, drawn once")
    validation: FoldsConfig
    chunk: Annotated[int | None, Operational()] = Field(
        gt=0, description="individuals evaluated together, to bound memory; none: all"
    )

    @model_validator(mode="after")
    def _check_tasks(self) -> Config:
        folds = self.validation.folds
        if folds == 1 or folds > self.tasks:
            raise ValueError(f"validation.folds ({folds}) must be 0, or from 2 to the number of tasks ({self.tasks})")
        left = self.tasks - (-(-self.tasks // folds) if folds else 0)
        if self.fitness.tasks > left:
            raise ValueError(f"fitness.tasks ({self.fitness.tasks}) must not be above the training tasks in use ({left})")
        return self


class Evolve(Evolution):
    """Evolution whose lifetimes start afresh in each generation; see :class:`Evolution` for the errors raised."""

    config: Config

    def __init__(self, config: Config, context: Context):
        super().__init__(config, config.tasks, context)
        self.processes, self.shares = context.processes, len(self.search.ask())

    @override
    def cost_of_training(self) -> Footprint:
        config, validation = self.config, self.config.validation
        individuals = -(-len(self.search.ask()) // self.processes.size)
        together = min(config.chunk or individuals, individuals)
        tasks, candidates = config.fitness.tasks, validation.candidates + 2
        lives = self.cost_of_lives(together, tasks, config.fitness.episodes)
        own = "algo.chunk" if config.chunk or together > 1 else "algo.fitness.tasks"
        numbers = self.numbers_of_adapting()
        key = factor(**numbers, **{own: max(together, tasks)}, algo__fitness__episodes=config.fitness.episodes)
        passing = [Holding(key, lives)]
        if validation.candidates:
            number = min(config.chunk or candidates, candidates)
            most = max(validation.tasks, -(-config.tasks // validation.folds) if validation.folds else 0)
            numbers |= {"algo.validation.tasks": most, "algo.validation.candidates": number}
            key = factor(**numbers, algo__validation__episodes=validation.episodes)
            passing.append(Holding(key, self.cost_of_lives(number, most, validation.episodes)))
        return Footprint((), passing)

    def learning(self) -> Learning | None:
        """Return the champion's lifetime as functions of tensors; None where it is none, or begins with fresh weights."""
        traits = self._express(self.champion[:1], 1)
        params, structure = traits.pop("init", None), traits.pop("structure", {})
        if params is None or not isinstance(self.lifetime, Gradient):
            return None
        return self.lifetime.learning(structured(params, structure) if structure else params, traits)

    @override
    def _live(self, genomes: Tensor) -> tuple[Tensor, int]:
        train, _ = self._folds(self.iteration)
        order = numpy_rng(self.seed, "generation", str(self.iteration)).permutation(len(train))
        numbers = torch.as_tensor(order[: self.config.fitness.tasks], device=self.device)
        task = {name: value[train[numbers]] for name, value in self.task.items()}
        return self._evaluate(genomes, task, self.config.fitness.episodes, self.config.fitness.steps, "fitness")

    def _folds(self, generation: int) -> tuple[Tensor, Tensor]:
        """Return the indices of the training tasks that a generation uses, and of those it leaves out."""
        rows = torch.arange(self.config.tasks, device=self.device)
        if not (folds := self.config.validation.folds):
            return rows, rows[:0]
        out = rows % folds == generation // self.config.validation.every % folds
        return rows[~out], rows[out]

    def _choose(self, genomes: Tensor, fitness: Tensor) -> dict[str, float]:
        """Measure the champion, the search's best genome and the fittest on other tasks; the best becomes champion.

        It does so every ``validation.every`` generations.
        """
        config = self.config.validation
        if self.iteration > 1 and self.iteration % config.every:
            return {}
        if not config.candidates:
            self.champion = self.search.best()[None].clone()
            return {}
        fittest = fitness.argsort(descending=True, stable=True)[: config.candidates]
        candidates = torch.cat([self.champion, self.search.best()[None], genomes[fittest]])
        _, left_out = self._folds(self.iteration - 1)
        task = {name: value[left_out] for name, value in self.task.items()} if len(left_out) else self.held_out
        returns, _ = self._evaluate(candidates, task, config.episodes, None, "validation")
        scores = returns.mean(1)
        self.champion = candidates[scores.argmax()][None].clone()
        return {"validation/champion": float(scores.max()), "validation/candidates": float(scores[2:].mean())}

    def _evaluate(self, genomes: Tensor, task: Task, episodes: int, steps: int | None, name: str) -> tuple[Tensor, int]:
        """Run lifetimes, sharded over all processes; returns the returns ``[P, M]`` in float64 and the environment steps."""
        num = len(genomes)
        own = torch.arange(num, device=self.device)[self.processes.shard(num)]
        size = self.config.chunk or max(len(own), 1)
        results = torch.zeros(num, num_tasks(task) + 1, dtype=torch.float64, device=self.device)
        for rows in torch.split(own, size) if len(own) else ():
            if len(rows) * num_tasks(task) == 1:
                rows = rows.repeat(2)  # BLAS multiplies a single row by another path, with other rounding
            rng = torch_rng(self.seed, name, "life", str(self.iteration), device=self.device)
            life = self._begin(genomes[rows], task, rng)
            with CommonRandomNumbers(len(rows)):
                for _ in range(self.lifetime.steps):
                    life.learn()
            returns, lengths = self._measure(life, task, len(rows), episodes, steps, name)
            results[rows, :-1] = returns
            results[rows, -1] = (life.env_steps + lengths).reshape(len(rows), -1).sum(1).double()
        (results,) = self.processes.sum([results])
        return results[:, :-1], int(results[:, -1].sum())


Algo = Evolve
