"""MAML over policy gradients: learn initial weights from which a policy adapts in a few gradient steps.

Model-Agnostic Meta-Learning (Finn 2017, arXiv:1703.03400), on-policy inside and outside:

    inner   theta_i = theta - alpha * grad L_i(theta; support_i)        K times; each support by the policy so far
    outer   min over theta, alpha of  sum_i L^PPO(theta_i; query_i)     the query by the adapted policy

L_i is the policy gradient of the learner; the outer loss is clipped as PPO's (Schulman 2017, arXiv:1707.06347), which takes
several steps on the same experience. It ends where the policies have moved by ``stop_kl``.

Variants are values of the configuration, not code:

| variant | value | paper |
|---|---|---|
| ProMP | outer.inner_kl above 0, inner.rates=fixed | Rothfuss 2019, arXiv:1810.06784 |
| FOMAML | inner.order=1 | Finn 2017 |
| Meta-SGD | inner.rates=parameter | Li 2017, arXiv:1707.09835 |
| ANIL | inner.scope=head | Raghu 2020, arXiv:1909.09157 |
| pre-training | inner.steps=0 | one policy for all tasks, adapted only at meta-test time |

Differs from MAML: an outer step is PPO's in place of TRPO's, and rates are learned for every tensor. The support enters the
meta-gradient as data; how it was collected gets no credit but what the ratios of the learner's loss hold (``estimator``).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import override

from metarl_cli.adaptation.gradient import (
    InnerConfig,
    NetworkPolicy,
    adapt,
    clipped,
    collect_support,
    cost_of_steps,
    fine_tune,
    initial_rates,
    load_network_policy,
    loss_gradients,
    prepare_each,
    rates_of_step,
)
from metarl_cli.config.base import Operational, StrictModel
from metarl_cli.config.footprint import blank_network, experience, factor, peak, size_of, without_content
from metarl_cli.experience.schedules import cosine
from metarl_cli.interfaces import (
    Adapted,
    Algorithm,
    Batch,
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
from metarl_cli.learners.policy import PolicyGradient
from metarl_cli.networks.compiling import compiled
from metarl_cli.networks.optimizers import backward
from metarl_cli.networks.stacked import detached, expand, fresh, load_params
from metarl_cli.progress import timed
from metarl_cli.seeding import Streams, numpy_rng


class OuterConfig(StrictModel):
    """The outer loop, which learns the initialisation and the rates."""

    epochs: int = Field(gt=0, description="outer steps on the experience of an iteration, at most")
    stop_kl: float = Field(gt=0, description="divergence of the adapted policies from those that acted, at which they end")
    ratio_clip: float = Field(gt=0, description="bound of the ratio of probabilities beyond which an action gains no more")
    inner_kl: float = Field(ge=0, description="weight of the divergence of the policies that collected the supports (ProMP)")
    chunk: Annotated[int | None, Operational()] = Field(
        gt=0, description="tasks whose part of the meta-gradient is computed together, to bound memory; none: all"
    )
    lr: float = Field(gt=0, description="Adam's learning rate")
    final_lr: float = Field(ge=0, description="final learning rate, as a share of lr (cosine over the run)")
    clip: float = Field(gt=0, description="largest norm of the meta-gradient")


class Config(StrictModel):
    """MAML over policy gradients, and its variants."""

    tasks: int = Field(gt=0, description="training tasks of an iteration, drawn for each anew")
    inner: InnerConfig
    query: int = Field(gt=0, description="episodes of each task by its adapted policy")
    outer: OuterConfig

    @model_validator(mode="after")
    def _check_combination(self) -> Config:
        if self.inner.loss.learned:
            raise ValueError("inner.loss.learned=true is for Q-networks: algo=learned_loss_dqn")
        if self.inner.support.epsilon or self.inner.support.repeat > 1:
            raise ValueError("a policy gradient learns from its own actions: inner.support.epsilon=0 and repeat=1")
        if not self.inner.support.fresh:
            raise ValueError("each gradient step needs the experience of the policy it changes: inner.support.fresh=true")
        return self


Meta = dict[str, Params]  # {"init": weights, "rates": learning rates of the adapted weights}


class MAMLPG(Algorithm):
    """Meta-learner of an initialisation (and learning rates) for a policy gradient.

    Args:
        config: see :class:`Config`.
        context: the family, the learner, the seed, the device and the iterations of the run.

    Raises:
        ValueError: if the learner is no policy gradient.
    """

    adapts_by = "gradient"
    saved = ("optimizer", "rng")

    def __init__(self, config: Config, context: Context):
        if not isinstance(context.learner, PolicyGradient):
            raise ValueError("maml_pg learns policies: learner=policy")
        self.config, self.context, self.learner, self.family = config, context, context.learner, context.family
        self.rng = Streams(context.seed, "init", "support", "query", device=context.device)
        init = self.learner.init(self.rng["init"])
        self.meta: Meta = {"init": init, "rates": initial_rates(init, config.inner)}
        self.learned = [*init.values(), *(self.meta["rates"].values() if config.inner.rates != "fixed" else ())]
        self.optimizer = torch.optim.Adam([v.requires_grad_() for v in self.learned], lr=config.outer.lr, fused=True)
        self.trained_steps = config.inner.steps or None
        self.processes, self.shares = context.processes, config.tasks
        self.gradient = compiled(self._gradient, "the meta-gradient", context.compile)
        self.iteration = self.env_steps = 0
        self.task = self._tasks()

    @override
    @classmethod
    def cost_of_building(cls, config: Config, context: Context) -> Footprint:
        return Footprint([Holding("learner.network", 3 * size_of(blank_network(context.learner)))])

    @override
    def cost_of_training(self) -> Footprint:
        config, spec, support = self.config, self.family.spec, self.config.inner.support
        own = -(-config.tasks // self.processes.size)
        chunk, each = min(config.outer.chunk or own, own), spec.bytes_per_transition
        meta = without_content(self.meta)
        params = expand(detached(meta["init"]), chunk)

        def blank(rollouts: int) -> Batch:
            of = experience(spec, chunk, support.steps, rollouts)
            return prepare_each(self.learner, params, params, of, config.inner.returns.gamma, config.inner.returns.lambda_)

        supports = [blank(support.rollouts)] * config.inner.steps
        update = peak(lambda: self._gradient(meta, supports, blank(config.query)))
        episodes = config.inner.steps * support.rollouts + config.query
        numbers = {"algo__query": config.query, "algo__inner__support__rollouts": support.rollouts}
        held = config.tasks * episodes * support.steps * each
        collected = Holding(factor(**numbers, algo__tasks=config.tasks), held)
        return Footprint(
            [collected, Holding("learner.network", 3 * size_of(self.meta["init"]))],
            [Holding(factor(**numbers, algo__outer__chunk=chunk), update)],
        )

    @override
    def cost_of_adapting(self, tasks: int, episodes: int) -> float:
        inner = self.config.inner
        return cost_of_steps(self.learner, self.meta["init"], self.family, tasks, inner.support, inner.returns, episodes)

    def _tasks(self) -> Task:
        """Draw the training tasks of this iteration."""
        rng = numpy_rng(self.context.seed, "tasks", "train", str(self.iteration))
        return self.family.sample_tasks(self.config.tasks, "train", rng)

    # -- one meta-iteration

    def train_step(self) -> dict[str, float]:
        """Collect supports, adapt, collect the query with the adapted policies; then take the outer steps."""
        config, own = self.config, self.processes.shard(self.config.tasks)
        self.task = self._tasks()
        supports, query, metrics = self._collect()
        for group in self.optimizer.param_groups:
            group["lr"] = config.outer.lr * cosine(config.outer.final_lr, self.iteration / self.context.iterations)
        mine = [rows(batch, own) for batch in supports], rows(query, own)
        epochs, divergence = 0, 0.0
        while epochs < config.outer.epochs and divergence <= config.outer.stop_kl:
            loss, divergence, norm = self._update(*mine)
            epochs += 1
        self.iteration += 1
        rates = torch.cat([v.detach().flatten() for v in self.meta["rates"].values()])
        return metrics | {
            "loss/query": loss,
            "train/kl": divergence,
            "grad/norm": norm,
            "train/epochs": float(epochs),
            "train/lr": self.optimizer.param_groups[0]["lr"],
            "train/inner_lr": float(rates.mean()),
        }

    @torch.no_grad()
    def _collect(self) -> tuple[list[Batch], Batch, dict[str, float]]:
        """Collect the support of every task for each inner step, and the query; returns what the loss needs of them."""
        config, returns = self.config, list[Tensor]()
        params = expand(detached(self.meta["init"]), config.tasks)
        batches = list[Batch]()
        for k in range(config.inner.steps + 1):
            last = k == config.inner.steps
            support = config.inner.support if not last else config.inner.support.model_copy(update={"rollouts": config.query})
            rng = self.rng["query" if last else "support"]
            found = collect_support(self.learner, params, self.family, self.task, support, rng)
            self.env_steps += int(found.weight.sum())
            returns.append((found.reward * found.weight).sum(1).mean())
            batches.append(self._prepared(params, found))
            if not last:
                params = self._step(k + 1, params, self.meta, batches[-1])
        metrics = {"train/return_before": float(returns[0]), "train/return_after": float(returns[-1])}
        return batches[:-1], batches[-1], metrics

    def _prepared(self, params: Params, found: Transitions) -> Batch:
        returns = self.config.inner.returns
        return prepare_each(self.learner, params, params, found, returns.gamma, returns.lambda_)

    @timed("outer update")
    def _update(self, supports: list[Batch], query: Batch) -> tuple[float, float, float]:
        """Take one step of the outer optimiser; returns the loss, the divergence and the norm of the meta-gradient.

        The tasks are this process's share; means over all of them are summed over the processes.
        """
        num, chunk = len(query.experience.reward), self.config.outer.chunk or self.config.tasks
        totals = list[Tensor]()
        for start in range(0, num, chunk):
            part = slice(start, start + chunk)
            loss, divergence, gradients = self.gradient(self.meta, [rows(batch, part) for batch in supports], rows(query, part))
            share = len(query.experience.reward[part]) / self.config.tasks
            found = [share * value for value in (loss.detach(), divergence.detach(), *gradients)]
            totals = [a + b for a, b in zip(totals, found, strict=True)] if totals else found
        loss, divergence, *gradients = self.processes.sum(totals)
        for weight, gradient in zip(self.learned, gradients, strict=True):
            weight.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(self.learned, self.config.outer.clip)
        self.optimizer.step()
        return float(loss), float(divergence), float(norm)

    # -- the meta-gradient

    def _step(self, step: int, params: Params, meta: Meta, batch: Batch) -> Params:
        """Take an inner step, counted from 1."""
        inner, rates = self.config.inner, rates_of_step(meta["rates"], step, self.config.inner)
        second = inner.order == 2 and torch.is_grad_enabled()
        gradients, _ = loss_gradients(self.learner, params, list(rates), batch, create_graph=second)
        if inner.clip is not None:
            gradients = clipped(gradients, inner.clip)
        return {k: p - rates[k] * gradients[k] if k in rates else p for k, p in params.items()}

    def meta_loss(self, meta: Meta, supports: list[Batch], query: Batch) -> tuple[Tensor, Tensor]:
        """Compute the mean loss of the adapted policies, differentiable in ``meta``, and how far they have moved."""
        outer, params = self.config.outer, expand(meta["init"], len(query.experience.reward))
        loss = query.experience.reward.new_zeros(())
        for step, support in enumerate(supports, 1):
            if outer.inner_kl:
                loss = loss + outer.inner_kl * self.moved(params, support)[1].mean()
            params = self._step(step, params, meta, support)
        ratio, divergence = self.moved(params, query)
        advantage, weight = query.signal["advantage"], query.experience.weight
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - outer.ratio_clip, 1 + outer.ratio_clip) * advantage)
        return loss - ((gain * weight).sum((1, 2)) / weight.sum((1, 2))).mean(), divergence.mean()

    def moved(self, params: Params, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the ratio of probabilities to those of the policies that acted ``[M, T, N]``, and their divergence ``[M]``.

        The divergence from the policies that acted is estimated by ``ratio - 1 - log ratio``, which is never below 0.
        """
        weight = batch.experience.weight
        change = (self.learner.log_prob(params, batch.experience) - batch.signal["log_prob"]) * weight
        ratio = change.exp()
        return ratio, (ratio - 1 - change).sum((1, 2)) / weight.sum((1, 2))

    def _gradient(self, meta: Meta, supports: list[Batch], query: Batch) -> tuple[Tensor, Tensor, list[Tensor]]:
        loss, divergence = self.meta_loss(meta, supports, query)
        learned = [v for group in ("init", "rates") for v in meta[group].values() if v.requires_grad]
        return loss, divergence, backward(loss, learned)

    # -- adaptation

    def adapt(self, task: Task, budget: Budget, rng: torch.Generator, family: Family | None = None) -> Iterator[Adapted]:
        """Adapt to M tasks from the learned initialisation; see :meth:`Algorithm.adapt`."""
        inner, params = self.config.inner, expand(detached(self.meta["init"]), num_tasks(task))
        rates = partial(rates_of_step, detached(self.meta["rates"]), config=inner)
        parts = (family or self.family, task, budget, inner.support, inner.returns, rng)
        return adapt(self.learner, params, rates, *parts, clip=inner.clip)

    def adapt_from_scratch(self, task: Task, budget: Budget, rng: torch.Generator) -> Iterator[Adapted]:
        """Adapt fresh weights of the same learner, with Adam at the same budget."""
        params, inner = fresh(self.learner, num_tasks(task), rng), self.config.inner
        return fine_tune(self.learner, params, inner.scratch_lr, self.family, task, budget, inner.support, inner.returns, rng)

    @override
    def load_policy(self, state: State, task: Task) -> NetworkPolicy:
        return load_network_policy(self.learner, state)

    # -- saving

    @override
    def weights(self) -> State:
        return {"meta": {group: detached(params) for group, params in self.meta.items()}}

    @override
    def load_weights(self, state: State) -> None:
        for group, params in self.meta.items():
            load_params(params, state["meta"][group])


def rows(batch: Batch, part: slice) -> Batch:
    """Return the tasks ``part`` of a batch."""
    return Batch(batch.experience.rows(part), {name: value[part] for name, value in batch.signal.items()})


Algo = MAMLPG
