"""ADRL: architecture and hyper-parameters evolve while the networks learn; the result is a readable schedule of settings.

    generation    each individual runs one adaptation step of its lifetime; all generations learn the same training tasks
    fitness       the return after that step; with ``fitness.gain``, less the return of the lineage's untrained first network
    search        selection, crossover and mutation of the settings
    inheritance   a child copies its parent's weights, optimiser state and progress; its network grows or shrinks
    champion      the settings along a lineage with which fresh learners do best on validation tasks

Learners of the same task may share their replay (``lifetime.shared``): SEARL (Franke 2021, arXiv:2009.01555). Inheritance of
weights is population-based training (Jaderberg 2017, arXiv:1711.09846), and so is the default search, ``algo/search=pbt``:
the population learns for some generations without selection, and each later generation replaces only its worst individuals.

Differs from SEARL: settings and architecture are genes, and crossover and mutation act on all of them together; SEARL mutates
one setting, the architecture or the weights at a time, chosen at random. Networks also shrink. The champion is chosen among
schedules of settings and not among trained networks.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import override

from metarl_cli.config.footprint import COPIES, factor
from metarl_cli.evolution.interfaces import LastingLife
from metarl_cli.evolution.lineage import draw_lineage, markdown
from metarl_cli.evolution.population import Evolution, EvolutionConfig, FitnessConfig
from metarl_cli.interfaces import Context, Diagnostics, Footprint, Holding, Params, State, num_tasks
from metarl_cli.progress import track
from metarl_cli.seeding import CommonRandomNumbers, torch_rng


class GainConfig(FitnessConfig):
    """Fitness as the return, or as its gain over the untrained network."""

    gain: bool = Field(
        description="subtract the return of the lineage's untrained first network (this has no effect unless the architecture "
        "varies: networks of one shape start from the same weights)"
    )


class Config(EvolutionConfig):
    """Evolution of settings during learning."""

    fitness: GainConfig

    @model_validator(mode="after")
    def _check_lifetime(self) -> Config:
        if not self.lifetime.module.Lifetime.inherits:
            raise ValueError("adrl needs an algo.lifetime that goes on in the next generation: dqn")
        return self


class ADRL(Evolution):
    """Evolution with one lifetime that lasts over all generations; see :class:`Evolution` for the errors raised."""

    config: Config

    def __init__(self, config: Config, context: Context):
        super().__init__(config, config.fitness.tasks, context)
        iterations, device = context.iterations, context.device
        if not self.search.descends:
            raise ValueError("adrl needs an algo.search whose individuals descend from one another: genetic, or random")
        if "init" in self.genome.decode(self.genome.start[None]):
            raise ValueError("algo.genome: initial weights mean nothing in adrl: children inherit their parents' weights")
        if self.lifetime.steps != iterations:
            raise ValueError(
                f"in adrl, a generation is one adaptation step: algo.lifetime.steps ({self.lifetime.steps}) must be "
                f"train.iterations ({iterations})"
            )
        self.lives: LastingLife | None = None
        self.untrained = torch.zeros(0, dtype=torch.float64, device=device)  # [P, M] of each lineage's first network, or 0
        self.line = self.genome.start[:0].reshape(0, 0, 0)  # [S, P, G] genomes of each individual's lineage

    @override
    def cost_of_training(self) -> Footprint:
        fitness, validation, population = self.config.fitness, self.config.validation, len(self.search.ask())
        numbers = self.numbers_of_adapting()
        lives = self.cost_of_lives(population, fitness.tasks, fitness.episodes)
        of_fitness = {"algo.fitness.tasks": fitness.tasks, "algo.fitness.episodes": fitness.episodes}
        key = factor(**numbers, **of_fitness, algo__search__population=population)
        held, passing = [Holding(key, lives)], [Holding(key, COPIES * lives)]
        if candidates := 2 * validation.candidates:
            each = self.cost_of_lives(candidates, validation.tasks, validation.episodes)
            of_validation = {"algo.validation.tasks": validation.tasks, "algo.validation.episodes": validation.episodes}
            passing.append(Holding(factor(**numbers, **of_validation, algo__validation__candidates=candidates), each))
        return Footprint(held, passing)

    # -- one generation

    def _live(self, genomes: Tensor) -> tuple[Tensor, int]:
        """Run one adaptation step of every individual; returns the returns ``[P, M]`` and the environment steps spent."""
        parents, spent = self.search.parents, 0
        if self.lives is None:
            self.lives, self.line = self._begin_lives(genomes), genomes[None].clone()
            self.untrained = self.untrained.new_zeros(len(genomes), 1)
            if self.config.fitness.gain:
                self.untrained, spent = self._measure_lives("untrained")
        else:
            self._inherit(self.lives, genomes, parents)
            self.line = torch.cat([self.line[:, parents], genomes[None]])
            self.untrained = self.untrained[parents]
        before = int(self.lives.env_steps.sum())
        with CommonRandomNumbers(len(genomes)):
            self.lives.learn()
        returns, steps = self._measure_lives("fitness")
        return returns, int(self.lives.env_steps.sum()) - before + steps + spent

    def _measure_lives(self, name: str) -> tuple[Tensor, int]:
        """Measure the current returns ``[P, M]`` of the learners; returns the environment steps spent too."""
        assert self.lives is not None
        config, copies = self.config.fitness, self.line.shape[1]
        returns, lengths = self._measure(self.lives, self.task, copies, config.episodes, config.steps, name)
        return returns, int(lengths.sum())

    @override
    def _score(self, returns: Tensor) -> Tensor:
        return returns - self.untrained

    def _begin_lives(self, genomes: Tensor) -> LastingLife:
        """Begin the lifetimes of a population."""
        rng = torch_rng(self.seed, "lives", device=self.device)
        life: LastingLife = self._begin(genomes, self.task, rng, copies=len(genomes))
        return life

    def _inherit(self, life: LastingLife, genomes: Tensor, parents: Tensor) -> None:
        """Copy the learners of the ``parents [P]``, and give each copy the traits of its own genome ``[P, G]``."""
        num = life.rows // len(genomes)
        rows = (parents[:, None] * num + torch.arange(num, device=self.device)).flatten()
        traits = self._express(genomes, num)
        structure: Params = traits.pop("structure", {})
        life.inherit(rows, traits, structure)

    def _choose(self, genomes: Tensor, fitness: Tensor) -> dict[str, float]:
        """Choose the champion: the fittest individual's lineage, or the candidate that is best on validation tasks.

        Candidates are tried every ``validation.every`` generations and at the end of the run. Fresh learners follow the
        schedule of each candidate; its score is their mean return over the last quarter of the lifetime.
        """
        config = self.config.validation
        self.champion = self.line[:, fitness.argmax()].clone()
        if not config.candidates or (self.iteration % config.every and self.iteration < self.lifetime.steps):
            return {}
        schedules = self._schedules(fitness.argsort(descending=True, stable=True))
        copies = schedules.shape[1]
        life: LastingLife = self._begin(
            schedules[0], self.held_out, torch_rng(self.seed, "validation", "life", device=self.device)
        )
        measured, last_quarter = [], len(schedules) * 3 // 4  # an average, because the return of a DQN fluctuates
        learning = f"{copies} candidates learn {num_tasks(self.held_out)} validation tasks, step"
        for step in track(range(1, len(schedules) + 1), len(schedules), learning):
            with CommonRandomNumbers(copies):
                self._learn(life, step, schedules)
            if step > last_quarter:
                measured.append(self._measure(life, self.held_out, copies, config.episodes, None, "validation")[0])
        scores = torch.stack(measured).mean((0, 2))  # [2 C]
        self.champion = schedules[:, scores.argmax()].clone()
        return {"validation/champion": float(scores.max()), "validation/candidates": float(scores.mean())}

    def _schedules(self, order: Tensor) -> Tensor:
        """Return up to 2 C distinct candidates ``[S, 2 C, G]`` from a population in the ``order [P]`` of its fitness.

        Half are the lineages of the C fittest individuals. The other half hold the settings at C moments of the fittest
        lineage constant: selection favours the settings that are best for the next step, which need not be the best from
        the first step on. Duplicates are replaced by lineages of further individuals.
        """
        num, lines = self.config.validation.candidates, self.line[:, order]
        moments = torch.linspace(len(lines) - 1, 0, num, device=self.device).round().long()
        held = lines[moments, 0].expand(len(lines), -1, -1)
        candidates: list[Tensor] = []
        for schedule in torch.cat([lines[:, :num], held, lines[:, num:]], 1).unbind(1):
            if len(candidates) < 2 * num and not any(torch.equal(schedule, other) for other in candidates):
                candidates.append(schedule)
        return torch.stack(candidates, 1)

    def _learn(self, life: LastingLife, step: int, schedules: Tensor | None) -> None:
        """Learn with the settings of this step; the last ones stay in force after the end of the schedules."""
        if schedules is not None and 1 < step <= len(schedules):
            self._inherit(life, schedules[step - 1], torch.arange(schedules.shape[1], device=self.device))
        life.learn()

    # -- diagnostics and saving

    @override
    def drop_replay(self) -> None:
        self.lives = None  # they end with the run: its length is theirs

    def diagnostics(self) -> Diagnostics:
        """Return the population's diagnostics, the champion's schedule and a figure of the lineages."""
        diagnostics = super().diagnostics()
        if len(self.line) < 2:
            return diagnostics
        champion = self.genome.describe(self.champion)  # [S]
        rows = [[str(i), *(f"{float(v[i]):.4g}" for v in champion.values())] for i in range(len(self.champion))]
        settings = self.genome.describe(self.line.flatten(0, 1))
        lines = {name: values.reshape(self.line.shape[:2]) for name, values in settings.items()}
        return diagnostics._replace(
            texts=diagnostics.texts | {"genome/schedule": markdown(["step", *champion], rows)},
            figures={"genome/lineage": draw_lineage(lines, champion)},
        )

    @override
    def state_dict(self) -> State:
        lives = None if self.lives is None else self.lives.state_dict()
        return super().state_dict() | {"lives": lives, "line": self.line, "untrained": self.untrained}

    @override
    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.line, self.untrained = state["line"].to(self.device), state["untrained"].to(self.device)
        if state["lives"] is not None:
            self.lives = self._begin_lives(self.search.ask())
            self.lives.load_state_dict(state["lives"])


Algo = ADRL
