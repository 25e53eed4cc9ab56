"""DQN from scratch: M independent networks learn M tasks, batched as rows of one tensor (Mnih 2015, doi:10.1038/nature14236).

This is the baseline that shares nothing between tasks. Training produces one network for each training task; adaptation to
an unseen task starts from fresh weights.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import override

from metarl_cli.adaptation.gradient import (
    NetworkPolicy,
    SupportConfig,
    cost_of_steps,
    fine_tune,
    load_network_policy,
    loss_gradients,
    prepare_each,
)
from metarl_cli.config.base import Share, StrictModel
from metarl_cli.config.footprint import (
    COPIES,
    blank_network,
    blank_transitions,
    bytes_per_env,
    factor,
    peak,
    size_of,
    without_content,
)
from metarl_cli.experience.episodes import Episodes
from metarl_cli.experience.exploration import EpsilonGreedy
from metarl_cli.experience.replay import Replay
from metarl_cli.experience.returns import ReturnsConfig
from metarl_cli.experience.rollout import collect
from metarl_cli.experience.schedules import linear
from metarl_cli.interfaces import (
    Adapted,
    Algorithm,
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
from metarl_cli.networks.optimizers import clip_rows
from metarl_cli.networks.stacked import first, flatten, fresh, load_params, select_rows, unflatten
from metarl_cli.networks.target import TargetConfig, follow
from metarl_cli.progress import timed
from metarl_cli.seeding import Streams, numpy_rng


class Config(StrictModel):
    """Independent DQN on M tasks."""

    tasks: int = Field(gt=0, description="training tasks, each with its own network")
    envs: int = Field(gt=0, description="environments per task")
    steps: int = Field(gt=0, description="steps per iteration in each environment")
    updates: int = Field(gt=0, description="gradient updates per iteration")
    batch: int = Field(gt=0, description="transitions per update and task")
    warmup: int = Field(ge=0, description="first iterations, which only collect")
    capacity: int = Field(gt=0, description="replay per task [transitions]")
    lr: float = Field(gt=0, description="Adam's learning rate")
    final_lr: float = Field(ge=0, description="final learning rate, as a share of lr (linear over the run)")
    clip: float = Field(gt=0, description="largest norm of each task's gradient")
    epsilon: list[Share] = Field(min_length=2, max_length=2, description="share of random actions, initial and final")
    epsilon_iterations: int = Field(gt=0, description="iterations over which epsilon falls linearly")
    repeat: int = Field(gt=0, description="steps for which a random action is repeated")
    target: TargetConfig
    returns: ReturnsConfig = Field(description="return estimator for adaptation to a task")
    scratch_lr: float = Field(gt=0, description="Adam's learning rate for adaptation to a task")
    support: SupportConfig

    @model_validator(mode="after")
    def _check_capacity(self) -> Config:
        if self.envs * self.steps > self.capacity:
            raise ValueError("capacity must hold at least the envs x steps of one iteration")
        return self


class IndependentDQN(Algorithm):
    """M independent DQNs.

    Args:
        config: see :class:`Config`.
        context: the family, the learner, the seed, the device and the iterations of the run.
    """

    adapts_by = "gradient"
    replays = True
    own_tasks = True
    saved = ("optimizer", "rng", "env", "replay", "episodes")
    counters = ("iteration", "updates", "env_steps")

    def __init__(self, config: Config, context: Context):
        self.config, self.context, self.learner, self.family = config, context, context.learner, context.family
        self.rng = Streams(context.seed, "init", "query", "exploration", "minibatch", device=context.device)
        self.task = self.family.sample_tasks(config.tasks, "train", numpy_rng(context.seed, "tasks", "train"))
        networks = fresh(self.learner, config.tasks, self.rng["init"])
        self.flat = flatten(networks)  # [M, n] all weights, so that each part of an update is one operation
        self.params = unflatten(self.flat, networks)  # [M, ...]
        self.target_params = {name: value.clone() for name, value in networks.items()}
        self.optimizer = torch.optim.Adam([self.flat], lr=config.lr, fused=True)  # elementwise, so rows stay independent
        self.env = self.family.make(self.task, config.envs, self.rng["query"])
        self.replay = Replay(config.tasks, config.capacity, context.device)
        self.episodes = Episodes()
        self.rows = torch.arange(config.tasks, device=context.device)
        self.processes, self.shares = context.processes, config.tasks
        self.own = self.processes.shard(config.tasks)  # the networks that this process updates
        # views of the weights, which change with them
        self.own_params, self.own_target_params = (select_rows(p, self.own) for p in (self.params, self.target_params))
        self.flat.grad = self.gradients = torch.zeros_like(self.flat)  # 0 for the networks of other processes
        self.gradient = compiled(self._gradient, "the gradient of dqn", context.compile)
        self.iteration = self.updates = self.env_steps = 0

    @override
    @classmethod
    def cost_of_building(cls, config: Config, context: Context) -> Footprint:
        networks = Holding("algo.tasks", 4 * config.tasks * size_of(blank_network(context.learner)))
        return Footprint([networks, Holding("algo.envs", config.tasks * config.envs * bytes_per_env(context.family))])

    @override
    def cost_of_training(self) -> Footprint:
        config, spec = self.config, self.family.spec
        replay = config.tasks * config.capacity * spec.bytes_per_transition
        params, target = without_content((self.own_params, self.own_target_params))
        own = len(first(params))
        update = peak(lambda: self._gradient(params, target, blank_transitions(spec, own, 1, config.batch)))
        drawn = own * config.batch * spec.bytes_per_transition
        capacity = factor(algo__capacity=config.capacity, algo__tasks=config.tasks)
        window = 2 * config.tasks * config.envs * config.steps * spec.bytes_per_transition
        return Footprint(
            [Holding(capacity, replay), Holding("algo.tasks", 2 * size_of(self.flat))],
            [
                Holding(factor(algo__batch=config.batch, algo__tasks=own), update + 2 * drawn),
                Holding(capacity, COPIES * replay),
                Holding(factor(algo__steps=config.steps, algo__envs=config.envs, algo__tasks=config.tasks), window),
            ],
        )

    @override
    def cost_of_adapting(self, tasks: int, episodes: int) -> float:
        config, network = self.config, {name: value[0] for name, value in self.params.items()}
        return cost_of_steps(self.learner, network, self.family, tasks, config.support, config.returns, episodes)

    @override
    def numbers_of_adapting(self) -> dict[str, int]:
        return self.config.support.sizes("algo.support")

    def train_step(self) -> dict[str, float]:
        """Collect experience with every network on its own task, then update the networks from replay."""
        config = self.config
        epsilon = linear(config.epsilon, self.iteration / config.epsilon_iterations)
        policy = EpsilonGreedy(NetworkPolicy(self.learner, self.params), self.learner.actions, epsilon, config.repeat)
        experience = collect(self.env, policy, policy.start(config.envs, self.rng["exploration"]), config.steps)
        self.replay.add(experience)
        self.env_steps += experience.reward.numel()
        metrics = {"train/epsilon": epsilon, **self.episodes.summary(experience)}
        if self.iteration >= config.warmup:
            share = linear((1.0, config.final_lr), self.iteration / self.context.iterations)
            self.optimizer.param_groups[0]["lr"] = config.lr * share
            measured = torch.stack([torch.stack(self._update()) for _ in range(config.updates)]).mean(0)
            self._gather()
            metrics["loss/query"], metrics["grad/norm"] = self.processes.sum([measured])[0].tolist()
            metrics["train/lr"] = self.optimizer.param_groups[0]["lr"]
        self.iteration += 1
        return metrics

    @timed("update")
    @torch.no_grad()
    def _update(self) -> tuple[Tensor, Tensor]:
        """Update the networks of this process on their own minibatches.

        Returns their part of the mean loss and of the mean gradient norm over all networks.
        """
        config = self.config
        experience = self.replay.sample(self.rows, config.batch, self.rng["minibatch"], self.own)
        self.gradients[self.own], loss, norm = self.gradient(self.own_params, self.own_target_params, experience)
        self.optimizer.step()
        self.updates += 1
        if self.updates % config.target.every == 0:
            follow(self.target_params, self.params, config.target.polyak)
        return loss, norm

    def _gather(self) -> None:
        """Take over the networks that other processes have updated, and what their updates go on from."""
        moments = self.optimizer.state[self.flat]
        self.processes.gather([self.flat, *self.target_params.values(), moments["exp_avg"], moments["exp_avg_sq"]])

    def _gradient(self, params: Params, slow: Params, experience: Transitions) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the clipped gradients ``[M, n]``; also return the loss and the norm, as parts of their means."""
        batch = prepare_each(self.learner, params, slow, experience)
        gradients, losses = loss_gradients(self.learner, params, list(params), batch)
        clipped, norms = clip_rows(flatten(gradients), self.config.clip)
        return clipped, losses.sum() / self.config.tasks, norms.sum() / self.config.tasks

    def adapt(self, task: Task, budget: Budget, rng: torch.Generator, family: Family | None = None) -> Iterator[Adapted]:
        """Fine-tune the trained networks on the training tasks, and fresh networks on any other tasks."""
        if task is self.task:
            return self._fine_tune(self.params, task, budget, rng, family)
        return self._fine_tune(fresh(self.learner, num_tasks(task), rng), task, budget, rng, family)

    def adapt_from_scratch(self, task: Task, budget: Budget, rng: torch.Generator) -> Iterator[Adapted]:
        """Take Adam steps from M fresh networks on the support of each task."""
        return self._fine_tune(fresh(self.learner, num_tasks(task), rng), task, budget, rng)

    def _fine_tune(
        self, params: Params, task: Task, budget: Budget, rng: torch.Generator, family: Family | None = None
    ) -> Iterator[Adapted]:
        config, family = self.config, family or self.family
        return fine_tune(self.learner, params, config.scratch_lr, family, task, budget, config.support, config.returns, rng)

    @override
    def load_policy(self, state: State, task: Task) -> NetworkPolicy:
        return load_network_policy(self.learner, state)

    @override
    def drop_replay(self) -> None:
        self.replay.clear()

    @override
    def weights(self) -> State:
        return {"params": {name: value.clone() for name, value in self.params.items()}}

    @override
    def load_weights(self, state: State) -> None:
        load_params(self.params, state["params"])

    @override
    def state_dict(self) -> State:
        return super().state_dict() | {"target_params": self.target_params}

    @override
    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        load_params(self.target_params, state["target_params"])


Algo = IndependentDQN
