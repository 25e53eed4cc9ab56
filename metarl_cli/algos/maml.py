"""MAML over DQN: learn the weights from which a Q-network adapts in a few gradient steps.

Model-Agnostic Meta-Learning (Finn 2017, arXiv:1703.03400) with Q-learning inside and outside:

    inner   theta_i = theta - alpha * grad L_DQN(theta; support_i)                      K times, grad holds the targets fixed
    outer   min over theta, alpha of  sum_i L_DQN(theta_i; query_i),   targets of the query from theta^-_i
    target  theta^-_i = the slow copy of (theta, alpha), adapted on the same support_i

The adapted network is a conditional Q-function Q(s, a | support): support is collected by the un-adapted policy, query by
the adapted one, and kept in a replay per task, so that many outer updates are taken per collection.

Variants are values of the configuration, not code:

| variant | value | paper |
|---|---|---|
| FOMAML | inner.order=1 | Finn 2017 |
| Meta-SGD | inner.rates=parameter | Li 2017, arXiv:1707.09835 |
| ANIL | inner.scope=head | Raghu 2020, arXiv:1909.09157 |
| CAVIA | inner.scope=context | Zintgraf 2019, arXiv:1810.03642 |
| Reptile | outer.rule=reptile | Nichol 2018, arXiv:1803.02999 |
| MAML++ losses and rates | outer.every_step, inner.rates=tensor | Antoniou 2019, arXiv:1810.09502 |
| pre-training | inner.steps=0 | one network over all tasks, adapted only when tested |

Differs from the papers: off-policy. The support enters the meta-gradient as data (no credit for how it was collected), and
the query is replayed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.func import grad_and_value, vmap

from metarl_cli.adaptation.gradient import (
    InnerConfig,
    adapt,
    adapt_from_scratch,
    collect_support,
    expand,
    initial_rates,
    inner_step,
)
from metarl_cli.config.base import Share, StrictModel
from metarl_cli.experience.exploration import explorer
from metarl_cli.experience.replay import Replay
from metarl_cli.experience.rollout import collect
from metarl_cli.interfaces import Adaptation, Env, Family, Learner, Params, State, Task, Transitions
from metarl_cli.networks.optimizers import Adam
from metarl_cli.networks.q_network import load_params
from metarl_cli.seeding import Streams, numpy_rng


class QueryConfig(StrictModel):
    """The adapted policies' experience."""

    envs: int = Field(gt=0, description="environments per task; their episodes go on across iterations")
    steps: int = Field(gt=0, description="steps per iteration in each environment")
    epsilon: list[Share] = Field(min_length=2, max_length=2, description="share of random actions, first and last")
    epsilon_iterations: int = Field(gt=0, description="iterations over which epsilon falls linearly")
    repeat: int = Field(gt=0, description="steps a random action lasts")
    capacity: int = Field(gt=0, description="replay per task [transitions]")


class OuterConfig(StrictModel):
    """How the initialisation and the rates are learned."""

    rule: Literal["maml", "reptile"] = Field(description="the gradient of the query loss, or the displacement by it")
    updates: int = Field(gt=0, description="outer updates per iteration")
    tasks: int = Field(gt=0, description="tasks per outer update")
    batch: int = Field(gt=0, description="query transitions per task and update")
    lr: float = Field(gt=0, description="Adam's learning rate")
    final_lr: float = Field(ge=0, description="the rate's last value, as a share of the first (cosine over the run)")
    clip: float = Field(gt=0, description="largest norm of the meta-gradient")
    polyak: float = Field(gt=0, le=1, description="step of the slow copy towards the weights, per update")
    every_step: bool = Field(description="query loss after every inner step, not only the last (MAML++)")
    adapted_target: bool = Field(description="adapt the slow copy on the support before it makes the query's targets")
    use_average: bool = Field(description="test with the slow copy, a running average of the weights")


class Config(StrictModel):
    """MAML-DQN and its kin."""

    tasks: int = Field(gt=0, description="training tasks, drawn once")
    inner: InnerConfig
    query: QueryConfig
    outer: OuterConfig

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        if self.outer.tasks > self.tasks:
            raise ValueError(f"outer.tasks ({self.outer.tasks}) must not be above tasks ({self.tasks})")
        if self.inner.rule == "adam" and self.inner.steps > 0:
            raise ValueError("inner.rule=adam is for fine-tuning alone: it needs inner.steps=0")
        if self.inner.steps == 0 and self.inner.rates != "fixed":
            raise ValueError("inner.steps=0 learns no rates: it needs inner.rates=fixed")
        if self.outer.rule == "reptile" and self.inner.rates != "fixed":
            raise ValueError("outer.rule=reptile learns no rates: it needs inner.rates=fixed")
        if self.query.envs * self.query.steps > self.query.capacity:
            raise ValueError("query.capacity must hold at least the query.envs x query.steps of one iteration")
        return self


Meta = dict[str, Params]  # {"init": weights, "rates": learning rates of the adapted ones}


class MAML:
    """Meta-learner of an initialisation (and learning rates) for a learner.

    Args:
        config: see :class:`Config`.
        learner: how one task is learned.
        family: where tasks come from.
        iterations: length of the whole run, for the schedules.
        seed: the run's seed; every stream derives from it by name.
    """

    learns = True
    uses_learner = True
    adapts_by = "gradient"

    def __init__(self, config: Config, learner: Learner, family: Family, iterations: int, seed: int, device: torch.device):
        self.config, self.learner, self.family, self.iterations = config, learner, family, iterations
        self.rng = Streams(seed, "init", "support", "query", "exploration", "minibatch", device=device)
        self.task = family.sample_tasks(config.tasks, "train", numpy_rng(seed, "tasks", "train"))
        init = learner.init(self.rng["init"])
        self.meta: Meta = {"init": init, "rates": initial_rates(init, config.inner)}
        self.slow: Meta = {group: {k: v.clone() for k, v in params.items()} for group, params in self.meta.items()}
        self.learned_groups = ["init"] if config.inner.rates == "fixed" else ["init", "rates"]
        self.optimizer = torch.optim.Adam([v.requires_grad_() for v in self._learned()], lr=config.outer.lr)
        self.env: Env = family.make(self.task, config.query.envs, self.rng["query"])
        self.replay = Replay(config.tasks, config.query.capacity, device)
        self.iteration = 0
        self.env_steps = 0

    def _learned(self) -> list[Tensor]:
        """What the outer optimiser moves."""
        return [v for group in self.learned_groups for v in self.meta[group].values()]

    # -- one meta-iteration

    def train_step(self) -> dict[str, float]:
        """Collect support, adapt, collect query with the adapted policies; then many outer updates."""
        config = self.config
        supports, metrics = self._collect()
        for group in self.optimizer.param_groups:
            progress = self.iteration / self.iterations
            cosine = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
            group["lr"] = config.outer.lr * (config.outer.final_lr + (1 - config.outer.final_lr) * cosine)
        losses, norms = [], []
        for _ in range(config.outer.updates):
            order = torch.randperm(config.tasks, generator=self.rng["minibatch"], device=self.rng["minibatch"].device)
            rows = order[: config.outer.tasks]
            query = self.replay.sample(rows, config.outer.batch, self.rng["minibatch"])
            loss, norm = self._update([Transitions(*(x[rows] for x in s)) for s in supports], query)
            losses.append(loss)
            norms.append(norm)
        self.iteration += 1
        metrics["loss/query"] = float(torch.stack(losses).mean())
        metrics["grad/norm"] = float(torch.stack(norms).mean())
        metrics["train/lr"] = self.optimizer.param_groups[0]["lr"]
        rates = torch.cat([v.detach().flatten() for v in self.meta["rates"].values()])
        metrics["train/inner_lr"] = float(rates.mean())
        return metrics

    @torch.no_grad()
    def _collect(self) -> tuple[list[Transitions], dict[str, float]]:
        """Support of every task for each inner step, and query experience into the replay."""
        config, inner = self.config, self.config.inner
        params, supports = expand(self.meta["init"], config.tasks), []
        for k in range(inner.steps):
            if k == 0 or inner.support.fresh:
                support = collect_support(self.learner, params, self.family, self.task, inner.support, self.rng["support"])
                self.env_steps += int(support.weight.sum())
            supports.append(support)
            params = inner_step(self.learner, params, self.meta["rates"], support, inner.returns)
        start, end = config.query.epsilon
        epsilon = start + (end - start) * min(self.iteration / config.query.epsilon_iterations, 1.0)
        policy = explorer(self.learner, params, epsilon, config.query.repeat, self.rng["exploration"])
        query = collect(self.env, policy, config.query.steps)
        self.replay.add(query)
        self.env_steps += query.reward.numel()
        ends = float(query.ended.sum())
        return supports, {
            "train/epsilon": epsilon,
            "train/reward": float(query.reward.mean()),
            "train/episode_length": query.reward.numel() / max(ends, 1.0),
        }

    def _update(self, supports: list[Transitions], query: Transitions) -> tuple[Tensor, Tensor]:
        """One step of the outer optimiser; returns the query loss and the norm of the meta-gradient."""
        outer = self.config.outer
        loss, gradients = self.meta_gradient(supports, query)
        weights = self._learned()
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(weights, outer.clip)
        self.optimizer.step()
        with torch.no_grad():
            for group in self.learned_groups:
                slow, fast = self.slow[group], self.meta[group]
                torch._foreach_lerp_(list(slow.values()), [fast[k] for k in slow], outer.polyak)
        return loss.detach(), norm

    # -- the meta-gradient

    def adapted(self, meta: Meta, supports: list[Transitions], num_tasks: int, order: int = 2) -> Iterator[Params]:
        """Weights ``[M, ...]`` before the first and after each inner step."""
        params = expand(meta["init"], num_tasks)
        yield params
        for support in supports:
            params = inner_step(self.learner, params, meta["rates"], support, self.config.inner.returns, order)
            yield params

    @torch.no_grad()
    def _target_params(self, slow: Meta, supports: list[Transitions], query: Transitions) -> Params:
        """The target network of each task: the slow copy, adapted on the same support."""
        *_, target_params = self.adapted(slow, supports if self.config.outer.adapted_target else [], len(query.reward))
        return target_params

    def meta_loss(self, meta: Meta, slow: Meta, supports: list[Transitions], query: Transitions) -> Tensor:
        """The mean query loss of the adapted weights; scalar, differentiable in ``meta``."""
        config = self.config
        target_params = self._target_params(slow, supports, query)
        path = list(self.adapted(meta, supports, len(query.reward), config.inner.order))
        scored = path[1:] if config.outer.every_step and supports else path[-1:]
        losses = []
        for params in scored:
            with torch.no_grad():
                target = vmap(self.learner.targets)(params, target_params, query)
            losses.append(vmap(self.learner.loss)(params, query, target).mean())
        return torch.stack(losses).mean()

    def meta_gradient(self, supports: list[Transitions], query: Transitions) -> tuple[Tensor, list[Tensor]]:
        """The query loss and the gradient of each learned tensor: ``init``, then ``rates`` where they are learned."""
        if self.config.outer.rule == "reptile":
            return self._reptile(supports, query)
        loss = self.meta_loss(self.meta, self.slow, supports, query)
        return loss, list(torch.autograd.grad(loss, self._learned()))

    @torch.no_grad()
    def _reptile(self, supports: list[Transitions], query: Transitions) -> tuple[Tensor, list[Tensor]]:
        """Reptile's gradient, theta - mean theta_i, where the query makes the last inner step of theta_i."""
        path = list(self.adapted(self.meta, supports, len(query.reward)))
        target = vmap(self.learner.targets)(path[-1], self._target_params(self.slow, supports, query), query)
        gradients, losses = vmap(grad_and_value(self.learner.loss))(path[-1], query, target)
        rates = self.meta["rates"]
        moved = {k: v - rates[k] * gradients[k] if k in rates else v for k, v in path[-1].items()}
        return losses.mean(), [v - moved[k].mean(0) for k, v in self.meta["init"].items()]

    # -- adaptation

    def adapt(self, task: Task, steps: int, rng: torch.Generator) -> Iterator[Adaptation]:
        """Adapt to M tasks from the learned initialisation; the algorithm itself is left as it was."""
        meta = self.slow if self.config.outer.use_average else self.meta
        params = expand({k: v.detach() for k, v in meta["init"].items()}, len(next(iter(task.values()))))
        inner = self.config.inner
        adam = Adam() if inner.rule == "adam" else None
        return adapt(self.learner, params, meta["rates"], self.family, task, steps, inner.support, inner.returns, rng, adam)

    def adapt_from_scratch(self, task: Task, steps: int, rng: torch.Generator) -> Iterator[Adaptation]:
        """The same learner from fresh weights at the same budget."""
        inner = self.config.inner
        return adapt_from_scratch(self.learner, self.family, task, steps, inner.support, inner.returns, inner.scratch_lr, rng)

    def act(self, params: Params, obs: Tensor) -> Tensor:
        return self.learner.act(params, obs, epsilon=0.0)

    def learned(self) -> None:
        return None

    # -- saving

    def weights(self) -> State:
        return {
            "meta": {group: {k: v.detach() for k, v in params.items()} for group, params in self.meta.items()},
            "slow": self.slow,
        }

    def load_weights(self, state: State) -> None:
        with torch.no_grad():
            for mine, saved in ((self.meta, state["meta"]), (self.slow, state["slow"])):
                for group, params in mine.items():
                    load_params(params, saved[group])

    def state_dict(self) -> State:
        return {
            "weights": self.weights(),
            "optimizer": self.optimizer.state_dict(),
            "env": self.env.state_dict(),
            "replay": self.replay.state_dict(),
            "rng": self.rng.state_dict(),
            "iteration": self.iteration,
            "env_steps": self.env_steps,
        }

    def load_state_dict(self, state: State) -> None:
        self.load_weights(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.load_state_dict(state["rng"])
        self.env.load_state_dict(state["env"])
        self.replay.load_state_dict(state["replay"])
        self.iteration, self.env_steps = state["iteration"], state["env_steps"]


Algo = MAML
