"""No learning: the weights of the genome are the policy, the same for all tasks (neuroevolution)."""

from __future__ import annotations

import torch

from metarl_cli.config.base import StrictModel
from metarl_cli.interfaces import Family, Learner, Params, Task, Traits, device_of, num_tasks


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
        self.env_steps = torch.zeros(num_tasks(task), dtype=torch.long, device=device_of(task))

    def learn(self) -> None:
        """Stay as it is."""


Lifetime = Nothing
