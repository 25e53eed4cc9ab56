"""What algorithms with a memory share."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from metarl_cli.adaptation.memory import Agent, InputsConfig
from metarl_cli.config.base import StrictModel
from metarl_cli.errors import UserError
from metarl_cli.interfaces import Family, Params, State, Step, Task
from metarl_cli.networks.memory import MemoryConfig
from metarl_cli.seeding import Streams, numpy_rng


class TrialsConfig(StrictModel):
    """What algorithms with a memory share: the trials they learn from, and the memory."""

    episodes: int = Field(gt=0, description="episodes of a trial")
    tasks: int = Field(gt=0, description="tasks per iteration")
    envs: int = Field(gt=0, description="trials per task and iteration")
    fresh: bool = Field(description="draw new tasks for every iteration, or train on the first ones")
    memory: MemoryConfig
    inputs: InputsConfig


class MemoryAlgorithm:
    """What algorithms that learn a memory share, however they learn it: its parts, its tasks, and how it acts in a trial.

    Args:
        config: see :class:`TrialsConfig`.
        family: where tasks come from.
        iterations: length of the whole run, for the schedules.
        seed: the run's seed; every stream derives from it by name.
        device: where it computes.

    Raises:
        UserError: if a transformer cannot attend to a whole trial.
    """

    learns = True
    uses_learner = False
    adapts_by = "memory"

    def __init__(self, config: TrialsConfig, family: Family, iterations: int, seed: int, device: torch.device):
        self.config, self.family, self.iterations, self.seed, self.device = config, family, iterations, seed, device
        self.rng = Streams(seed, "init", "episodes", "exploration", "minibatch", device=device)
        self.agent = Agent(config.memory, config.inputs, family.spec, device)
        self.episodes = config.episodes
        self.iteration = self.env_steps = 0
        self.task = self.draw_tasks()

    def draw_tasks(self) -> Task:
        """The training tasks of this iteration."""
        name = str(self.iteration) if self.config.fresh else "all"
        return self.family.sample_tasks(self.config.tasks, "train", numpy_rng(self.seed, "tasks", "train", name))

    @property
    def episodes(self) -> int:
        """Episodes of a trial.

        Raises:
            UserError: when set to more than a transformer can attend to.
        """
        return self._episodes

    @episodes.setter
    def episodes(self, num: int) -> None:
        steps, context = num * self.agent.inputs.spec.horizon, self.agent.context
        if context is not None and steps > context:
            raise UserError(
                f"a trial of {num} episodes can take {steps} steps, more than algo.memory.context={context} of the transformer"
            )
        self._episodes = num

    def acting(self) -> Params:
        """The weights it is tested with."""
        raise NotImplementedError

    def act(self, params: Params, features: Tensor, inputs: Tensor, rng: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Choices and actions ``[R, ...]`` from features ``[R, H]`` and inputs ``[R, I]``; greedy without ``rng``."""
        raise NotImplementedError

    def begin(self, task: Task, num_envs: int, rng: torch.Generator, greedy: bool = True) -> State:
        """The memory of M x N trials, its tensors leading with [M * N]."""
        rows = len(next(iter(task.values()))) * num_envs
        return self.agent.begin(rows) | {"rng": None if greedy else rng}

    @torch.no_grad()
    def choose(self, memory: State, obs: Tensor) -> tuple[Tensor, State]:
        params = self.acting()
        inputs, _ = self.agent.see(memory, obs.flatten(0, 1), self.episodes)
        features, hidden = self.agent.memory.step(params, inputs, memory["hidden"])
        _, action = self.act(params, features, inputs, memory["rng"])
        return action.reshape(*obs.shape[:2], *action.shape[1:]), {**memory, "hidden": hidden}

    def observe(self, memory: State, obs: Tensor, action: Tensor, step: Step) -> State:
        rows = Step(*(x.flatten(0, 1) for x in step))
        return self.agent.observe(memory, obs.flatten(0, 1), action.flatten(0, 1), rows)
