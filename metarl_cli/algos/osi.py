"""Universal policy with online system identification (Yu 2017, arXiv:1702.02453), by Q-learning.

    oracle       Q(s, a | mu), of the numbers mu that describe the task                as in oracle_dqn
    estimator    min over psi of  mean |mu - f_psi(support)|²             each support is of a fresh task
    new task     act greedily on Q(s, a | f_psi(support))

The estimator is trained beside the oracle, on the supports of tasks that are drawn anew in every iteration.

Differs from the paper: the estimator reads a support of several episodes, as the other algorithms here do, and not the last
steps of the episode that goes on; the policy learns by DQN. The supports are collected at random and not by the policy.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from metarl_cli.adaptation.conditioning import ConditionedPolicy, knowledge_of
from metarl_cli.adaptation.inference import EncoderConfig, SupportEncoder, infer
from metarl_cli.adaptation.learning import Learning
from metarl_cli.adaptation.support import RolloutsConfig, collect_rollouts
from metarl_cli.adaptation.vectors import Vectors
from metarl_cli.algos.conditioned import Conditioned, TrainingConfig
from metarl_cli.config.footprint import factor, peak, size_of, without_content
from metarl_cli.experience.schedules import cosine
from metarl_cli.interfaces import (
    Adapted,
    Budget,
    Context,
    Family,
    Footprint,
    Holding,
    Params,
    State,
    Task,
    Transitions,
    num_tasks,
)
from metarl_cli.networks.compiling import compiled
from metarl_cli.networks.optimizers import backward
from metarl_cli.networks.stacked import detached, load_params
from metarl_cli.networks.target import follow
from metarl_cli.progress import timed
from metarl_cli.seeding import numpy_rng


class EstimatorConfig(EncoderConfig):
    """The estimator and its training."""

    tasks: int = Field(gt=0, description="fresh tasks of an iteration, each with a support")
    updates: int = Field(gt=0, description="gradient updates per iteration, each on an equal part of these tasks")
    lr: float = Field(gt=0, description="Adam's learning rate; it falls as that of the oracle")


class Config(TrainingConfig):
    """An oracle, and an estimator of what it is given."""

    extrapolate: bool = Field(
        description="whether tasks beyond the range of the training tasks are given as they are, or as the nearest within it"
    )
    support: RolloutsConfig
    estimator: EstimatorConfig


class OSI(Conditioned):
    """An oracle that acts on an estimate of the task; see :class:`Conditioned` for the arguments and the errors raised."""

    adapts_by = "inference"
    saved = (*Conditioned.saved, "regression")
    streams = (*Conditioned.streams, "estimator", "support")
    config: Config

    def __init__(self, config: Config, context: Context):
        super().__init__(config, context)
        self.encoder = SupportEncoder(config.estimator, self.family.spec, self.num_given())
        self.estimator = {name: value.requires_grad_() for name, value in self.encoder.init(self.rng["estimator"]).items()}
        self.slow_estimator = {name: value.detach().clone() for name, value in self.estimator.items()}
        self.measured = self.encoder.start(self.device)
        self.regression = torch.optim.Adam(list(self.estimator.values()), lr=config.estimator.lr, fused=True)
        self.fit = compiled(self._fit, "the gradient of the estimator", context.compile)

    @override
    def known(self, task: Task, family: Family | None = None) -> Tensor:
        return knowledge_of(family or self.family, task)

    @override
    def cost_of_training(self) -> Footprint:
        estimator, support, cost = self.config.estimator, self.config.support, super().cost_of_training()
        part = -(-estimator.tasks // estimator.updates)
        params, vectors = without_content(self.estimator), self.encoder.blank(part, support)
        known = torch.zeros(part, self.num_given(), device=vectors.weight.device)
        fitting = peak(lambda: self._fit(params, vectors, known))
        collected = 2 * estimator.tasks * support.rollouts * support.steps * self.family.spec.bytes_per_transition
        return Footprint(
            [*cost.held, Holding("algo.estimator.hidden", 3 * size_of(self.estimator))],
            [*cost.passing, Holding(factor(algo__estimator__tasks=estimator.tasks), collected + fitting)],
        )

    @override
    def cost_of_adapting(self, tasks: int, episodes: int) -> float:
        params, vectors = without_content(self.slow_estimator), self.encoder.blank(tasks, self.config.support)
        reading = peak(lambda: self.encoder.estimate(params, vectors))
        return super().cost_of_adapting(tasks, episodes) + 4 * size_of(tuple(vectors)) + reading

    @override
    def numbers_of_adapting(self) -> dict[str, int]:
        return self.config.support.sizes("algo.support")

    @override
    def train_step(self) -> dict[str, float]:
        metrics = super().train_step()
        return metrics | self._estimate()

    @timed("estimator")
    def _estimate(self) -> dict[str, float]:
        """Train the estimator on the supports of fresh tasks."""
        config, estimator = self.config, self.config.estimator
        task = self.family.sample_tasks(
            estimator.tasks, "train", numpy_rng(self.context.seed, "tasks", "estimator", str(self.iteration))
        )
        known, policy = self.known(task), self.policy(self.tested(), self.known(task))
        support = collect_rollouts(policy, self.learner.actions, self.family, task, config.support, self.rng["support"])
        self.env_steps += int(support.weight.sum())
        if self.iteration == 1:  # the first
            self.measured = self.encoder.measure(support)
        share = cosine(config.final_lr, (self.iteration - 1) / self.context.iterations)
        self.regression.param_groups[0]["lr"] = estimator.lr * share
        losses = []
        vectors = self.encoder.read(self.measured, support)
        for entries, weight, true in zip(*(x.tensor_split(estimator.updates) for x in (*vectors, known)), strict=True):
            loss, gradients = self.fit(self.estimator, Vectors(entries, weight), true)
            for weight, gradient in zip(self.estimator.values(), gradients, strict=True):
                weight.grad = gradient
            self.regression.step()
            follow(self.slow_estimator, self.estimator, config.polyak)
            losses.append(loss.detach())
        return {"loss/estimate": float(torch.stack(losses).mean())}

    def _fit(self, params: Params, vectors: Vectors, known: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the mean squared error of the estimate, and its gradient in the estimator's weights."""
        loss = (self.encoder.estimate(params, vectors) - known).square().mean()
        return loss, backward(loss, list(params.values()))

    def policy_after(self, task: Task, support: Transitions | None) -> ConditionedPolicy:
        """Return the policies in M tasks of which the network is given the estimates; without a support, the middle."""
        params = self.slow_estimator if self.config.use_average else detached(self.estimator)
        if support is None:
            given = torch.zeros(num_tasks(task), self.num_given(), device=self.device)
        else:
            given = self.encoder.estimate(params, self.encoder.read(self.measured, support))
        return self.policy(self.tested(), self.within(given, self.config.extrapolate))

    def learning(self) -> Learning | None:
        """Return the estimate as a function of a support."""
        params = self.slow_estimator if self.config.use_average else detached(self.estimator)

        def read(support: Transitions) -> Tensor:
            estimate = self.encoder.estimate(params, self.encoder.read(self.measured, support))
            return self.within(estimate, self.config.extrapolate)

        return self.inferring(self.config.support, read)

    @override
    def adapt(self, task: Task, budget: Budget, rng: torch.Generator, family: Family | None = None) -> Iterator[Adapted]:
        """Yield the policies before the first support and after each."""
        parts = (self.learner.actions, family or self.family, task, budget, self.config.support, rng)
        return infer(lambda support: self.policy_after(task, support), *parts)

    @override
    def weights(self) -> State:
        estimator = {"estimator": detached(self.estimator), "slow_estimator": self.slow_estimator, "measured": self.measured}
        return super().weights() | estimator

    @override
    def load_weights(self, state: State) -> None:
        super().load_weights(state)
        load_params(self.estimator, state["estimator"])
        load_params(self.slow_estimator, state["slow_estimator"])
        load_params(self.measured, state["measured"])


Algo = OSI
