"""Maximum-entropy inverse RL from scratch: what the demonstrations of a task tell by themselves, without other tasks.

Ziebart 2010 (causal entropy), with a network for the reward (Wulfmeier 2015, arXiv:1507.04888): fresh weights for each task,
steps of Adam on the likelihood of its demonstrations. There is nothing to train. It is the baseline of whatever learns across
tasks; its own optimiser is tuned: ``fit.steps`` and ``fit.lr``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from typing_extensions import override

from metarl_cli.adaptation.demonstrations import (
    FittingConfig,
    InferredPolicy,
    cost_of_demonstrations,
    cost_of_fitting,
    fit_from_scratch,
    imitate,
    load_inferred,
    table_of,
)
from metarl_cli.algos.reference import Reference
from metarl_cli.config.base import StrictModel
from metarl_cli.interfaces import Adapted, Budget, Context, Family, State, Task, num_tasks
from metarl_cli.networks.imitation import ModelConfig, build_model
from metarl_cli.seeding import numpy_rng


class Config(StrictModel):
    """The network, and how it is fitted."""

    model: ModelConfig
    fit: FittingConfig


class MaxEntIRL(Reference):
    """The fit to the demonstrations of each task alone.

    Args:
        config: see :class:`Config`.
        context: the family, the seed and the device.

    Raises:
        ValueError: if the family is no table of states that are observed.
    """

    adapts_by = "demonstrations"

    def __init__(self, config: Config, context: Context):
        self.config, self.family = config, table_of(context.family)
        self.task = self.family.sample_tasks(1, "train", numpy_rng(context.seed, "tasks", "train"))
        self.model = build_model(config.model, self.family.process(self.task))

    @override
    def cost_of_adapting(self, tasks: int, episodes: int) -> float:
        return cost_of_demonstrations(self.family, tasks, 1) + cost_of_fitting(self.model, self.family, tasks)

    def adapt(self, task: Task, budget: Budget, rng: torch.Generator, family: Family | None = None) -> Iterator[Adapted]:
        """Yield the policies of fresh weights, and of weights fitted to some numbers of demonstrations."""
        fit = fit_from_scratch(self.model, self.config.fit, self.family, num_tasks(task), rng)
        return imitate(fit, self.family, family, task, budget, rng)

    @override
    def load_policy(self, state: State, task: Task) -> InferredPolicy:
        return load_inferred(self.family, state, task)


Algo = MaxEntIRL
