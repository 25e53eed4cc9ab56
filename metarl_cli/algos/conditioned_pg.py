"""References of policy gradients: one policy for all tasks, by PPO, which is given nothing of a task, or its numbers.

| algorithm | value | what it is |
|---|---|---|
| robust_pg | | the best policy that cannot know the task (domain randomisation: Tobin 2017, arXiv:1703.06907) |
| oracle_pg | knowledge=true | universal policy: Yu 2017, arXiv:1702.02453 |

They are the 0 and the 1 of the normalised score of ``maml_pg`` and ``rl2``, as those of ``conditioned`` are for Q-learners.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from metarl_cli.adaptation.conditioning import ConditionedPolicy, History, check_given, join, knowledge_of, widened
from metarl_cli.adaptation.gradient import prepare_each
from metarl_cli.adaptation.support import RolloutsConfig, collect_rollouts
from metarl_cli.algos.on_policy import OnPolicy, OuterConfig, mean_return
from metarl_cli.config.base import StrictModel
from metarl_cli.config.footprint import LENGTHS, blank_transitions, extrapolated, factor, peak, size_of, without_content
from metarl_cli.experience.returns import ReturnsConfig
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
from metarl_cli.networks.stacked import detached, expand, load_params


class Config(StrictModel):
    """One policy for all tasks, which does not adapt."""

    tasks: int = Field(gt=0, description="training tasks of an iteration, drawn for each anew")
    knowledge: bool = Field(description="whether the policy is given the numbers that describe the task (an oracle)")
    rollouts: int = Field(gt=0, description="episodes of each task in an iteration")
    steps: int = Field(gt=0, description="longest part of an episode that is used, from its start [steps]")
    returns: ReturnsConfig = Field(description="discount and lambda of advantages")
    outer: OuterConfig


class ConditionedPG(OnPolicy):
    """One policy for all tasks.

    Args:
        config: see :class:`Config`.
        context: the family, the learner, the seed, the device and the iterations of the run.

    Raises:
        ValueError: if the learner is no policy gradient.
        UserError: if the policy is to be given numbers that the family does not have, or beside images.
    """

    adapts_by = "nothing"

    def __init__(self, config: Config, context: Context):
        super().__init__(config.tasks, config.outer, config.outer.rule == "trpo", context)
        self.config, self.history = config, History(0, self.family.spec)
        self.spec = widened(self.family.spec, (1.0,) * self.known(self.task).shape[1])
        self.learner = self.learner.rebuilt(self.spec)
        self.learned = self.learner.init(self.rng["init"])
        self.ready(list(self.learned.values()), "the gradient")

    def known(self, task: Task, family: Family | None = None) -> Tensor:
        """Return what the policy is given of each of M tasks, ``[M, C]``."""
        if self.config.knowledge:
            return knowledge_of(family or self.family, task)
        return torch.zeros(num_tasks(task), 0, device=self.context.device)

    @override
    def cost_of_training(self) -> Footprint:
        config, own = self.config, -(-self.num // self.processes.size)
        chunk = min(config.outer.chunk or own, own)
        params = without_content(self.learned)

        def update_of(length: int) -> float:
            of = blank_transitions(self.spec, chunk, length, config.rollouts)
            return peak(lambda: self.largest_part(params, [self.prepared(expand(detached(params), chunk), of)]))

        numbers = {"algo__rollouts": config.rollouts, "algo__steps": config.steps}
        held = config.tasks * config.rollouts * config.steps * self.spec.bytes_per_transition
        return Footprint(
            [Holding(factor(**numbers, algo__tasks=config.tasks), held), Holding("learner.network", 4 * size_of(self.learned))],
            [Holding(factor(**numbers, algo__outer__chunk=chunk), extrapolated(update_of, config.steps, LENGTHS))],
        )

    @override
    @torch.no_grad()
    def collect(self) -> tuple[list[Batch], dict[str, float]]:
        config, params, given = self.config, expand(detached(self.learned), self.num), self.known(self.task)
        rollouts = RolloutsConfig(rollouts=config.rollouts, steps=config.steps, epsilon=0.0, repeat=1)
        policy = ConditionedPolicy(self.learner, params, given, self.history)
        collected = collect_rollouts(policy, self.learner.actions, self.family, self.task, rollouts, self.rng["query"])
        self.env_steps += int(collected.weight.sum())
        beside = given[:, None, None].expand(*collected.reward.shape, -1)
        collected = collected._replace(obs=join(beside, collected.obs), next_obs=join(beside, collected.next_obs))
        batch = self.prepared(params, collected)
        return [batch], {"train/episode_return": mean_return(batch)}

    def prepared(self, params: Params, collected: Transitions) -> Batch:
        """Return experience with its advantages."""
        returns = self.config.returns
        return prepare_each(self.learner, params, params, collected, returns.gamma, returns.lambda_)

    @override
    def query_policies(self, learned: Params, batches: list[Batch]) -> Params:
        return expand(learned, len(batches[-1].experience.reward))

    @override
    def loss(self, learned: Params, batches: list[Batch]) -> tuple[Tensor, Tensor]:
        return self.surrogate(self.query_policies(learned, batches), batches[-1])

    def adapt(self, task: Task, budget: Budget, rng: torch.Generator, family: Family | None = None) -> Iterator[Adapted]:
        """Yield the policy, which does not adapt."""
        yield Adapted(0, 0, 0, ConditionedPolicy(self.learner, detached(self.learned), self.known(task, family), self.history))

    @override
    def load_policy(self, state: State, task: Task) -> ConditionedPolicy:
        check_given(state["given"], task, self.known(self.task).shape[1])
        return ConditionedPolicy(self.learner, detached(self.learned), state["given"], self.history)

    @override
    def weights(self) -> State:
        return {"params": detached(self.learned)}

    @override
    def load_weights(self, state: State) -> None:
        load_params(self.learned, state["params"])


Algo = ConditionedPG
