"""MAML over policy gradients: learn initial weights from which a policy adapts in a few gradient steps.

Model-Agnostic Meta-Learning (Finn 2017, arXiv:1703.03400), on-policy inside and outside:

    inner   theta_i = theta - alpha * grad L_i(theta; support_i)        K times; each support by the policy so far
    outer   min over theta, alpha of  sum_i L^PPO(theta_i; query_i)     the query by the adapted policy

L_i is the policy gradient of the learner; the outer loss is clipped as PPO's (Schulman 2017, arXiv:1707.06347), which takes
several steps on the same experience, to a divergence of about ``stop_kl``. TRPO takes one step in its place.

Variants are values of the configuration, not code:

| variant | value | paper |
|---|---|---|
| losses of MAML++ | outer.every_step=true, here with equal weights | Antoniou 2019, arXiv:1810.09502 |
| ProMP | outer.inner_kl=0.0005, inner.rates=fixed | Rothfuss 2019, arXiv:1810.06784 |
| E-MAML, with learner.estimator=log | outer.credit=true, inner.rates=fixed | Stadie 2018, arXiv:1803.01118 |
| MAML with TRPO | outer.rule=trpo, inner.rates=fixed | Finn 2017 |
| FOMAML | inner.order=1 | Finn 2017 |
| Reptile | outer.rule=reptile, inner.rates=fixed | Nichol 2018, arXiv:1803.02999 |
| Meta-SGD | inner.rates=parameter | Li 2017, arXiv:1707.09835 |
| ANIL | inner.scope=head | Raghu 2020, arXiv:1909.09157 |
| pre-training | inner.steps=0 | one policy for all tasks, adapted only at meta-test time |

Differs from MAML by default: an outer step is PPO's in place of TRPO's, and rates are learned for every tensor. The support
enters the meta-gradient as data. How it was collected gets the credit that the ratios of the learner's loss hold
(``estimator``), or with ``outer.credit`` that of the score function, log p(support) times the return after adaptation.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import override

from metarl_cli.adaptation.gradient import (
    InnerConfig,
    NetworkPolicy,
    adapt,
    collect_support,
    cost_of_steps,
    descended,
    fine_tune,
    initial_rates,
    learning,
    load_network_policy,
    loss_gradients,
    prepare_each,
    rates_of_step,
)
from metarl_cli.adaptation.learning import Learning
from metarl_cli.algos.on_policy import OnPolicy, StepsConfig, mean_return
from metarl_cli.config.base import StrictModel
from metarl_cli.config.footprint import LENGTHS, blank_transitions, extrapolated, factor, peak, size_of, without_content
from metarl_cli.interfaces import (
    Adapted,
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
from metarl_cli.networks.optimizers import Adam
from metarl_cli.networks.stacked import detached, detached_groups, expand, fresh, load_groups


class OuterConfig(StepsConfig):
    """The outer loop, which learns the initialisation and the rates."""

    rule: Literal["ppo", "trpo", "reptile"] = Field(
        description="ppo: steps of Adam on the clipped loss; trpo: one within a trust region; reptile: to the adapted weights"
    )
    every_step: bool = Field(description="loss after every inner step instead of the last only (MAML++)")
    credit: bool = Field(description="credit how a support was collected with the return after adaptation (E-MAML)")
    inner_kl: float = Field(ge=0, description="weight of the divergence of the policies that collected the supports (ProMP)")


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
        outer = self.outer
        if outer.every_step and (outer.rule != "ppo" or outer.credit):
            raise ValueError(
                "outer.every_step=true needs outer.rule=ppo and outer.credit=false, which are not of the last inner step alone"
            )
        if outer.rule == "reptile" and (self.inner.rates != "fixed" or outer.epochs > 1 or outer.inner_kl):
            raise ValueError(
                "outer.rule=reptile moves to the adapted weights: it needs inner.rates=fixed, outer.epochs=1, outer.inner_kl=0"
            )
        if outer.credit and (outer.rule == "reptile" or self.inner.steps == 0 or self.inner.order == 1):
            raise ValueError("outer.credit is part of MAML's gradient: it needs inner.steps above 0, inner.order=2, no reptile")
        if outer.credit and (self.tasks == 1 or (outer.rule == "ppo" and outer.epochs > 1)):
            raise ValueError(
                "outer.credit compares tasks, and is right for the policies that acted: it needs tasks above 1, "
                "and outer.rule=trpo or outer.epochs=1"
            )
        return self


Meta = dict[str, Params]  # {"init": weights, "rates": learning rates of the adapted weights}


class MAMLPG(OnPolicy):
    """Meta-learner of an initialisation (and learning rates) for a policy gradient.

    Args:
        config: see :class:`Config`.
        context: the family, the learner, the seed, the device and the iterations of the run.

    Raises:
        ValueError: if the learner is no policy gradient, or its loss credits how a support was collected already.
    """

    adapts_by = "gradient"
    outer: OuterConfig

    def __init__(self, config: Config, context: Context):
        super().__init__(config.tasks, config.outer, config.outer.rule == "trpo", context)
        self.config = config
        if config.outer.credit and (estimator := self.learner.config.estimator) != "log":
            raise ValueError(f"outer.credit would count twice what the loss of learner.estimator={estimator} holds; use log")
        init = self.learner.init(self.rng["init"])
        self.learned: Meta = {"init": init, "rates": initial_rates(init, config.inner)}
        rates = self.learned["rates"].values() if config.inner.rates != "fixed" else ()
        self.ready([*init.values(), *rates], "the meta-gradient")
        self.trained_steps = config.inner.steps + (config.outer.rule == "reptile") or None

    @override
    def cost_of_training(self) -> Footprint:
        config, spec, support = self.config, self.family.spec, self.config.inner.support
        own = -(-config.tasks // self.processes.size)
        chunk, each = min(config.outer.chunk or own, own), spec.bytes_per_transition
        meta = without_content(self.learned)
        params = expand(detached(meta["init"]), chunk)

        def blank(length: int, rollouts: int) -> Batch:
            of = blank_transitions(spec, chunk, length, rollouts)
            return prepare_each(self.learner, params, params, of, config.inner.returns.gamma, config.inner.returns.lambda_)

        def update_of(length: int) -> float:
            given, query = blank(length, support.rollouts), self._credited(blank(length, config.query))
            return extrapolated(lambda num: peak(lambda: self.largest_part(meta, [*[given] * num, query])), config.inner.steps)

        update = extrapolated(update_of, support.steps, LENGTHS)
        episodes = config.inner.steps * support.rollouts + config.query
        numbers = support.sizes("algo.inner.support") | {"algo.query": config.query, "algo.inner.steps": config.inner.steps}
        held = config.tasks * episodes * support.steps * each
        collected = Holding(factor(**numbers, algo__tasks=config.tasks), held)
        return Footprint(
            [collected, Holding("learner.network", 4 * size_of(self.learned["init"]))],
            [Holding(factor(**numbers, algo__outer__chunk=chunk), update)],
        )

    @override
    def cost_of_adapting(self, tasks: int, episodes: int) -> float:
        inner = self.config.inner
        return cost_of_steps(self.learner, self.learned["init"], self.family, tasks, inner.support, inner.returns, episodes)

    @override
    def numbers_of_adapting(self) -> dict[str, int]:
        return self.config.inner.support.sizes("algo.inner.support")

    @override
    @torch.no_grad()
    def collect(self) -> tuple[list[Batch], dict[str, float]]:
        """Collect the support of every task for each inner step, adapt, and collect the query with the adapted policies."""
        config, batches = self.config, list[Batch]()
        params = expand(detached(self.learned["init"]), config.tasks)
        for k in range(config.inner.steps + 1):
            last = k == config.inner.steps
            support = config.inner.support if not last else config.inner.support.model_copy(update={"rollouts": config.query})
            rng = self.rng["query" if last else "support"]
            collected = collect_support(self.learner, params, self.family, self.task, support, rng)
            self.env_steps += int(collected.weight.sum())
            batches.append(self._prepared(params, collected))
            if not last:
                params = self._step(k + 1, params, self.learned, batches[-1])
        batches[-1] = self._credited(batches[-1])
        rates = torch.cat([v.detach().flatten() for v in self.learned["rates"].values()])
        metrics = {"train/return_before": mean_return(batches[0]), "train/return_after": mean_return(batches[-1])}
        return batches, metrics | {"train/inner_lr": float(rates.mean())}

    def _prepared(self, params: Params, collected: Transitions) -> Batch:
        returns = self.config.inner.returns
        return prepare_each(self.learner, params, params, collected, returns.gamma, returns.lambda_)

    def _credited(self, query: Batch) -> Batch:
        """Return the query with the credit of each task's supports ``[M]``: its return, above that of the other tasks.

        A return is that of an episode, in the unit of the loss: per step, and in deviations of the advantages of all tasks.
        """
        if not self.outer.credit:
            return query
        reward, weight = query.experience.reward, query.experience.weight
        returns, num = (reward * weight).sum((1, 2)) / reward.shape[2], len(reward)
        above = (returns - returns.mean()) * num / (num - 1)  # the mean of the others depends on no choice of this task
        unit = weight.sum((1, 2)) / reward.shape[2] * query.signal["deviation"].square().mean().sqrt()
        return Batch(query.experience, query.signal | {"credit": above / unit})

    # -- the meta-gradient

    def _step(self, step: int, params: Params, meta: Meta, batch: Batch) -> Params:
        """Take an inner step, counted from 1."""
        inner, rates = self.config.inner, rates_of_step(meta["rates"], step, self.config.inner)
        second = inner.order == 2 and torch.is_grad_enabled()
        gradients, _ = loss_gradients(self.learner, params, list(rates), batch, create_graph=second)
        return descended(params, rates, gradients, inner.clip)

    def path(self, learned: Meta, batches: list[Batch]) -> Iterator[Params]:
        """Yield the policies ``[M, ...]`` that act in each of the batches, differentiable in ``learned``."""
        params = expand(learned["init"], len(batches[-1].experience.reward))
        yield params
        for step, support in enumerate(batches[:-1], 1):
            params = self._step(step, params, learned, support)
            yield params

    @override
    def query_policies(self, learned: Meta, batches: list[Batch]) -> Params:
        *_, params = self.path(learned, batches)
        return params

    @override
    def loss(self, learned: Meta, batches: list[Batch]) -> tuple[Tensor, Tensor]:
        """Return the mean loss of the adapted policies, differentiable in ``learned``, and how far they have moved."""
        path = list(zip(self.path(learned, batches), batches, strict=True))  # policies, and the experience of each
        before, query = path[:-1], batches[-1]
        scored = path[1:] if self.outer.every_step and before else path[-1:]
        losses, divergences = zip(*(self.surrogate(policies, experience) for policies, experience in scored), strict=True)
        loss, divergence = torch.stack(losses).mean(), torch.stack(divergences).mean()
        for policies, support in before:
            if self.outer.inner_kl:
                loss = loss + self.outer.inner_kl * self.moved(policies, support)[1].mean()
            if self.outer.credit:
                chosen = (self.learner.log_prob(policies, support.experience) * support.experience.weight).sum((1, 2))
                loss = loss - (query.signal["credit"] * chosen).mean()
        return loss, divergence

    @override
    def _gradient(self, learned: Meta, batches: list[Batch]) -> tuple[Tensor, Tensor, list[Tensor]]:
        return self._reptile(learned, batches) if self.outer.rule == "reptile" else super()._gradient(learned, batches)

    @torch.no_grad()
    def _reptile(self, meta: Meta, batches: list[Batch]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Compute Reptile's gradient, theta - mean theta_i, where the query provides the last inner step of theta_i."""
        before = self.query_policies(meta, batches)
        params = self._step(self.config.inner.steps, before, meta, batches[-1])
        loss, divergence = self.surrogate(before, batches[-1])
        return loss, divergence, [(value - params[name]).mean(0) for name, value in meta["init"].items()]

    # -- adaptation

    def adapt(self, task: Task, budget: Budget, rng: torch.Generator, family: Family | None = None) -> Iterator[Adapted]:
        """Adapt to M tasks from the learned initialisation; see :meth:`Algorithm.adapt`."""
        inner, params = self.config.inner, expand(detached(self.learned["init"]), num_tasks(task))
        rates = partial(rates_of_step, detached(self.learned["rates"]), config=inner)
        parts = (family or self.family, task, budget, inner.support, inner.returns, rng)
        return adapt(self.learner, params, rates, *parts, Adam() if inner.rule == "adam" else None, inner.clip)

    def learning(self) -> Learning | None:
        """Return the inner loop as functions of tensors."""
        return learning(self.learner, self.learned["init"], self.learned["rates"], self.config.inner)

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
        return {"meta": detached_groups(self.learned)}

    @override
    def load_weights(self, state: State) -> None:
        load_groups(self.learned, state["meta"])


Algo = MAMLPG
