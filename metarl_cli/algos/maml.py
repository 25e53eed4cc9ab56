"""MAML over DQN: learn initial weights from which a Q-network adapts in a few gradient steps.

Model-Agnostic Meta-Learning (Finn 2017, arXiv:1703.03400) with Q-learning inside and outside:

    inner   theta_i = theta - alpha * grad L_DQN(theta; support_i)                      K times; targets are constants
    outer   min over theta, alpha of  sum_i L_DQN(theta_i; query_i)             targets of the query from theta^-_i
    target  theta^-_i = the slow copy of (theta, alpha), adapted on the same support_i

The adapted network is a conditional Q-function Q(s, a | support). The un-adapted policy collects the support, the adapted
policy collects the query. A replay for each task keeps the query experience, for many outer updates per collection.

Variants are values of the configuration, not code:

| variant | value | paper |
|---|---|---|
| FOMAML | inner.order=1 | Finn 2017 |
| Meta-SGD | inner.rates=parameter | Li 2017, arXiv:1707.09835 |
| ANIL | inner.scope=head | Raghu 2020, arXiv:1909.09157 |
| a learned loss | inner.loss.learned, inner.scope=context | Bechtle 2019, arXiv:1906.05374 |
| CAVIA | inner.scope=context | Zintgraf 2019, arXiv:1810.03642 |
| Reptile | outer.rule=reptile | Nichol 2018, arXiv:1803.02999 |
| MAML++ losses and rates | outer.every_step, inner.rates=tensor, inner.each_step | Antoniou 2019, arXiv:1810.09502 |
| pre-training | inner.steps=0 | one network for all tasks, adapted only at meta-test time |

Differs from the papers: the method is off-policy. The support enters the meta-gradient as data (no credit assignment to its
collection), and the query is replayed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import override

from metarl_cli.adaptation.explorer import Explorer, ExplorerConfig
from metarl_cli.adaptation.gradient import (
    InnerConfig,
    NetworkPolicy,
    adapt,
    collect_support,
    cost_of_steps,
    descended,
    fine_tune,
    initial_rates,
    inner_step,
    learning,
    load_network_policy,
    loss_each,
    loss_gradients,
    prepare_each,
    rates_of_step,
)
from metarl_cli.adaptation.learned_loss import LearnedLoss, named
from metarl_cli.adaptation.learning import Learning
from metarl_cli.config.base import Operational, Share, StrictModel
from metarl_cli.config.footprint import (
    COPIES,
    blank_network,
    blank_transitions,
    bytes_per_env,
    extrapolated,
    factor,
    joined,
    peak,
    size_of,
    without_content,
)
from metarl_cli.experience.episodes import Episodes
from metarl_cli.experience.exploration import EpsilonGreedy
from metarl_cli.experience.replay import Replay
from metarl_cli.experience.rollout import collect
from metarl_cli.experience.schedules import cosine, linear
from metarl_cli.interfaces import (
    Adapted,
    Algorithm,
    Budget,
    Context,
    Family,
    Footprint,
    Holding,
    Learner,
    Params,
    State,
    Task,
    Transitions,
    num_tasks,
)
from metarl_cli.networks.compiling import compiled
from metarl_cli.networks.optimizers import Adam, backward
from metarl_cli.networks.stacked import detached, detached_groups, expand, fresh, load_groups, load_params
from metarl_cli.networks.target import follow
from metarl_cli.progress import timed
from metarl_cli.seeding import Streams, numpy_rng


class QueryConfig(StrictModel):
    """Collection and replay of query experience."""

    envs: int = Field(gt=0, description="environments per task; episodes continue across iterations")
    steps: int = Field(gt=0, description="steps per iteration in each environment")
    epsilon: list[Share] = Field(min_length=2, max_length=2, description="share of random actions, initial and final")
    epsilon_iterations: int = Field(gt=0, description="iterations over which epsilon falls linearly")
    repeat: int = Field(gt=0, description="steps for which a random action is repeated")
    capacity: int = Field(gt=0, description="replay per task [transitions]")


class OuterConfig(StrictModel):
    """The outer loop, which learns the initialisation and the rates."""

    rule: Literal["maml", "reptile"] = Field(description="outer gradient: of the query loss, or the displacement by adaptation")
    updates: int = Field(gt=0, description="outer updates per iteration")
    tasks: int = Field(gt=0, description="tasks per outer update")
    chunk: Annotated[int | None, Operational()] = Field(
        gt=0, description="tasks whose part of the meta-gradient is computed together, to bound memory; none: all"
    )
    batch: int = Field(gt=0, description="query transitions per task and update")
    episodes: int | None = Field(
        gt=0, description="most episodes of a task's support that an update adapts on, drawn at random; none: all"
    )
    lr: float = Field(gt=0, description="Adam's learning rate")
    final_lr: float = Field(ge=0, description="final learning rate, as a share of lr (cosine over the run)")
    clip: float = Field(gt=0, description="largest norm of the meta-gradient")
    polyak: float = Field(gt=0, le=1, description="step size of the slow copy towards the weights, per update")
    every_step: bool = Field(description="query loss after every inner step instead of the last only (MAML++)")
    adapted_target: bool = Field(description="adapt the slow copy on the support before it computes the query targets")
    use_average: bool = Field(description="test with the slow copy, a running average of the weights")


class Config(StrictModel):
    """MAML-DQN and its variants."""

    tasks: int = Field(gt=0, description="training tasks, drawn once")
    inner: InnerConfig
    query: QueryConfig
    outer: OuterConfig
    explorer: ExplorerConfig | None = Field(description="learned exploration, which collects the supports; none: the policy")

    @model_validator(mode="after")
    def _check_combination(self) -> Config:
        if self.outer.tasks > self.tasks:
            raise ValueError(f"outer.tasks ({self.outer.tasks}) must not be above tasks ({self.tasks})")
        if self.outer.rule == "reptile" and self.inner.rates != "fixed":
            raise ValueError("outer.rule=reptile learns no rates: it needs inner.rates=fixed")
        if self.inner.loss.learned and (self.inner.order == 1 or self.outer.rule == "reptile"):
            raise ValueError("inner.loss.learned=true needs second derivatives: inner.order=2 and outer.rule=maml")
        if self.explorer is not None and (self.inner.steps == 0 or self.inner.support.epsilon == 1):
            raise ValueError("the explorer collects supports: it needs inner.steps above 0 and inner.support.epsilon below 1")
        if self.explorer is not None and self.inner.support.fresh and self.explorer.supports < self.inner.steps:
            raise ValueError("inner.support.fresh=true takes a support for each step: explorer.supports must reach inner.steps")
        if self.query.envs * self.query.steps > self.query.capacity:
            raise ValueError("query.capacity must hold at least the query.envs x query.steps of one iteration")
        return self


Meta = dict[str, Params]  # {"init": weights, "rates": of the adapted weights, "measured": normalisation of a learned loss}


class MAML(Algorithm):
    """Meta-learner of an initialisation (and learning rates) for a learner.

    Args:
        config: see :class:`Config`.
        context: the family, the learner, the seed, the device and the iterations of the run.
    """

    adapts_by = "gradient"
    replays = True
    saved = ("optimizer", "rng", "env", "replay", "episodes", "explorer")

    def __init__(self, config: Config, context: Context):
        self.config, self.context, self.learner, self.family = config, context, context.learner, context.family
        self.rng = Streams(context.seed, "init", "support", "query", "exploration", "minibatch", device=context.device)
        self.task = self.family.sample_tasks(config.tasks, "train", numpy_rng(context.seed, "tasks", "train"))
        self.loss = LearnedLoss(self.learner, config.inner.loss) if config.inner.loss.learned else None
        self.objective: Learner = self.loss or self.learner  # of the inner loop
        init = self.objective.init(self.rng["init"])
        self.meta: Meta = {"init": init, "rates": initial_rates(init, config.inner)}
        if self.loss is not None:
            self.meta["measured"] = self.loss.start(context.device)
        self.slow: Meta = {group: {k: v.clone() for k, v in params.items()} for group, params in self.meta.items()}
        self.trained_steps = config.inner.steps or None
        self.learned_groups = ["init"] if config.inner.rates == "fixed" else ["init", "rates"]
        self.optimizer = torch.optim.Adam(
            [v.requires_grad_() for v in self._learned(self.meta)], lr=config.outer.lr, fused=True
        )
        self.env = self.family.make(self.task, config.query.envs, self.rng["query"])
        self.replay = Replay(config.tasks, config.query.capacity, context.device)
        self.episodes = Episodes()
        self.processes, self.shares = context.processes, config.outer.tasks
        self.gradient = compiled(self._gradient, "the meta-gradient", context.compile)
        self.explorer = Explorer(config.explorer, config.inner.support, context) if config.explorer else None
        self.iteration = self.env_steps = 0

    @override
    @classmethod
    def cost_of_building(cls, config: Config, context: Context) -> Footprint:
        weights = size_of(blank_network(context.learner))
        envs = config.tasks * config.query.envs * bytes_per_env(context.family)
        envs_key = factor(algo__query__envs=config.query.envs, algo__tasks=config.tasks)
        held = [Holding(envs_key, envs), Holding("learner.network", 3 * weights)]
        support = config.inner.support
        return joined(Explorer.cost_of_building(support, context, "algo.inner.support") if config.explorer else None, held, [])

    @override
    def cost_of_training(self) -> Footprint:
        config, spec, each = self.config, self.family.spec, self.family.spec.bytes_per_transition
        outer, query, support, steps = config.outer, config.query, config.inner.support, config.inner.steps
        replay = config.tasks * query.capacity * each
        chunk = min(outer.chunk or outer.tasks, outer.tasks, -(-outer.tasks // self.processes.size))
        meta, slow = without_content((self.meta, self.slow))
        episodes = min(outer.episodes or support.rollouts, support.rollouts)
        given, batch = (blank_transitions(spec, chunk, *shape) for shape in ((support.steps, episodes), (1, outer.batch)))
        update = extrapolated(lambda num: peak(lambda: self._gradient(meta, slow, [given] * num, batch)), steps)
        drawn = outer.tasks * outer.batch * each
        held = (steps if support.fresh else min(steps, 1)) * config.tasks * support.rollouts * support.steps * each
        capacity = factor(algo__query__capacity=query.capacity, algo__tasks=config.tasks)
        numbers = {"algo__inner__support__rollouts": support.rollouts, "algo__inner__support__steps": support.steps}
        collected = factor(algo__tasks=config.tasks, algo__inner__steps=steps if support.fresh else 1, **numbers)
        if episodes < support.rollouts:
            numbers = {"algo__outer__episodes": episodes, "algo__inner__support__steps": support.steps}
        updated = factor(algo__outer__chunk=chunk, algo__outer__batch=outer.batch, algo__inner__steps=steps, **numbers)
        if 2 * steps * chunk * size_of(meta["init"]) > update / 2:  # the weights of each step
            updated = factor(algo__outer__chunk=chunk, algo__inner__steps=steps)
        window = 2 * config.tasks * query.envs * query.steps * each
        return joined(
            self.explorer.cost_of_training() if self.explorer else None,
            [Holding(capacity, replay), Holding(collected, held), Holding("learner.network", 3 * size_of(self.meta["init"]))],
            [
                Holding(updated, update + drawn),
                Holding(capacity, COPIES * replay),
                Holding(collected, self.cost_of_adapting(config.tasks, query.envs) if config.inner.steps else 0.0),
                Holding(factor(algo__query__steps=query.steps, algo__query__envs=query.envs, algo__tasks=config.tasks), window),
            ],
        )

    @override
    def cost_of_adapting(self, tasks: int, episodes: int) -> float:
        inner, reading = self.config.inner, self.explorer.cost_of_reading(tasks) if self.explorer else 0.0
        parts = (self.objective, initial_params(self.meta), self.family, tasks, inner.support, inner.returns, episodes)
        return cost_of_steps(*parts) + reading

    @override
    def numbers_of_adapting(self) -> dict[str, int]:
        return self.config.inner.support.sizes("algo.inner.support")

    def _learned(self, meta: Meta) -> list[Tensor]:
        """Return the tensors that the outer optimiser updates."""
        return [v for group in self.learned_groups for v in meta[group].values()]

    # -- one meta-iteration

    def train_step(self) -> dict[str, float]:
        """Collect support, adapt, collect query with the adapted policies; then take the outer updates."""
        config, own = self.config, self.processes.shard(self.config.outer.tasks)
        explored = self.explorer.train_step(self.iteration) if self.explorer else {}
        supports, metrics = self._collect()
        self.env_steps += self.explorer.env_steps if self.explorer else 0
        for group in self.optimizer.param_groups:
            group["lr"] = config.outer.lr * cosine(config.outer.final_lr, self.iteration / self.context.iterations)
        updates = list[tuple[Tensor, Tensor]]()
        for _ in range(config.outer.updates):
            order = torch.randperm(config.tasks, generator=self.rng["minibatch"], device=self.rng["minibatch"].device)
            rows = order[: config.outer.tasks]
            query = self.replay.sample(rows, config.outer.batch, self.rng["minibatch"], own)
            updates.append(self._update(self._drawn([support.rows(rows[own]) for support in supports]), query))
        losses, norms = zip(*updates, strict=True)
        self.iteration += 1
        metrics["loss/query"] = float(torch.stack(losses).mean())
        metrics["grad/norm"] = float(torch.stack(norms).mean())
        metrics["train/lr"] = self.optimizer.param_groups[0]["lr"]
        used = [rates_of_step(self.meta["rates"], step, config.inner) for step in range(1, config.inner.steps + 1)]
        rates = torch.cat([v.detach().flatten() for rates in used or [self.meta["rates"]] for v in rates.values()])
        metrics["train/inner_lr"] = float(rates.mean())
        return metrics | explored

    @torch.no_grad()
    def _collect(self) -> tuple[list[Transitions], dict[str, float]]:
        """Collect the support of every task for each inner step, and add query experience to the replay."""
        config, inner, supports = self.config, self.config.inner, list[Transitions]()
        params = expand(initial_params(self.meta), config.tasks)
        for k in range(inner.steps):
            if k == 0 or inner.support.fresh:
                collecting = self.explorer.policy(supports, config.tasks) if self.explorer else None
                parts = (self.family, self.task, inner.support, self.rng["support"], collecting)
                support = collect_support(self.learner, params, *parts)
                self.env_steps += int(support.weight.sum())
                if k == self.iteration == 0 and self.loss is not None:
                    measured = named(self.explorer.measured) if self.explorer else self.loss.measure(support)
                    for meta in (self.meta, self.slow):
                        load_params(meta["measured"], measured)
                    params |= expand(measured, config.tasks)
            supports.append(support)
            params = self._step(k + 1, params, self.meta, support)
        epsilon = linear(config.query.epsilon, self.iteration / config.query.epsilon_iterations)
        policy = EpsilonGreedy(NetworkPolicy(self.learner, params), self.learner.actions, epsilon, config.query.repeat)
        query = collect(self.env, policy, policy.start(config.query.envs, self.rng["exploration"]), config.query.steps)
        self.replay.add(query)
        self.env_steps += query.reward.numel()
        return supports, {"train/epsilon": epsilon, **self.episodes.summary(query)}

    def _drawn(self, supports: list[Transitions]) -> list[Transitions]:
        """Return the episodes of the supports that an update adapts on."""
        rollouts, most, rng = supports[0].reward.shape[2] if supports else 0, self.config.outer.episodes, self.rng["minibatch"]
        if most is None or most >= rollouts:
            return supports
        drawn = torch.randperm(rollouts, generator=rng, device=rng.device)[:most]
        return [Transitions(*(x[:, :, drawn] for x in support)) for support in supports]

    @timed("outer update")
    def _update(self, supports: list[Transitions], query: Transitions) -> tuple[Tensor, Tensor]:
        """Take one step of the outer optimiser; returns the query loss and the norm of the meta-gradient.

        The tasks are this process's share of the update's; the mean over all of them is summed over the processes.
        """
        outer = self.config.outer
        loss, gradients = self.meta_gradient(supports, query)
        if self.processes.size > 1:
            share = len(query.reward) / outer.tasks
            loss, *gradients = self.processes.sum([share * value for value in (loss, *gradients)])
        weights = self._learned(self.meta)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(weights, outer.clip)
        self.optimizer.step()
        for group in self.learned_groups:
            follow(self.slow[group], self.meta[group], outer.polyak)
        return loss.detach(), norm

    # -- the meta-gradient

    def adapted(self, meta: Meta, supports: list[Transitions], num_tasks: int, order: int = 2) -> Iterator[Params]:
        """Yield the weights ``[M, ...]`` before the first inner step and after each."""
        params = expand(initial_params(meta), num_tasks)
        yield params
        for step, support in enumerate(supports, 1):
            params = self._step(step, params, meta, support, order)
            yield params

    def _step(self, step: int, params: Params, meta: Meta, support: Transitions, order: int = 2) -> Params:
        """Take an inner step, counted from 1."""
        inner, rates = self.config.inner, rates_of_step(meta["rates"], step, self.config.inner)
        return inner_step(self.objective, params, rates, support, inner.returns, order, inner.clip)

    @timed("target networks")
    @torch.no_grad()
    def _target_params(self, slow: Meta, supports: list[Transitions], query: Transitions) -> Params:
        """Return the target network of each task: the slow copy, adapted on the same support."""
        *_, target_params = self.adapted(slow, supports if self.config.outer.adapted_target else [], len(query.reward))
        return target_params

    def meta_loss(self, meta: Meta, slow: Meta, supports: list[Transitions], query: Transitions) -> Tensor:
        """Compute the mean query loss of the adapted weights; scalar, differentiable in ``meta``."""
        config = self.config
        target_params = self._target_params(slow, supports, query)
        path = list(self.adapted(meta, supports, len(query.reward), config.inner.order))
        scored = path[1:] if config.outer.every_step and supports else path[-1:]
        losses = []
        for params in scored:
            with torch.no_grad():
                batch = prepare_each(self.learner, params, target_params, query)
            losses.append(loss_each(self.learner, params, batch).mean())
        return torch.stack(losses).mean()

    def meta_gradient(self, supports: list[Transitions], query: Transitions) -> tuple[Tensor, list[Tensor]]:
        """Compute the query loss and the gradient of each learned tensor: ``init``, then ``rates`` if they are learned."""
        total = len(query.reward)
        chunk = self.config.outer.chunk or total
        if chunk >= total:
            return self.gradient(self.meta, self.slow, supports, query)
        loss, gradients = query.reward.new_zeros(()), [torch.zeros_like(v) for v in self._learned(self.meta)]
        for rows in (slice(start, start + chunk) for start in range(0, total, chunk)):
            part = query.rows(rows)
            own_loss, own = self.gradient(self.meta, self.slow, [support.rows(rows) for support in supports], part)
            share = len(part.reward) / total
            loss += own_loss.detach() * share
            torch._foreach_add_(gradients, own, alpha=share)
        return loss, gradients

    def _gradient(self, meta: Meta, slow: Meta, supports: list[Transitions], query: Transitions) -> tuple[Tensor, list[Tensor]]:
        if self.config.outer.rule == "reptile":
            return self._reptile(meta, slow, supports, query)
        loss = self.meta_loss(meta, slow, supports, query)
        return loss, backward(loss, self._learned(meta))

    @torch.no_grad()
    def _reptile(self, meta: Meta, slow: Meta, supports: list[Transitions], query: Transitions) -> tuple[Tensor, list[Tensor]]:
        """Compute Reptile's gradient, theta - mean theta_i, where the query provides the last inner step of theta_i."""
        path = list(self.adapted(meta, supports, len(query.reward)))
        batch = prepare_each(self.learner, path[-1], self._target_params(slow, supports, query), query)
        rates, clip = meta["rates"], self.config.inner.clip
        gradients, losses = loss_gradients(self.learner, path[-1], list(rates), batch)
        moved = descended(path[-1], rates, gradients, clip)
        return losses.mean(), [(v - moved[k]).mean(0) for k, v in meta["init"].items()]

    # -- adaptation

    def adapt(self, task: Task, budget: Budget, rng: torch.Generator, family: Family | None = None) -> Iterator[Adapted]:
        """Adapt to M tasks from the learned initialisation; see :meth:`Algorithm.adapt`."""
        meta, inner = self.slow if self.config.outer.use_average else self.meta, self.config.inner
        params, adam = expand(detached(initial_params(meta)), num_tasks(task)), Adam() if inner.rule == "adam" else None
        parts = (family or self.family, task, budget, inner.support, inner.returns, rng)
        exploring, rates = self.explorer.policy if self.explorer else None, partial(rates_of_step, meta["rates"], config=inner)
        return adapt(self.objective, params, rates, *parts, adam, inner.clip, exploring)

    def learning(self) -> Learning | None:
        """Return the inner loop as functions of tensors; None where an explorer collects supports."""
        meta = self.slow if self.config.outer.use_average else self.meta
        return None if self.explorer else learning(self.objective, initial_params(meta), meta["rates"], self.config.inner)

    def adapt_from_scratch(self, task: Task, budget: Budget, rng: torch.Generator) -> Iterator[Adapted]:
        """Adapt fresh weights of the same learner, with Adam at the same budget."""
        params, inner = fresh(self.learner, num_tasks(task), rng), self.config.inner
        support = inner.support if self.explorer is None else inner.support.model_copy(update={"epsilon": 1.0})  # random
        return fine_tune(self.learner, params, inner.scratch_lr, self.family, task, budget, support, inner.returns, rng)

    @override
    def load_policy(self, state: State, task: Task) -> NetworkPolicy:
        return load_network_policy(self.learner, state)

    # -- saving

    @override
    def drop_replay(self) -> None:
        self.replay.clear()

    @override
    def weights(self) -> State:
        own = {"meta": detached_groups(self.meta), "slow": self.slow}
        return own | ({"explorer": self.explorer.weights()} if self.explorer else {})

    @override
    def load_weights(self, state: State) -> None:
        load_groups(self.meta, state["meta"])
        load_groups(self.slow, state["slow"])
        if self.explorer:
            self.explorer.load_weights(state["explorer"])


def initial_params(meta: Meta) -> Params:
    """Return the weights of one network before the first inner step, and all else that an inner step reads."""
    return meta["init"] | meta.get("measured", {})


Algo = MAML
