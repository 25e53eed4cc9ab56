"""DQN, each task from scratch: M networks learn M tasks at once, as rows of one tensor (Mnih 2015,
doi:10.1038/nature14236).

The baseline that shares nothing between tasks. What it learned in training are the networks of its own tasks; a task
it has not seen starts from fresh weights.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field, model_validator
from torch.func import grad_and_value, vmap

from metarl_cli.adaptation.gradient import SupportConfig, adapt_from_scratch
from metarl_cli.config.base import Share, StrictModel
from metarl_cli.experience.exploration import explorer
from metarl_cli.experience.replay import Replay
from metarl_cli.experience.returns import Returns
from metarl_cli.experience.rollout import collect
from metarl_cli.interfaces import Adaptation, Family, Learner, Params, State, Task
from metarl_cli.networks.q_network import load_params
from metarl_cli.seeding import Streams, numpy_rng


class TargetConfig(StrictModel):
    """How the target network follows: w^- <- w^- + polyak * (w - w^-), every so many updates."""

    every: int = Field(gt=0, description="gradient updates between moves of the target network")
    polyak: float = Field(gt=0, le=1, description="size of the move; 1 copies the weights (Mnih 2015)")


class Config(StrictModel):
    """Plain DQN on M tasks."""

    tasks: int = Field(gt=0, description="tasks learned at once, each with its own network")
    envs: int = Field(gt=0, description="environments per task")
    steps: int = Field(gt=0, description="steps per iteration in each environment")
    updates: int = Field(gt=0, description="gradient updates per iteration")
    batch: int = Field(gt=0, description="transitions per update and task")
    warmup: int = Field(ge=0, description="iterations that only collect")
    capacity: int = Field(gt=0, description="replay per task [transitions]")
    lr: float = Field(gt=0, description="Adam's learning rate")
    final_lr: float = Field(ge=0, description="the rate's last value, as a share of the first (linear over the run)")
    clip: float = Field(gt=0, description="largest norm of each task's gradient")
    epsilon: list[Share] = Field(min_length=2, max_length=2, description="share of random actions, first and last")
    epsilon_iterations: int = Field(gt=0, description="iterations over which epsilon falls linearly")
    repeat: int = Field(gt=0, description="steps a random action lasts")
    target: TargetConfig
    returns: Returns = Field(description="what the support teaches when adapting to a task")
    scratch_lr: float = Field(gt=0, description="Adam's rate when adapting to a task")
    support: SupportConfig

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        if self.envs * self.steps > self.capacity:
            raise ValueError("capacity must hold at least the envs x steps of one iteration")
        return self


class Scratch:
    """M independent DQNs.

    Args:
        config: see :class:`Config`.
        learner: how one task is learned.
        family: where tasks come from.
        iterations: length of the whole run, for the schedule.
        seed: the run's seed; every stream derives from it by name.
    """

    learns = True
    uses_learner = True
    adapts_by = "gradient"

    def __init__(self, config: Config, learner: Learner, family: Family, iterations: int, seed: int, device: torch.device):
        self.config, self.learner, self.family, self.iterations = config, learner, family, iterations
        self.rng = Streams(seed, "init", "query", "exploration", "minibatch", device=device)
        self.task = family.sample_tasks(config.tasks, "train", numpy_rng(seed, "tasks", "train"))
        networks = [learner.init(self.rng["init"]) for _ in range(config.tasks)]
        self.params = {k: torch.stack([n[k] for n in networks]).requires_grad_() for k in networks[0]}  # [M, ...]
        self.target_params = {k: v.detach().clone() for k, v in self.params.items()}
        self.optimizer = torch.optim.Adam(list(self.params.values()), lr=config.lr)  # elementwise: each row its own
        self.env = family.make(self.task, config.envs, self.rng["query"])
        self.replay = Replay(config.tasks, config.capacity, device)
        self.rows = torch.arange(config.tasks, device=device)
        self.iteration = self.updates = self.env_steps = 0

    def train_step(self) -> dict[str, float]:
        """Collect with every network on its own task, then learn from replay."""
        config = self.config
        start, end = config.epsilon
        epsilon = start + (end - start) * min(self.iteration / config.epsilon_iterations, 1.0)
        policy = explorer(self.learner, self.params, epsilon, config.repeat, self.rng["exploration"])
        experience = collect(self.env, policy, config.steps)
        self.replay.add(experience)
        self.env_steps += experience.reward.numel()
        metrics = {
            "train/epsilon": epsilon,
            "train/reward": float(experience.reward.mean()),
            "train/episode_length": experience.reward.numel() / max(float(experience.ended.sum()), 1.0),
        }
        if self.iteration >= config.warmup:
            progress = min(self.iteration / self.iterations, 1.0)
            self.optimizer.param_groups[0]["lr"] = config.lr * (1 + (config.final_lr - 1) * progress)
            results = [self._update() for _ in range(config.updates)]
            metrics["loss/query"] = sum(loss for loss, _ in results) / len(results)
            metrics["grad/norm"] = sum(norm for _, norm in results) / len(results)
            metrics["train/lr"] = self.optimizer.param_groups[0]["lr"]
        self.iteration += 1
        return metrics

    @torch.no_grad()
    def _update(self) -> tuple[float, float]:
        """One gradient step of every network on its own minibatch; mean loss and gradient norm."""
        config, learner = self.config, self.learner
        params = {k: v.detach() for k, v in self.params.items()}
        batch = self.replay.sample(self.rows, config.batch, self.rng["minibatch"])
        target = vmap(learner.targets)(params, self.target_params, batch)
        gradients, losses = vmap(grad_and_value(learner.loss))(params, batch, target)
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients.values()]).norm(dim=0)  # [M]
        shrink = (config.clip / norms.clamp(min=1e-12)).clamp(max=1.0)
        for name, weight in self.params.items():
            weight.grad = gradients[name] * shrink.reshape(-1, *[1] * (weight.dim() - 1))
        self.optimizer.step()
        self.updates += 1
        if self.updates % config.target.every == 0:
            torch._foreach_lerp_(list(self.target_params.values()), list(self.params.values()), config.target.polyak)
        return float(losses.mean()), float(norms.mean())

    def adapt(self, task: Task, steps: int, rng: torch.Generator) -> Iterator[Adaptation]:
        """Start M fresh networks: DQN brings nothing to a new task."""
        return self.adapt_from_scratch(task, steps, rng)

    def adapt_from_scratch(self, task: Task, steps: int, rng: torch.Generator) -> Iterator[Adaptation]:
        """M fresh networks, a few Adam steps on the support of each task."""
        config = self.config
        return adapt_from_scratch(
            self.learner, self.family, task, steps, config.support, config.returns, config.scratch_lr, rng
        )

    def act(self, params: Params, obs: torch.Tensor) -> torch.Tensor:
        return self.learner.act(params, obs, epsilon=0.0)

    def learned(self) -> tuple[Task, Params]:
        return self.task, {k: v.detach() for k, v in self.params.items()}

    def weights(self) -> State:
        return {"params": {k: v.detach() for k, v in self.params.items()}}

    def load_weights(self, state: State) -> None:
        with torch.no_grad():
            load_params(self.params, state["params"])

    def state_dict(self) -> State:
        return {
            "weights": self.weights(),
            "target_params": self.target_params,
            "optimizer": self.optimizer.state_dict(),
            "env": self.env.state_dict(),
            "replay": self.replay.state_dict(),
            "rng": self.rng.state_dict(),
            "iteration": self.iteration,
            "updates": self.updates,
            "env_steps": self.env_steps,
        }

    def load_state_dict(self, state: State) -> None:
        self.load_weights(state["weights"])
        load_params(self.target_params, state["target_params"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.load_state_dict(state["rng"])
        self.env.load_state_dict(state["env"])
        self.replay.load_state_dict(state["replay"])
        self.iteration, self.updates = state["iteration"], state["updates"]
        self.env_steps = state["env_steps"]


Algo = Scratch
