"""The base of algorithms that adapt by a learned memory: the agent, its training tasks and its policy in a trial."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from metarl_cli.adaptation.memory import Agent, InputsConfig, MemoryPolicy
from metarl_cli.config.base import StrictModel
from metarl_cli.errors import UserError
from metarl_cli.interfaces import Adapted, Algorithm, Budget, Context, Distribution, Family, Params, State, Task
from metarl_cli.networks.memory_config import MemoryConfig
from metarl_cli.networks.stacked import detached, load_params
from metarl_cli.seeding import Streams, numpy_rng


class TrialsConfig(StrictModel):
    """The memory of an algorithm, and its training trials."""

    episodes: int = Field(gt=0, description="episodes of a trial")
    tasks: int = Field(gt=0, description="tasks per iteration")
    envs: int = Field(gt=0, description="trials per task and iteration")
    fresh: bool = Field(description="draw new tasks for every iteration, instead of one set for the whole run")
    memory: MemoryConfig
    inputs: InputsConfig


class MemoryAlgorithm(Algorithm):
    """The base of algorithms that adapt by a learned memory.

    Args:
        config: see :class:`TrialsConfig`.
        context: the family, the seed, the device and the iterations of the run; the memory replaces the learner.

    Raises:
        UserError: if a transformer cannot attend to a whole trial.
    """

    uses_learner = False
    adapts_by = "memory"
    stochastic: ClassVar[bool]  # whether its actions can be sampled

    def __init__(self, config: TrialsConfig, context: Context):
        self.config, self.context, self.family, self.device = config, context, context.family, context.device
        self.rng = Streams(context.seed, "init", "episodes", "exploration", "minibatch", device=context.device)
        self.agent = Agent(config.memory, config.inputs, context.family.spec, context.device)
        self._check_length(config.episodes)
        self.iteration = self.env_steps = 0
        self.task = self.draw_tasks()

    def _check_length(self, episodes: int) -> None:
        """Raise UserError for a trial longer than a transformer can attend to."""
        steps, longest = episodes * self.family.spec.horizon, self.agent.context
        if longest is not None and steps > longest:
            raise UserError(
                f"a trial of {episodes} episodes can take {steps} steps, "
                f"more than algo.memory.context={longest} of the transformer"
            )

    def draw_tasks(self) -> Task:
        """Draw the training tasks of this iteration."""
        name = str(self.iteration) if self.config.fresh else "all"
        return self.family.sample_tasks(self.config.tasks, "train", numpy_rng(self.context.seed, "tasks", "train", name))

    @property
    def progress(self) -> float:
        """Return the completed share of the run."""
        return self.iteration / self.context.iterations

    @abstractmethod
    def head(self, params: Params, features: Tensor, inputs: Tensor) -> Distribution:
        """Return the policies of R trials from features ``[R, H]`` and inputs ``[R, I]``."""

    def policy(self, params: Params, horizons: Tensor, episodes: int) -> MemoryPolicy:
        """Return the policy with these weights, in trials of ``episodes`` episodes on M tasks, ``horizons [M]``."""

        def head(features: Tensor, inputs: Tensor) -> Distribution:
            return self.head(params, features, inputs)

        return MemoryPolicy(self.agent, params, head, horizons, episodes, self.stochastic)

    @abstractmethod
    def tested(self) -> Params:
        """Return the weights of the policy on new tasks."""

    def adapt(self, task: Task, budget: Budget, rng: torch.Generator, family: Family | None = None) -> Iterator[Adapted]:
        """Yield one policy, whose memory adapts over the episodes of a trial.

        Raises:
            UserError: if a transformer cannot attend to a whole trial.
        """
        episodes = self.config.episodes if budget.episodes is None else budget.episodes
        self._check_length(episodes)
        horizons = (family or self.family).horizons(task)
        yield Adapted(0, 0, 0, self.policy(detached(self.tested()), horizons, episodes), episodes)

    @override
    def load_policy(self, state: State, task: Task) -> MemoryPolicy:
        params = {name: torch.empty_like(value) for name, value in detached(self.tested()).items()}
        load_params(params, state["params"])
        return self.policy(params, state["horizons"], int(state["episodes"]))
