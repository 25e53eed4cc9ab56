"""No learning at all: an individual is what it was born as. Neuroevolution of a policy for all tasks."""

from __future__ import annotations

import torch

from metarl_cli.config.base import StrictModel
from metarl_cli.interfaces import Family, Learner, Params, Task, Traits


class Config(StrictModel):
    """Nothing to choose."""


class Nothing:
    """A life without experience."""

    steps = 0
    traits: frozenset[str] = frozenset()

    def __init__(self, config: Config, learner: Learner, family: Family, device: torch.device):
        self.default: Traits = {}

    def begin(self, params: Params, traits: Traits, task: Task, rng: torch.Generator) -> Life:
        return Life(params, task)


class Life:
    """Weights that stay."""

    gradient_steps = 0

    def __init__(self, params: Params, task: Task):
        self.params = params
        like = next(iter(task.values()))
        self.env_steps = torch.zeros(len(like), dtype=torch.long, device=like.device)

    def grow(self) -> None:
        pass


Lifetime = Nothing
