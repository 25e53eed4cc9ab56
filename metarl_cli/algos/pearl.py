"""PEARL: an encoder of supports and a learner that is given what it writes, trained together (Rakelly 2019, arXiv:1903.08254).

    posterior    q(z | support) = N(0, I) prod_n N(mu(x_n), sigma(x_n)²)
    loss         L(. | z) + beta KL(q(z | support) || N(0, I)),   z ~ q(z | support)
    new task     act on the mean of q(z | support), and collect supports on samples of it

The learner's loss L is that of a soft actor-critic, as in the paper (``pearl``), or of Q-learning (``pearl_dqn``). Its values
teach the encoder; the information bottleneck (beta) keeps in z what they need. In training each task acts on a sample of its
posterior, drawn at the start of the iteration, and so does a support with ``support.epsilon`` below 1 (posterior sampling).
With ``supports`` above 1 the first is collected by the prior, the next by the posterior after it, as in a test. An update reads
the first few of them, so that posteriors of all widths are trained.

Differs from the paper: the prior is a factor of the posterior; the supports of all tasks are collected anew in each iteration;
the bottleneck is a mean over the tasks of an update, not a sum. Tests act on the posterior's mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import override

from metarl_cli.adaptation.conditioning import ConditionedPolicy
from metarl_cli.adaptation.inference import EncoderConfig, PosteriorEncoder, divergence, infer
from metarl_cli.adaptation.learning import Learning
from metarl_cli.adaptation.support import RolloutsConfig, collect_rollouts, merged, played
from metarl_cli.adaptation.vectors import Vectors
from metarl_cli.algos.conditioned import Conditioned, TrainingConfig
from metarl_cli.config.footprint import peak, size_of, without_content
from metarl_cli.interfaces import (
    Adapted,
    Budget,
    Context,
    Family,
    Footprint,
    Holding,
    Params,
    Policy,
    State,
    Task,
    Transitions,
    num_tasks,
)
from metarl_cli.networks.stacked import detached, load_params


class LatentConfig(EncoderConfig):
    """The latent variable and its encoder."""

    size: int = Field(gt=0, description="entries of the latent variable")
    beta: float = Field(ge=0, description="weight of the divergence from the prior [loss per nat]")
    batch: int | None = Field(
        gt=0, description="transitions drawn in an update for a task's posterior, which stand for all that it is of; none: all"
    )


class Config(TrainingConfig):
    """A learner that is given a latent variable, inferred from the support."""

    support: RolloutsConfig
    supports: int = Field(1, gt=0, description="supports of an iteration, each by the posterior after those before")
    replay_support: bool = Field(description="whether the replay keeps the supports, too")
    latent: LatentConfig

    @model_validator(mode="after")
    def _check_support(self) -> Config:
        if self.replay_support and self.supports * self.support.rollouts * self.support.steps > self.capacity:
            raise ValueError("capacity must hold at least the supports x support.rollouts x support.steps of one iteration")
        return self


class PEARL(Conditioned):
    """A learner with a posterior over the task; see :class:`Conditioned` for the arguments and the errors raised."""

    adapts_by = "inference"
    streams = (*Conditioned.streams, "support", "latent")
    config: Config

    def __init__(self, config: Config, context: Context):
        self.encoder = PosteriorEncoder(config.latent, context.family.spec, config.latent.size)
        self.measured = self.encoder.start(context.device)
        super().__init__(config, context)
        self.supports: Vectors | None = None  # of the training tasks in this iteration

    @override
    def num_given(self) -> int:
        return self.config.latent.size

    @override
    def init(self, rng: torch.Generator) -> Params:
        return super().init(rng) | self.encoder.init(rng)

    @override
    def prepare(self) -> Policy:
        config, params, seen = self.config, detached(self.params), list[Transitions]()
        policy = self.policy_after(params, self.task, None)
        for _ in range(config.supports):
            rng = self.rng["support"]
            seen.append(collect_rollouts(policy, self.learner.actions, self.family, self.task, config.support, rng))
            if len(seen) == 1 and (self.iteration == 0 or config.support.epsilon < 1):  # random behaviour stays the same
                before = self.measured if self.iteration else None
                self.measured = self.encoder.measure(seen[0], before, 1 / (self.iteration + 1))
            policy = self.policy_after(params, self.task, merged(seen))
        support = merged(seen)
        self.env_steps += int(support.weight.sum())
        self.supports = self.encoder.read(self.measured, support)
        if config.replay_support:
            start = self.history.start((config.tasks, config.supports * config.support.rollouts), self.device)
            self.replay.add(played(self.history.along(start, support)[0]))
        return policy

    @override
    def sources(self, rows: Tensor, own: slice) -> Any:
        assert self.supports is not None
        rng, batch, num = self.rng["latent"], self.config.latent.batch, self.config.supports
        noise = torch.randn(len(rows), self.num_given(), generator=rng, device=self.device)
        entries, weight = self.supports.entries, self.supports.weight[rows]
        if num > 1:  # the first few supports, which lie side by side: transitions are steps x rollouts
            few = torch.randint(num, (len(rows), 1, 1, 1), generator=rng, device=self.device)
            which = torch.arange(num, device=self.device)[:, None] <= few
            weight = (weight.view(len(rows), -1, num, self.config.support.rollouts) * which).view_as(weight)
        if batch is None:
            return Vectors(entries[rows[own]], weight[own]), noise[own]
        drawn = torch.multinomial(weight[..., 0], batch, replacement=True, generator=rng)
        stands_for = (weight.sum(1, keepdim=True) / batch).expand(-1, batch, -1)
        return Vectors(entries[rows[own, None], drawn[own]], stands_for[own]), noise[own]

    @override
    def blank_sources(self, num: int) -> Any:
        vectors, batch = self._blank(num), self.config.latent.batch
        vectors = vectors if batch is None else Vectors(*(x[:, :1].expand(-1, batch, -1) for x in vectors))
        return vectors, torch.zeros(num, self.num_given())

    def _blank(self, tasks: int) -> Vectors:
        """Return the transitions of all supports of so many tasks without content."""
        support = self.config.support
        return self.encoder.blank(tasks, support.model_copy(update={"rollouts": self.config.supports * support.rollouts}))

    @override
    def given(self, params: Params, sources: Any) -> tuple[Tensor, Tensor]:
        vectors, noise = sources
        mean, deviation = self.encoder.posterior(params, vectors)
        return mean + deviation * noise, self.config.latent.beta * divergence(mean, deviation).mean()

    @override
    def cost_of_training(self) -> Footprint:
        cost, vectors = super().cost_of_training(), self._blank(self.config.tasks)
        return Footprint([*cost.held, Holding("algo.support.rollouts", 4 * size_of(tuple(vectors)))], cost.passing)

    @override
    def numbers_of_update(self) -> dict[str, int]:
        numbers = super().numbers_of_update() | {"algo.supports": self.config.supports}
        return numbers | {"algo.latent.batch": self.config.latent.batch or 0} | self.config.support.sizes("algo.support")

    @override
    def cost_of_adapting(self, tasks: int, episodes: int) -> float:
        params, vectors = without_content(self.slow), self.encoder.blank(tasks, self.config.support)
        reading = peak(lambda: self.encoder.posterior(params, vectors))
        return super().cost_of_adapting(tasks, episodes) + 4 * size_of(tuple(vectors)) + reading

    @override
    def numbers_of_adapting(self) -> dict[str, int]:
        return self.config.support.sizes("algo.support")

    @torch.no_grad()
    def policy_after(self, params: Params, task: Task, support: Transitions | None) -> ConditionedPolicy:
        """Return the policies in M tasks of which the network is given the posterior, or without a support the prior."""
        if support is None:
            mean = torch.zeros(num_tasks(task), self.num_given(), device=self.device)
            return self.policy(params, mean, torch.ones_like(mean))
        return self.policy(params, *self.encoder.posterior(params, self.encoder.read(self.measured, support)))

    @override
    def adapt(self, task: Task, budget: Budget, rng: torch.Generator, family: Family | None = None) -> Iterator[Adapted]:
        """Yield the policies before the first support and after each."""
        parts = (self.learner.actions, family or self.family, task, budget, self.config.support, rng)
        params = self.tested()
        return infer(lambda support: self.policy_after(params, task, support), *parts)

    def learning(self) -> Learning | None:
        """Return the posterior's mean as a function of a support."""
        params = self.tested()
        return self.inferring(
            self.config.support, lambda support: self.encoder.posterior(params, self.encoder.read(self.measured, support))[0]
        )

    @override
    def weights(self) -> State:
        return super().weights() | {"measured": self.measured}

    @override
    def load_weights(self, state: State) -> None:
        super().load_weights(state)
        load_params(self.measured, state["measured"])


Algo = PEARL
