"""ADRL: architecture and hyper-parameters that evolve while the networks learn; what comes out is a schedule one can read.

    generation    each individual lives through one adaptation step of its lifetime, on the same training tasks throughout
    fitness       the return after it; with ``fitness.gain`` less that of the network its line of descent began with
    search        selection, crossover and mutation of the settings
    inheritance   a child goes on from its parent's weights, optimiser, and place in its lifetime; its network grows or shrinks
    champion      the settings along the line of descent by which fresh learners do best on validation tasks

Learners of the same task may share their replay (``lifetime.shared``): SEARL (Franke 2021, arXiv:2009.01555). Inheritance of
weights is population-based training (Jaderberg 2017, arXiv:1711.09846), and so is ``algo/search=pbt``, the search it comes
with: all learn for a while, and then most go on as they are.

Differs from SEARL: settings and architecture are genes that cross and mutate together, where SEARL changes one of them at a
time, or the weights, at random; networks also shrink; the champion is chosen among settings and not among trained networks.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor

from metarl_cli.evolution.lifetimes.dqn import DQNLife, Life
from metarl_cli.evolution.lineage import draw_lineage, markdown
from metarl_cli.evolution.population import Evolution, EvolutionConfig, FitnessConfig
from metarl_cli.interfaces import Context, Diagnostics, Params, State, num_tasks
from metarl_cli.progress import track
from metarl_cli.seeding import CommonRandomNumbers, torch_rng


class GainConfig(FitnessConfig):
    """Returns, or what learning has made of them."""

    gain: bool = Field(
        description="take off the return that the first network of a line of descent had before it learned anything "
        "(networks of one shape are born alike: without an architecture that varies it changes nothing)"
    )


class Config(EvolutionConfig):
    """Evolution of what learns, while it learns."""

    fitness: GainConfig

    @model_validator(mode="after")
    def _goes_on(self) -> Config:
        if self.lifetime.name != "dqn":
            raise ValueError("adrl needs lifetime.module=dqn: other lifetimes do not go on")
        return self


class ADRL(Evolution):
    """A search over genomes with one lifetime for all generations; see :class:`Evolution`."""

    config: Config
    lifetime: DQNLife

    def __init__(self, config: Config, context: Context):
        super().__init__(config, config.fitness.tasks, context)
        iterations, device = context.iterations, context.device
        if not self.search.descends:
            raise ValueError("adrl needs an algo.search whose individuals descend from one another: genetic, or random")
        if "init" in self.genome.decode(self.genome.start[None]):
            raise ValueError("algo.genome: initial weights mean nothing in adrl: children have their parents'")
        if self.lifetime.steps != iterations:
            raise ValueError(
                f"in adrl, a generation is one adaptation step: algo.lifetime.steps ({self.lifetime.steps}) must be "
                f"train.iterations ({iterations})"
            )
        self.lives: Life | None = None
        self.untrained = torch.zeros(0, dtype=torch.float64, device=device)  # [P, M] returns at a line's birth, or zeros
        self.line = self.genome.start[:0].reshape(0, 0, 0)  # [S, P, G] each individual's line of descent

    # -- one generation

    def _live(self, genomes: Tensor) -> tuple[Tensor, int]:
        """One adaptation step of every individual's life."""
        parents, spent = self.search.parents, 0
        if self.lives is None:
            self.lives, self.line = self._born(genomes), genomes[None].clone()
            self.untrained = self.untrained.new_zeros(len(genomes), 1)
            if self.config.fitness.gain:
                self.untrained, spent = self._test("untrained")
        else:
            self._inherit(self.lives, genomes, parents)
            self.line = torch.cat([self.line[:, parents], genomes[None]])
            self.untrained = self.untrained[parents]
        before = int(self.lives.env_steps.sum())
        with CommonRandomNumbers(len(genomes)):
            self.lives.learn()
        returns, steps = self._test("fitness")
        return returns, int(self.lives.env_steps.sum()) - before + steps + spent

    def _test(self, name: str) -> tuple[Tensor, int]:
        """Returns ``[P, M]`` of the learners as they are now, and the environment steps it took to see."""
        assert self.lives is not None
        config, copies = self.config.fitness, self.line.shape[1]
        returns, lengths = self._measure(self.lives, self.task, copies, config.episodes, config.steps, name)
        return returns, int(lengths.sum())

    def _judged(self, returns: Tensor) -> Tensor:
        return returns - self.untrained

    def _born(self, genomes: Tensor) -> Life:
        """The lives of a population at their beginning."""
        rng = torch_rng(self.seed, "lives", device=self.device)
        life: Life = self._begin(genomes, self.task, rng, copies=len(genomes))
        return life

    def _inherit(self, life: Life, genomes: Tensor, parents: Tensor) -> None:
        """Individuals go on as their ``parents [P]`` were, with what their own genomes ``[P, G]`` say."""
        num = life.rows // len(genomes)
        rows = (parents[:, None] * num + torch.arange(num, device=self.device)).flatten()
        traits = self._express(genomes, num)
        structure: Params = traits.pop("structure", {})
        life.inherit(rows, traits, structure)

    def _choose(self, genomes: Tensor, fitness: Tensor) -> dict[str, float]:
        """The fittest one's line of descent is champion; now and then, and at last, what is best on validation tasks is.

        Fresh learners live by each candidate there. What counts is their mean return over the last quarter of the lifetime,
        for a DQN's return goes up and down.
        """
        config = self.config.validation
        self.champion = self.line[:, fitness.argmax()].clone()
        if not config.candidates or (self.iteration % config.every and self.iteration < self.lifetime.steps):
            return {}
        schedules = self._schedules(fitness.argsort(descending=True, stable=True))
        copies = schedules.shape[1]
        life: Life = self._begin(schedules[0], self.held_out, torch_rng(self.seed, "validation", "life", device=self.device))
        measured = []
        learning = f"{copies} candidates learn {num_tasks(self.held_out)} validation tasks, step"
        for step in track(range(1, len(schedules) + 1), len(schedules), learning):
            with CommonRandomNumbers(copies):
                self._learn(life, step, schedules)
            if step > len(schedules) * 3 // 4:
                measured.append(self._measure(life, self.held_out, copies, config.episodes, None, "validation")[0])
        found = torch.stack(measured).mean((0, 2))
        self.champion = schedules[:, found.argmax()].clone()
        return {"validation/champion": float(found.max()), "validation/candidates": float(found.mean())}

    def _schedules(self, order: Tensor) -> Tensor:
        """Up to 2 C candidates ``[S, 2 C, G]`` from a population in the ``order [P]`` of its fitness, no two the same genes.

        The lines of descent of the C fittest, and the settings at C moments of the fittest one's line, held for a lifetime:
        selection breeds what is best next, which need not be best from the first step on. Where the line never changed,
        more of the fittest take their place.
        """
        num, lines = self.config.validation.candidates, self.line[:, order]
        moments = torch.linspace(len(lines) - 1, 0, num, device=self.device).round().long()
        held = lines[moments, 0].expand(len(lines), -1, -1)
        found: list[Tensor] = []
        for schedule in torch.cat([lines[:, :num], held, lines[:, num:]], 1).unbind(1):
            if len(found) < 2 * num and not any(torch.equal(schedule, other) for other in found):
                found.append(schedule)
        return torch.stack(found, 1)

    def _learn(self, life: Life, step: int, schedules: Tensor | None) -> None:
        """Settings change from step to step; beyond the end of the schedules they stay."""
        if schedules is not None and 1 < step <= len(schedules):
            self._inherit(life, schedules[step - 1], torch.arange(schedules.shape[1], device=self.device))
        life.learn()

    # -- looking and saving

    def diagnostics(self) -> Diagnostics:
        """Return the champion's schedule too, and the lineage of the settings of the population."""
        diagnostics = super().diagnostics()
        if len(self.line) < 2:
            return diagnostics
        champion = self.genome.describe(self.champion)  # [S]
        rows = [[str(i), *(f"{float(v[i]):.4g}" for v in champion.values())] for i in range(len(self.champion))]
        every = self.genome.describe(self.line.flatten(0, 1))
        lines = {name: values.reshape(self.line.shape[:2]) for name, values in every.items()}
        return diagnostics._replace(
            texts=diagnostics.texts | {"genome/schedule": markdown(["step", *champion], rows)},
            figures={"genome/lineage": draw_lineage(lines, champion)},
        )

    def state_dict(self) -> State:
        lives = None if self.lives is None else self.lives.state_dict()
        return super().state_dict() | {"lives": lives, "line": self.line, "untrained": self.untrained}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.line, self.untrained = state["line"].to(self.device), state["untrained"].to(self.device)
        if state["lives"] is not None:
            self.lives = self._born(self.search.ask())
            self.lives.load_state_dict(state["lives"])


Algo = ADRL
