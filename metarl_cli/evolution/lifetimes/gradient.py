"""The lifetime of a few gradient steps on a few episodes: MAML's inner loop, for evolution.

    theta_{k+1} = theta_k - U(grad L_support(theta_k))          U: gradient descent, Adam, or a learned rule

The search optimises the initialisation and its rates for the return after these steps (ES-MAML, Song 2020,
arXiv:1910.01215). It needs no second derivatives, and the fitness credits the collection of support too.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from metarl_cli.adaptation.gradient import SupportConfig, adapted_names, collect_support, fading, support_gradients
from metarl_cli.adaptation.learning import Learning
from metarl_cli.config.base import Share, StrictModel
from metarl_cli.config.footprint import blank_transitions, peak, size_of
from metarl_cli.evolution.interfaces import Cost, Traits
from metarl_cli.evolution.lifetimes.traits import rates
from metarl_cli.experience.returns import ReturnsConfig
from metarl_cli.interfaces import Family, Learner, Params, Task, Transitions, device_of, num_tasks
from metarl_cli.networks.optimizers import SGD, Adam, InnerOptimizer, Learned
from metarl_cli.networks.stacked import first, repeat_per_task
from metarl_cli.progress import timed
from metarl_cli.spaces import Distribution


class Config(StrictModel):
    """The inner loop of a lifetime."""

    steps: int = Field(gt=0, description="K, gradient steps of a lifetime, after which fitness is measured")
    rule: Literal["sgd", "adam"] = Field(description="update rule, if the genome has no optimizer")
    lr: float = Field(gt=0, description="base learning rate")
    decay: Share = Field(description="factor of the rates at each adaptation step beyond those of a lifetime; 1: none")
    scope: Literal["all", "head", "context"] = Field(
        description="adapted weights: all, the head (ANIL), the context inputs (CAVIA)"
    )
    returns: ReturnsConfig = Field(description="return estimator for the support")
    support: SupportConfig


class Gradient:
    """The lifetime of K gradient steps on the support of a task.

    Raises:
        ValueError: if the network has no weights for ``scope``.
    """

    inherits = False
    traits = frozenset({"rates", "hyper", "optimizer"})

    def __init__(self, config: Config, learner: Learner, family: Family, device: torch.device):
        self.config, self.learner, self.family, self.steps, self.device = config, learner, family, config.steps, device
        adapted_names(learner.init(torch.Generator(device)), config.scope)
        self.default: Traits = {"hyper": {"lr": torch.tensor([config.lr], device=device)}}

    def without_genome(self) -> Gradient:
        """Return the same lifetime with rates that stay as they are after its end."""
        return Gradient(self.config.model_copy(update={"decay": 1.0}), self.learner, self.family, self.device)

    def cost(self, params: Params, copies: int) -> Cost:
        """Return the memory of the support, of the weights before and after a step, and of the gradient."""
        support, spec = self.config.support, self.family.spec
        batch = blank_transitions(spec, len(first(params)), support.steps, support.rollouts)
        collected = batch.reward.numel() * spec.bytes_per_transition
        names = adapted_names(params, self.config.scope)
        step = peak(lambda: support_gradients(self.learner, params, names, batch, self.config.returns))
        moments = 2 * (self.config.rule == "adam")
        return Cost((2 + moments) * size_of(params) + collected, max(step + size_of(params), collected))

    def sizes(self, key: str) -> dict[str, int]:
        """Return the sizes of the support, by their keys."""
        return self.config.support.sizes(f"{key}.support")

    def at(self, family: Family, episodes: int | None) -> Gradient:
        """Return the same lifetime in the environments of another family, with so many support episodes if given."""
        support = self.config.support
        if episodes is not None:
            support = support.model_copy(update={"rollouts": episodes})
        return Gradient(self.config.model_copy(update={"support": support}), self.learner, family, self.device)

    def learning(self, params: Params, traits: Traits) -> Learning | None:
        """Return the steps of one learner as functions of tensors; None for a rule that remembers, as Adam and learned ones do.

        Args:
            params: its weights ``[1, ...]``.
            traits: its traits, leading with ``[1]``.
        """
        config, learner = self.config, self.learner
        if config.rule == "adam" or "optimizer" in traits:
            return None
        names = adapted_names(params, config.scope)

        def step(number: Tensor, moved: Params, support: Transitions) -> Params:
            now, progress = params | moved, ((number - 1) / config.steps).clamp(max=1.0)
            factor = config.decay ** (number - config.steps).clamp(min=0).to(torch.float32)
            gradients = support_gradients(learner, now, names, support, config.returns)
            steps = rates(traits["hyper"]["lr"] * factor, traits.get("rates"), gradients, progress)
            after = SGD().step(now, gradients, steps)
            return {name: after[name] for name in names}

        def act(moved: Params, obs: Tensor) -> Distribution:
            return learner.policy(params | moved, obs)

        start = {name: params[name].clone() for name in names}
        return Learning(start, step, act, learner.actions, config.support, config.support.fresh)

    def begin(self, params: Params, traits: Traits, task: Task, rng: torch.Generator) -> Life:
        """Begin R lifetimes on the tasks ``[R]``."""
        return Life(self, params, traits, task, rng)


class Life:
    """R learners in the course of their lifetimes; before the first gradient step, ``params`` has one row per individual."""

    def __init__(self, lifetime: Gradient, params: Params, traits: Traits, task: Task, rng: torch.Generator):
        self.lifetime, self.params, self.traits, self.task, self.rng = lifetime, params, traits, task, rng
        self.rows, self.gradient_steps = num_tasks(task), 0
        self.env_steps = torch.zeros(self.rows, dtype=torch.long, device=device_of(task))
        self.support: Transitions | None = None
        rule: type[SGD] | type[Adam] = SGD if lifetime.config.rule == "sgd" else Adam
        self.optimizer: InnerOptimizer = Learned(traits["optimizer"]) if "optimizer" in traits else rule()

    @timed("learning")
    @torch.no_grad()
    def learn(self) -> None:
        """Take one gradient step of each learner."""
        lifetime, config = self.lifetime, self.lifetime.config
        self.params = repeat_per_task(self.params, self.rows)
        if self.support is None or config.support.fresh:
            self.support = collect_support(lifetime.learner, self.params, lifetime.family, self.task, config.support, self.rng)
            self.env_steps += self.support.weight.sum((1, 2)).long()
        names = adapted_names(self.params, config.scope)
        gradients = support_gradients(lifetime.learner, self.params, names, self.support, config.returns)
        progress = min(self.gradient_steps / config.steps, 1.0)
        base: Tensor = self.traits["hyper"]["lr"] * fading(self.gradient_steps + 1, config.steps, config.decay)
        steps = rates(base, self.traits.get("rates"), gradients, progress)
        self.params = self.optimizer.step(self.params, gradients, steps, progress)
        self.gradient_steps += 1


Lifetime = Gradient
