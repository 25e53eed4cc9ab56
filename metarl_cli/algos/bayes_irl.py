"""Bayesian inverse RL, exactly: what can be known from demonstrations where the rewards a task may have are few.

The prior is uniform over the rewards that the family lists (``candidates``), and the likelihood is the demonstrator's own:

    p(r | D) ∝ prod_t π_r(a_t | s_t, t)         the plan is for the mean reward, which no other plan exceeds in expectation

It is a bound: on a grid of sprites the kinds of the cells are taken as known, which a network has to learn from looks.
(Ramachandran and Amir 2007, ijcai.org/Proceedings/07/Papers/416.pdf, sample rewards; here all of them are enumerated.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from typing_extensions import override

from metarl_cli.adaptation.demonstrations import (
    Examples,
    InferredPolicy,
    Planned,
    blank_examples,
    cost_of_demonstrations,
    imitate,
    load_inferred,
    read,
    table_of,
)
from metarl_cli.algos.reference import Reference
from metarl_cli.config.base import StrictModel
from metarl_cli.config.footprint import META, peak, size_of
from metarl_cli.experience.demonstrations import demonstrate
from metarl_cli.interfaces import Adapted, Budget, Context, Family, State, Task
from metarl_cli.networks.imitation import Solution
from metarl_cli.seeding import numpy_rng


class Config(StrictModel):
    """Nothing: the prior and the likelihood are the family's."""


class BayesIRL(Reference):
    """The posterior over the rewards that a family lists, and the plan for its mean.

    Args:
        config: see :class:`Config`.
        context: the family, the seed and the device.

    Raises:
        ValueError: if the family is no table of states that are observed, or does not list the rewards a task may have.
    """

    adapts_by = "demonstrations"

    def __init__(self, config: Config, context: Context):
        self.config, self.family = config, table_of(context.family)
        self.task = self.family.sample_tasks(1, "train", numpy_rng(context.seed, "tasks", "train"))
        self.number = self.candidates(self.task).shape[1]

    def candidates(self, task: Task) -> Tensor:
        """Return the rewards of places ``[M, C, X]`` that are equally likely."""
        rewards = self.family.candidates(task)
        if rewards is None:
            raise ValueError("this family has no short list of the rewards a task may have (env=sprite_grid has)")
        return rewards

    @override
    def cost_of_adapting(self, tasks: int, episodes: int) -> float:
        process = blank_examples(self.family, self.number, 1).process
        rewards = torch.zeros(self.number, process.features.shape[1], device=META)
        listed = 3 * tasks * size_of(rewards)  # where they were shown, where they are used, and weighted by the posterior
        return cost_of_demonstrations(self.family, tasks, 1) + listed + peak(lambda: process.choices(rewards))

    def adapt(self, task: Task, budget: Budget, rng: torch.Generator, family: Family | None = None) -> Iterator[Adapted]:
        """Yield the plans for the mean reward of the prior, and of the posterior after some numbers of demonstrations."""
        given = budget.demonstrations or (demonstrate(self.family, task, budget.steps, rng) if budget.steps else None)
        likely = None if given is None else log_likelihoods(self.candidates(given.task), read(self.family, given))
        prior = torch.zeros_like(self.candidates(task)[..., 0])  # [M, C] all are equally likely

        def learn(examples: Examples | None) -> tuple[Callable[[Task], Solution], int]:
            known = prior if examples is None or likely is None else likely[..., : examples.state.shape[2]].sum(-1)
            posterior = known.softmax(-1)

            def solve(where: Task) -> Solution:
                mean = (posterior[..., None] * self.candidates(where)).sum(1)
                return Solution(self.family.process(where).plan(mean), mean)

            return solve, 0

        return imitate(Planned(self.family, learn), self.family, family, task, budget._replace(demonstrations=given), rng)

    @override
    def load_policy(self, state: State, task: Task) -> InferredPolicy:
        return load_inferred(self.family, state, task)


@torch.no_grad()
def log_likelihoods(candidates: Tensor, examples: Examples) -> Tensor:
    """Return the log-likelihood ``[M, C, N]`` of each demonstration under each reward of places ``[M, C, X]``.

    One task at a time, so that memory is bounded.
    """
    process, each_task = examples.process, list[Tensor]()
    for m, rewards in enumerate(candidates):
        one = process._replace(transition=process.transition[m].expand(len(rewards), -1, -1, -1))
        same = Examples(one, *(x[m].expand(len(rewards), -1, -1) for x in (examples.state, examples.action, examples.weight)))
        each_task.append(same.chosen(one.choices(rewards)).sum(1))
    return torch.stack(each_task)


Algo = BayesIRL
