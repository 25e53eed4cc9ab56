"""The lifetime without learning: the weights of the genome are the policy, on all tasks (neuroevolution)."""

from __future__ import annotations

import torch

from metarl_cli.config.base import StrictModel
from metarl_cli.config.footprint import size_of
from metarl_cli.evolution.interfaces import Cost, Traits
from metarl_cli.interfaces import Family, Learner, Params, Task, device_of, num_tasks


class Config(StrictModel):
    """The empty configuration."""


class NoLearning:
    """The lifetime without learning."""

    steps = 0
    inherits = False
    traits: frozenset[str] = frozenset()

    def __init__(self, config: Config, learner: Learner, family: Family, device: torch.device):
        self.default: Traits = {}

    def without_genome(self) -> NoLearning:
        """Return itself: there are no steps."""
        return self

    def cost(self, params: Params, copies: int) -> Cost:
        """Return the memory of the weights."""
        return Cost(size_of(params), 0.0)

    def sizes(self, key: str) -> dict[str, int]:
        """Return nothing: the configuration is empty."""
        return {}

    def at(self, family: Family, episodes: int | None) -> NoLearning:
        """Return itself: nothing is collected."""
        return self

    def begin(self, params: Params, traits: Traits, task: Task, rng: torch.Generator) -> Life:
        """Return the lifetimes of these weights on the tasks ``[R]``."""
        return Life(params, task)


class Life:
    """Learners with constant weights."""

    gradient_steps = 0

    def __init__(self, params: Params, task: Task):
        self.params = params
        self.env_steps = torch.zeros(num_tasks(task), dtype=torch.long, device=device_of(task))

    def learn(self) -> None:
        """Do nothing."""


Lifetime = NoLearning
