"""DREAM by Q-learning: what explores and what acts are learned beside each other (Liu 2021, arXiv:2008.02790).

    oracle       Q(s, a | mu), of the numbers mu that describe the task                    as in oracle_dqn
    explorer     collects a support for what it reveals of mu, and an estimator reads it   see ``adaptation/explorer.py``
    new task     act greedily on Q(s, a | estimate after the support)

Where exploration is learned from the return that comes of it, the policy that uses what was explored must be good before
exploration can be, and the other way round. Here neither waits: the oracle learns with the truth, and the explorer is rewarded
for bringing the estimate nearer to it.

Differs from the paper: see ``adaptation/explorer.py``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import model_validator
from typing_extensions import override

from metarl_cli.adaptation.conditioning import ConditionedPolicy, knowledge_of
from metarl_cli.adaptation.explorer import Explorer, ExplorerConfig
from metarl_cli.adaptation.inference import infer
from metarl_cli.adaptation.support import RolloutsConfig
from metarl_cli.algos.conditioned import Conditioned, TrainingConfig
from metarl_cli.config.footprint import joined
from metarl_cli.interfaces import Adapted, Budget, Context, Family, Footprint, State, Task, Transitions, num_tasks


class Config(TrainingConfig):
    """An oracle, an explorer, and an estimator of what the oracle is given."""

    support: RolloutsConfig
    explorer: ExplorerConfig

    @model_validator(mode="after")
    def _check_support(self) -> Config:
        if self.support.epsilon == 1:
            raise ValueError("support.epsilon=1 makes all steps of a support random: the explorer needs less, such as 0")
        return self


class DREAM(Conditioned):
    """An oracle that acts on an estimate; see :class:`Conditioned` for the arguments and the errors raised."""

    adapts_by = "inference"
    gives_noise = False  # the explorer learns by the same learner
    saved = (*Conditioned.saved, "explorer")
    config: Config

    def __init__(self, config: Config, context: Context):
        super().__init__(config, context)
        self.trained_steps = config.explorer.supports
        self.explorer = Explorer(config.explorer, config.support, context)

    @override
    def known(self, task: Task, family: Family | None = None) -> torch.Tensor:
        return knowledge_of(family or self.family, task)

    @override
    @classmethod
    def cost_of_building(cls, config: TrainingConfig, context: Context) -> Footprint:
        assert isinstance(config, Config)
        networks = Explorer.cost_of_building(config.support, context, "algo.support")
        return joined(networks, *super().cost_of_building(config, context))

    @override
    def cost_of_training(self) -> Footprint:
        return joined(self.explorer.cost_of_training(), *super().cost_of_training())

    @override
    def cost_of_adapting(self, tasks: int, episodes: int) -> float:
        return super().cost_of_adapting(tasks, episodes) + self.explorer.cost_of_reading(tasks)

    @override
    def numbers_of_adapting(self) -> dict[str, int]:
        return self.config.support.sizes("algo.support")

    @override
    def train_step(self) -> dict[str, float]:
        metrics = self.explorer.train_step(self.iteration)
        self.env_steps += self.explorer.env_steps
        return metrics | super().train_step()

    def policy_after(self, task: Task, support: Transitions | None) -> ConditionedPolicy:
        """Return the policies in M tasks, given the estimates; without a support, the middle of what training tasks have."""
        belief = self.explorer.belief([] if support is None else [support], num_tasks(task))
        return self.policy(self.tested(), self.within(belief[:, : self.num_given()], extrapolate=False))

    @override
    def adapt(self, task: Task, budget: Budget, rng: torch.Generator, family: Family | None = None) -> Iterator[Adapted]:
        """Yield the policies before the first support and after each."""
        parts = (self.learner.actions, family or self.family, task, budget, self.config.support, rng)
        return infer(lambda support: self.policy_after(task, support), *parts, self.explorer.policy)

    @override
    def weights(self) -> State:
        return super().weights() | {"explorer": self.explorer.weights()}

    @override
    def load_weights(self, state: State) -> None:
        super().load_weights(state)
        self.explorer.load_weights(state["explorer"])


Algo = DREAM
