"""The evolutionary meta-optimiser: a population of learners, judged by what they have learned at the end of their lifetimes.

    generation    genomes g_1 ... g_P from the search
    express       what each says: initial weights, learning rates, hyper-parameters, architecture, optimiser
    lifetime      each learns each of M training tasks: P x M learners, rows of one tensor
    fitness       the return after the lifetime, mean over the tasks; the same tasks and random numbers for all
    search        moves on: selection, crossover and mutation; or up the estimated gradient
    validation    the fittest are measured on tasks that no fitness has seen; the best of those is what is used on new tasks

What varies (``genomes/``), how it learns (``lifetimes/``) and how the population moves (``searches/``) are groups of the
configuration:

| algorithm | values | paper |
|---|---|---|
| evo_dqn | lifetime.module=gradient, search.module=genetic | ES-MAML's problem, Song 2020, arXiv:1910.01215 |
| es_dqn | lifetime.module=gradient, search.module=openai_es | ES-MAML, Song 2020, arXiv:1910.01215 |
| learned_optimizer | genome.optimizer.module=optimizer | in the spirit of Metz 2020, arXiv:2009.11243 |
| evo_hyper | genome.hyper.module=hyper | - |

In ``algos/adrl.py`` the population evolves while it learns.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor

from metarl_cli.config.base import Operational
from metarl_cli.evolution.population import Evolution, EvolutionConfig, ValidationConfig
from metarl_cli.interfaces import Context, Task, num_tasks
from metarl_cli.processes import Processes
from metarl_cli.seeding import CommonRandomNumbers, numpy_rng, torch_rng


class FoldsConfig(ValidationConfig):
    """Validation tasks, or folds of the training tasks."""

    folds: int = Field(ge=0, description="k: try on the k-th of the training tasks left out of this generation; 0: no folds")


class Config(EvolutionConfig):
    """Evolution of what learns, each generation from its beginning."""

    tasks: int = Field(gt=0, description="training tasks, drawn once")
    validation: FoldsConfig
    chunk: Annotated[int | None, Operational()] = Field(
        gt=0, description="individuals evaluated at once, to bound memory; none: all"
    )

    @model_validator(mode="after")
    def _enough_tasks(self) -> Config:
        folds = self.validation.folds
        if folds == 1 or folds > self.tasks:
            raise ValueError(f"validation.folds ({folds}) must be 0, or from 2 to the number of tasks ({self.tasks})")
        left = self.tasks - (-(-self.tasks // folds) if folds else 0)
        if self.fitness.tasks > left:
            raise ValueError(f"fitness.tasks ({self.fitness.tasks}) must not be above the training tasks it has ({left})")
        return self


class Evolve(Evolution):
    """A search over genomes whose lifetimes begin anew with each generation; see :class:`Evolution`."""

    config: Config

    distributed = True

    def __init__(self, config: Config, context: Context):
        super().__init__(config, config.tasks, context)
        self.processes = Processes()

    def _live(self, genomes: Tensor) -> tuple[Tensor, int]:
        train, _ = self._folds(self.iteration)
        order = numpy_rng(self.seed, "generation", str(self.iteration)).permutation(len(train))
        numbers = torch.as_tensor(order[: self.config.fitness.tasks], device=self.device)
        task = {name: value[train[numbers]] for name, value in self.task.items()}
        return self._evaluate(genomes, task, self.config.fitness.episodes, self.config.fitness.steps, "fitness")

    def _folds(self, generation: int) -> tuple[Tensor, Tensor]:
        """The numbers of the training tasks that a generation may meet, and of those it leaves out."""
        rows = torch.arange(self.config.tasks, device=self.device)
        if not (folds := self.config.validation.folds):
            return rows, rows[:0]
        out = rows % folds == generation // self.config.validation.every % folds
        return rows[~out], rows[out]

    def _choose(self, genomes: Tensor, fitness: Tensor) -> dict[str, float]:
        """Now and then, measure the fittest, the search's own best and the champion on other tasks: the best is champion."""
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
        found = returns.mean(1)
        self.champion = candidates[found.argmax()][None].clone()
        return {"validation/champion": float(found.max()), "validation/candidates": float(found[2:].mean())}

    def _evaluate(self, genomes: Tensor, task: Task, episodes: int, steps: int | None, name: str) -> tuple[Tensor, int]:
        """Returns ``[P, M]`` after the lifetime, in float64, and the environment steps spent; by all processes together."""
        num, own = len(genomes), self.processes.shard(len(genomes))
        size = self.config.chunk or max(len(own), 1)
        found = torch.zeros(num, num_tasks(task) + 1, dtype=torch.float64, device=self.device)
        for rows in torch.split(own.to(self.device), size) if len(own) else ():
            if len(rows) * num_tasks(task) == 1:
                rows = rows.repeat(2)  # products of a single row take another path in BLAS, to other bits
            rng = torch_rng(self.seed, name, "life", str(self.iteration), device=self.device)
            life = self._begin(genomes[rows], task, rng)
            with CommonRandomNumbers(len(rows)):
                for _ in range(self.lifetime.steps):
                    life.learn()
            returns, lengths = self._measure(life, task, len(rows), episodes, steps, name)
            found[rows, :-1] = returns
            found[rows, -1] = (life.env_steps + lengths).reshape(len(rows), -1).sum(1).double()
        found = self.processes.sum(found)
        return found[:, :-1], int(found[:, -1].sum())


Algo = Evolve
