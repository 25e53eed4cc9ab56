"""The base of algorithms that adapt by a learned memory: the agent, its training tasks and its policy in a trial."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from metarl_cli.adaptation.memory import Agent, InputsConfig, MemoryPolicy
from metarl_cli.config.base import StrictModel
from metarl_cli.config.footprint import (
    BYTES,
    META,
    blank_network,
    blank_transitions,
    bytes_per_env,
    extrapolated,
    factor,
    peak,
    size_of,
    without_content,
)
from metarl_cli.errors import UserError
from metarl_cli.experience.rollout import rollout
from metarl_cli.experience.trials import Trials
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
    Step,
    Task,
)
from metarl_cli.networks.memory_config import MemoryConfig
from metarl_cli.networks.optimizers import backward
from metarl_cli.networks.stacked import detached, load_params
from metarl_cli.seeding import Streams, numpy_rng
from metarl_cli.spaces import Distribution

SHORT = (2, 4)  # steps of a trial, from whose memory that of longer ones follows


class TrialsConfig(StrictModel):
    """The memory of an algorithm, and its training trials."""

    episodes: int = Field(gt=0, description="episodes of a trial")
    tasks: int = Field(gt=0, description="tasks per iteration")
    envs: int = Field(gt=0, description="trials per task and iteration")
    fresh: bool = Field(description="draw new tasks for every iteration, instead of one set for the whole run")
    memory: MemoryConfig
    inputs: InputsConfig


@dataclass
class BlankEnv:
    """Environments without content: every step is the same."""

    obs: Tensor
    after: Step

    def step(self, action: Tensor) -> Step:
        """Return the one step."""
        return self.after


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
    params: Params
    stochastic: ClassVar[bool]  # whether its actions can be sampled

    def __init__(self, config: TrialsConfig, context: Context):
        self.config, self.context, self.family, self.device = config, context, context.family, context.device
        self.rng = Streams(context.seed, "init", "episodes", "exploration", "minibatch", device=context.device)
        self.agent = Agent(config.memory, config.inputs, context.family.spec, context.device)
        self._check_length(config.episodes)
        self.iteration = self.env_steps = 0
        self.task = self.draw_tasks()

    @override
    @classmethod
    def cost_of_building(cls, config: TrialsConfig, context: Context) -> Footprint:
        def with_layers(layers: int) -> float:
            memory = config.memory.model_copy(update={"layers": layers})
            return 2 * size_of(blank_network(Agent(memory, config.inputs, context.family.spec, context.device).memory))

        weights = extrapolated(with_layers, config.memory.layers)
        key = factor(algo__memory__size=config.memory.size, algo__memory__layers=config.memory.layers)
        return Footprint([Holding(key, weights)])

    @override
    def cost_of_adapting(self, tasks: int, episodes: int) -> float:
        step = blank_transitions(self.family.spec, tasks, episodes)
        obs, number, end = step.obs, step.reward, step.ended
        env = BlankEnv(obs, Step(obs, number, end, end, obs))

        def act() -> None:
            policy = self.policy(without_content(detached(self.tested())), number[:, 0], self.config.episodes)
            moments = rollout(env, policy, policy.start(episodes, torch.Generator()))
            for _ in range(2):  # a moment lives on during the next one
                moment = next(moments)  # noqa: F841

        with self.blanked():
            acting = peak(act)
        states = tasks * episodes * size_of(self.agent.memory.start(1, META))  # all that is known where acting needs content
        return max(acting, states) + tasks * episodes * bytes_per_env(self.family)

    def cost_of_trials(self, segments: int) -> Holding:
        """Return the most memory of the training trials of an iteration, with ``segments`` states of the memory each."""
        config, agent = self.config, self.agent
        steps = config.episodes * self.family.spec.horizon
        each = agent.inputs.size + agent.memory.size + self.family.spec.actions.size + 6
        bytes_each = steps * BYTES * each + segments * size_of(agent.memory.start(1, META))
        numbers = {"algo__tasks": config.tasks, "algo__envs": config.envs, "algo__episodes": config.episodes}
        key = factor(env__horizon=self.family.spec.horizon, **numbers)
        return Holding(key, config.tasks * config.envs * bytes_each)

    def blank_trials(self, steps: int, rows: int, segment: int) -> Trials:
        """Return R trials of T steps without content."""
        number = torch.zeros(steps, rows, device=META)
        action = blank_transitions(self.family.spec, steps, rows, 1).action[:, :, 0]
        inputs = torch.zeros(steps, rows, self.agent.inputs.size, device=META)
        start = self.agent.memory.start(rows, META)
        position = {"position": torch.zeros(rows)} if "position" in start else {}  # a transformer looks at it
        starts = {k: v.expand(-(-steps // segment), *v.shape) for k, v in (start | position).items()}
        end = number.bool()
        return Trials(inputs, action, number, end, end, number, number[..., None].expand(-1, -1, 2), inputs[..., :0], starts)

    def cost_of_loss(self, steps: int, loss: Callable[[int], Tensor]) -> float:
        """Return the bytes that a loss and its gradient take over ``steps`` steps of back-propagation.

        Args:
            steps: T.
            loss: computes it over so many steps; it is called with a few, from which the rest follows.
        """

        def take(n: int) -> float:
            return peak(lambda: backward(loss(n), list(self.params.values())))

        with self.blanked():
            return extrapolated(take, steps, SHORT)

    @contextmanager
    def blanked(self) -> Iterator[None]:
        """Let the agent and the weights be without content for the block."""
        agent, kept = self.agent, (self.params, self.agent.measured, self.agent.device)
        self.params, agent.measured = (without_content(params) for params in (self.params, agent.measured))
        agent.device = META
        try:
            yield
        finally:
            self.params, agent.measured, agent.device = kept

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
