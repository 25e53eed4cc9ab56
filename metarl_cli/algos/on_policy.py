"""The base of algorithms that learn a policy gradient across tasks: PPO's steps on the experience of an iteration, or TRPO's.

    loss       -mean min(r A, clip(r, 1 - c, 1 + c) A)            r = pi / pi_acted; TRPO does not clip
    ppo        at most ``epochs`` steps of Adam; shortened where the policies have moved beyond ``stop_kl``
    trpo       one step within the trust region

PPO: Schulman 2017, arXiv:1707.06347, here with a bound on the divergence in the place of a fixed number of steps. The learning
rate depends on the divergence, as in Rudin 2021 (arXiv:2109.11978), here once an iteration and never above its start. TRPO:
Schulman 2015, arXiv:1502.05477. Its products are those of the divergence over all actions; how far a step has moved the
policies is then estimated from the actions they took.
Training tasks are drawn for every iteration anew, so that no environment lasts from one to the next.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from metarl_cli.config.base import Operational, StrictModel
from metarl_cli.config.footprint import blank_network, size_of
from metarl_cli.experience.schedules import cosine
from metarl_cli.interfaces import Algorithm, Batch, Context, Footprint, Holding, Params, Task
from metarl_cli.learners.policy import PolicyGradient
from metarl_cli.networks.compiling import compiled
from metarl_cli.networks.optimizers import backward
from metarl_cli.networks.stacked import detached
from metarl_cli.networks.trust_region import TrustConfig, flat, trust_region_step
from metarl_cli.progress import timed
from metarl_cli.seeding import Streams, numpy_rng

RATE_FACTOR = 1.5  # by which the learning rate falls or rises
LOWEST = 20  # times that the rate may fall: to a three-thousandth


class StepsConfig(StrictModel):
    """What is learned from the experience of an iteration, and how."""

    epochs: int = Field(gt=0, description="steps on the experience of an iteration, at most; trpo takes one")
    stop_kl: float = Field(
        gt=0, description="divergence of the policies from those that acted, to which ppo's steps are shortened"
    )
    ratio_clip: float = Field(gt=0, description="bound of the ratio of probabilities beyond which ppo gains no more")
    trust: TrustConfig = Field(description="the step of trpo")
    chunk: Annotated[int | None, Operational()] = Field(
        gt=0, description="tasks whose part of the gradient is computed together, to bound memory; none: all"
    )
    lr: float = Field(gt=0, description="Adam's learning rate")
    final_lr: float = Field(ge=0, description="final learning rate, as a share of lr (cosine over the run)")
    clip: float = Field(gt=0, description="largest norm of the gradient")


class OuterConfig(StepsConfig):
    """The steps of an algorithm without an inner loop."""

    rule: Literal["ppo", "trpo"] = Field(description="ppo: steps of Adam on the clipped loss; trpo: one within a trust region")


class OnPolicy(Algorithm):
    """Learns from what its own policies have just done.

    A subclass sets ``learned``, then calls :meth:`ready`; it gives :meth:`collect`, :meth:`query_policies`
    and :meth:`loss`.

    Args:
        tasks: of an iteration.
        outer: see :class:`StepsConfig`.
        trust: whether a step is TRPO's.
        context: the family, the learner, the seed, the device and the iterations of the run.

    Raises:
        ValueError: if the learner is no policy gradient.
    """

    saved: ClassVar[tuple[str, ...]] = ("optimizer", "rng")
    counters = ("iteration", "env_steps", "lowered")
    learned: Any  # dicts of what :meth:`loss` is differentiable in

    def __init__(self, tasks: int, outer: StepsConfig, trust: bool, context: Context):
        if not isinstance(context.learner, PolicyGradient):
            raise ValueError("a policy is learned here: learner=policy")
        self.learner, self.num, self.outer, self.trust = context.learner, tasks, outer, trust
        self.context, self.family = context, context.family
        self.rng = Streams(context.seed, "init", "support", "query", device=context.device)
        self.processes, self.shares = context.processes, tasks
        self.iteration = self.env_steps = 0
        self.lowered = 0  # times that the learning rate has fallen and not risen again
        self.task = self.draw()

    def ready(self, tensors: Sequence[Tensor], what: str) -> None:
        """Optimise these tensors; ``what`` names their gradient for messages."""
        self.tensors = [tensor.requires_grad_() for tensor in tensors]
        self.optimizer = torch.optim.Adam(self.tensors, lr=self.outer.lr, fused=True)
        self.gradient: Callable[..., tuple[Tensor, Tensor, list[Tensor]]] = compiled(self._gradient, what, self.context.compile)

    @override
    @classmethod
    def cost_of_building(cls, config: Any, context: Context) -> Footprint:
        return Footprint([Holding("learner.network", 3 * size_of(blank_network(context.learner)))])

    def draw(self) -> Task:
        """Draw the training tasks of this iteration."""
        return self.family.sample_tasks(self.num, "train", numpy_rng(self.context.seed, "tasks", "train", str(self.iteration)))

    @abstractmethod
    def collect(self) -> tuple[list[Batch], dict[str, float]]:
        """Act in the tasks of this iteration; returns all that the loss needs, and metrics."""

    @abstractmethod
    def query_policies(self, learned: Any, batches: list[Batch]) -> Params:
        """Return the policies ``[M, ...]`` that collect the last of the batches, the query; differentiable in ``learned``."""

    @abstractmethod
    def loss(self, learned: Any, batches: list[Batch]) -> tuple[Tensor, Tensor]:
        """Return the mean loss over the tasks of the batches, and how far their policies have moved."""

    def train_step(self) -> dict[str, float]:
        """Collect, then take the outer steps."""
        own = self.processes.shard(self.num)
        self.task = self.draw()
        batches, metrics = self.collect()
        mine = [rows(batch, own) for batch in batches]
        metrics |= self.trpo(mine) if self.trust else self.ppo(mine)
        self.iteration += 1
        return metrics

    @timed("outer update")
    def ppo(self, batches: list[Batch]) -> dict[str, float]:
        """Take at most ``epochs`` steps of Adam, until the policies have moved by ``stop_kl``.

        Steps that lead beyond it are shortened together to about this divergence, which grows with the square of their length.
        The rate falls for the next iterations where the divergence is above twice the bound, and rises again, up to its own,
        where it is below half of it. The last of ``epochs`` steps is not measured.

        Returns:
            Metrics: the number of steps, the rate, and the loss, the divergence and the gradient's norm as last measured,
            before steps are shortened.
        """
        outer, start, epochs = self.outer, [weight.detach().clone() for weight in self.tensors], 0
        lowered = min(self.lowered, LOWEST)
        lr = outer.lr * cosine(outer.final_lr, self.iteration / self.context.iterations) / RATE_FACTOR**lowered
        self.optimizer.param_groups[0]["lr"] = lr
        for _ in range(outer.epochs):
            loss, divergence, norm = self.differentiate(batches)
            if epochs and not divergence <= outer.stop_kl:
                if math.isfinite(divergence):
                    shorten(self.tensors, start, math.sqrt(outer.stop_kl / divergence))
                break
            self.optimizer.step()
            epochs += 1
        if divergence > 2 * outer.stop_kl:
            self.lowered = min(lowered + 1, LOWEST)
        elif divergence < outer.stop_kl / 2:
            self.lowered = max(lowered - 1, 0)
        metrics = {"loss/query": loss, "train/kl": divergence, "grad/norm": norm}
        return metrics | {"train/epochs": float(epochs), "train/lr": lr}

    def differentiate(self, batches: list[Batch]) -> tuple[float, float, float]:
        """Give the weights their gradient, clipped; returns the loss, the divergence and the norm of the gradient."""
        loss, divergence, gradients = self._gradients(batches)
        for weight, gradient in zip(self.tensors, gradients, strict=True):
            weight.grad = gradient
        return loss, divergence, float(torch.nn.utils.clip_grad_norm_(self.tensors, self.outer.clip))

    @timed("outer update")
    def trpo(self, batches: list[Batch]) -> dict[str, float]:
        """Take one step within the trust region; returns metrics, with the loss before it."""
        loss, _, gradients = self._gradients(batches)
        gradient = flat(gradients)

        def product(vector: Tensor) -> Tensor:
            return self._mean(lambda part: [self._product(self.learned, part, vector)], batches)[0]

        def measure() -> tuple[float, float]:
            loss, divergence = self._mean(lambda part: list(self.loss(self.learned, part)), batches)
            return float(loss), float(divergence)

        divergence, trial = trust_region_step(self.tensors, gradient, product, measure, self.outer.trust)
        metrics = {"loss/query": loss, "train/kl": divergence, "grad/norm": float(gradient.norm())}
        return metrics | {"train/accepted_trial": float(trial)}

    def _mean(self, function: Callable[[list[Batch]], Sequence[Tensor]], batches: list[Batch]) -> list[Tensor]:
        """Return means over the tasks of all processes of what a function returns as means over some tasks, chunk by chunk.

        The batches hold this process's share of the tasks.
        """
        num, chunk, totals = len(batches[-1].experience.reward), self.outer.chunk or self.num, list[Tensor]()
        for start in range(0, num, chunk):
            part = slice(start, start + chunk)
            share = len(batches[-1].experience.reward[part]) / self.num
            means = [share * value.detach() for value in function([rows(batch, part) for batch in batches])]
            totals = [a + b for a, b in zip(totals, means, strict=True)] if totals else means
        return self.processes.sum(totals)

    def _gradients(self, batches: list[Batch]) -> tuple[float, float, list[Tensor]]:
        """Return the loss, the divergence and the gradient, means over all tasks."""

        def of(part: list[Batch]) -> list[Tensor]:
            loss, divergence, gradients = self.gradient(self.learned, part)
            return [loss, divergence, *gradients]

        loss, divergence, *gradients = self._mean(of, batches)
        return float(loss), float(divergence), gradients

    def _gradient(self, learned: Any, batches: list[Batch]) -> tuple[Tensor, Tensor, list[Tensor]]:
        loss, divergence = self.loss(learned, batches)
        return loss, divergence, backward(loss, _tensors(learned))

    @torch.enable_grad()
    def _product(self, learned: Any, batches: list[Batch], vector: Tensor) -> Tensor:
        """Return the product of the curvature of the divergence with a vector ``[n]``, through the adaptation."""
        tensors, params = _tensors(learned), self.query_policies(learned, batches)
        divergence = self.learner.divergence(params, detached(params), batches[-1].experience).mean()
        first = torch.autograd.grad(divergence, tensors, create_graph=True)
        return flat(backward(flat(first) @ vector, tensors))

    def largest_part(self, learned: Any, batches: list[Batch]) -> object:
        """Compute what takes the most memory of an outer step, on the tasks of a chunk."""
        if not self.trust:
            return self._gradient(learned, batches)
        return self._product(learned, batches, torch.ones_like(flat(_tensors(learned))))

    def surrogate(self, params: Params, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss of M policies on their experience, a mean over tasks, and how far they have moved."""
        ratio, divergence = self.moved(params, batch)
        advantage, weight, clip = batch.signal["advantage"], batch.experience.weight, self.outer.ratio_clip
        gain = ratio * advantage
        if not self.trust:
            gain = torch.minimum(gain, ratio.clamp(1 - clip, 1 + clip) * advantage)
        return -((gain * weight).sum((1, 2)) / weight.sum((1, 2))).mean(), divergence.mean()

    def moved(self, params: Params, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the ratio of probabilities to those of the policies that acted ``[M, T, N]``, and their divergence ``[M]``.

        The divergence from the policies that acted is estimated by ``ratio - 1 - log ratio``, which is never below 0.
        """
        weight = batch.experience.weight
        change = (self.learner.log_prob(params, batch.experience) - batch.signal["log_prob"]) * weight
        ratio = change.exp()
        return ratio, (ratio - 1 - change).sum((1, 2)) / weight.sum((1, 2))


def rows(batch: Batch, part: slice) -> Batch:
    """Return the tasks ``part`` of a batch."""
    return Batch(batch.experience.rows(part), {name: value[part] for name, value in batch.signal.items()})


def mean_return(batch: Batch) -> float:
    """Return the mean return of the episodes of a batch, as far as they were collected."""
    experience = batch.experience
    return float((experience.reward * experience.weight).sum(1).mean())


@torch.no_grad()
def shorten(tensors: Sequence[Tensor], start: Sequence[Tensor], share: float) -> None:
    """Move tensors back to a share of their way from where they started."""
    for tensor, first in zip(tensors, start, strict=True):
        tensor.copy_(first.lerp(tensor, share))


def _tensors(learned: Any) -> list[Tensor]:
    """Return the tensors to differentiate, in the order of the dicts."""
    if isinstance(learned, Tensor):
        return [learned] if learned.requires_grad else []
    return [tensor for part in learned.values() for tensor in _tensors(part)]
