"""A family's hand-written rule: what a few lines that know the physics make of the same support as the other algorithms.

Many families have a rule (``Family.rule``), which reads a task from random steps, by least squares or by a sign, and then acts
by a formula: CartPole, MountainCar, Acrobot and Pendulum, the points that look for a target, the arms, trading, queues,
recommendation and car following. There is nothing to train. A learner that falls behind has not learned what can be known
from its support.

The policy before adaptation is the rule on an empty support, which takes the likeliest task for granted, or stays.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from typing_extensions import override

from metarl_cli.adaptation.inference import infer
from metarl_cli.adaptation.support import RolloutsConfig
from metarl_cli.algos.reference import Reference
from metarl_cli.config.base import StrictModel
from metarl_cli.interfaces import Adapted, Budget, Context, Family, Policy, State, Step, Task, Transitions, num_tasks
from metarl_cli.seeding import numpy_rng
from metarl_cli.spaces import Continuous


class Config(StrictModel):
    """The support that tasks are read from."""

    support: RolloutsConfig


class Rule(Reference):
    """The rule of a family.

    Args:
        config: see :class:`Config`.
        context: the family, the seed and the device.

    Raises:
        ValueError: for a family without a rule.
    """

    adapts_by = "inference"

    def __init__(self, config: Config, context: Context):
        self.config, self.family, self.device = config, context.family, context.device
        self.task = self.family.sample_tasks(1, "train", numpy_rng(context.seed, "tasks", "train"))
        RulePolicy(self.family, self.nothing(1))

    def nothing(self, num: int) -> Transitions:
        """Return an empty support of ``num`` tasks, ``[M, 0, 1, ...]``."""
        spec, shape = self.family.spec, (num, 0, 1)
        number = torch.zeros(shape, device=self.device)
        obs = torch.zeros(*shape, *spec.obs_shape, device=self.device)
        vector = isinstance(spec.actions, Continuous)
        action = torch.zeros(*shape, spec.actions.size, device=self.device) if vector else number.long()
        return Transitions(obs, action, number, obs, number.bool(), number.bool(), number)

    def adapt(self, task: Task, budget: Budget, rng: torch.Generator, family: Family | None = None) -> Iterator[Adapted]:
        """Yield the rule on no support, and on all supports so far after each."""

        def policy(support: Transitions | None) -> RulePolicy:
            return RulePolicy(self.family, self.nothing(num_tasks(task)) if support is None else support)

        actions = self.family.spec.actions
        return infer(policy, actions, family or self.family, task, budget, self.config.support, rng)

    @override
    def load_policy(self, state: State, task: Task) -> RulePolicy:
        support = Transitions(**state["support"])
        if support.obs.shape[3:] != self.family.spec.obs_shape or len(support.reward) != num_tasks(task):
            raise ValueError("the saved support is of other tasks or of another family")
        return RulePolicy(self.family, support)


class RulePolicy(Policy):
    """The rule of a family on a support, which is all that is saved of it.

    Raises:
        ValueError: for a family without a rule.
    """

    def __init__(self, family: Family, support: Transitions):
        rule = family.rule(support)
        if rule is None:
            raise ValueError("this family has no hand-written rule (its method rule returns none)")
        self.rule, self.support = rule, support

    @override
    def start(self, num_envs: int, rng: torch.Generator, greedy: bool = True) -> State:
        return self.rule.start(num_envs, rng, greedy)

    @override
    def act(self, state: State, obs: Tensor) -> tuple[Tensor, State]:
        return self.rule.act(state, obs)

    @override
    def observe(self, state: State, obs: Tensor, action: Tensor, step: Step) -> State:
        return self.rule.observe(state, obs, action, step)

    @override
    def state_dict(self) -> State:
        return {"support": self.support._asdict()}


Algo = Rule
