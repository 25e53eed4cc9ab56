"""Random Markov decision processes (Osband, Russo and Van Roy 2013, arXiv:1306.0940; Duan et al. 2016, arXiv:1611.02779).

Ten states and five actions with unknown transitions and rewards: the agent explores and exploits them within a trial.

Action space: 0 to A - 1. Observation, ``[..., S]``: the state, one-hot. Reward: the mean of state and action plus normal noise.
Start: state 0. Ends: at the horizon only (truncated).

Task parameters: transition, ``[M, S, A, S]``, each row uniform on the simplex, Dirichlet(1, ..., 1); reward, ``[M, S, A]``, the
expected rewards, normal. Best possible, at the paper's sizes: 21.83 an episode on average; random actions: 10.
A named task has one parameter, seed, a whole number: the process drawn with it.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from metarl_cli.envs.tabular import TabularConfig, TabularFamily, draw_cells
from metarl_cli.envs.tasks import Columns
from metarl_cli.interfaces import Task, device_of, dtype_of
from metarl_cli.spaces import Discrete, Spec


class Config(TabularConfig):
    """Sizes of the table and the distribution of its rewards."""

    states: int = Field(gt=0, description="S")
    actions: int = Field(gt=0, description="A")
    reward_mean: float = Field(description="average of the expected rewards")
    reward_std: float = Field(ge=0, description="standard deviation of the expected rewards")
    noise: float = Field(ge=0, description="standard deviation of a reward around its expectation")


class TabularMDP(TabularFamily):
    """Explore a random table; see the module's docstring."""

    stochastic = True
    parameters = {"seed": 0}

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        super().__init__(config.states, first_state=0, device=device)
        self.config = config
        self.spec = Spec(obs_shape=(config.states,), actions=Discrete(config.actions), horizon=config.horizon)

    @override
    def draw(self, num: int, split: str, rng: np.random.Generator) -> Columns:
        states, actions = self.config.states, self.config.actions
        unit = rng.random((num, states, actions, states + 2))  # row by row, so that a task does not depend on num
        exponential = -np.log1p(-unit)  # S of them divided by their sum are Dirichlet(1, ..., 1)
        transition = exponential[..., :states] / exponential[..., :states].sum(-1, keepdims=True)
        normal = np.sqrt(2 * exponential[..., -2]) * np.cos(2 * np.pi * unit[..., -1])  # Box and Muller 1958
        return {"transition": transition, "reward": self.config.reward_mean + self.config.reward_std * normal}

    @override
    def check(self, name: str, value: float) -> None:
        super().check(name, value)
        if value < 0 or value % 1:
            raise ValueError(f"seed must be a whole number, not below 0, got {value:g}")

    @override
    def named_task(self, values: dict[str, float]) -> Task:
        super().named_task(values)  # checks them; its tensor does not hold every whole number
        seed = int(values.get("seed", self.parameters["seed"]))
        return self.sample_tasks(1, "train", np.random.default_rng(seed))

    @override
    def knowledge(self, task: Task) -> Tensor:
        """Return the whole table ``[M, S A S + S A]``: probabilities times S and rewards, both less their averages."""
        rewards = (task["reward"] - self.config.reward_mean) / (self.config.reward_std or 1.0)
        return torch.cat([(self.config.states * task["transition"] - 1).flatten(1), rewards.flatten(1)], -1)

    @override
    def constants(self, task: Task) -> Task:
        return task | {"below": task["transition"].cumsum(-1)}

    @override
    def dynamics(self, state: Tensor, action: Tensor, task: Task, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        row = torch.arange(len(action), device=action.device)[:, None]
        now = (row, 0, state[..., 0], action)
        below, mean = task["below"][now], task["reward"][now]  # [M, N, S], [M, N]
        chance = torch.rand(*action.shape, 1, generator=rng, dtype=mean.dtype, device=mean.device)
        noise = torch.randn(mean.shape, generator=rng, dtype=mean.dtype, device=mean.device)
        after = (below <= chance).sum(-1, keepdim=True)
        after = after.clamp(max=self.num_states - 1)  # rounded probabilities may add up to less than 1
        return after, mean + self.config.noise * noise, torch.zeros_like(action, dtype=torch.bool)

    @override
    def elsewhere(self, task: Task, rng: torch.Generator) -> Task:
        """Return processes with the same rewards and new transitions."""
        unit = torch.rand(task["transition"].shape, generator=rng, dtype=dtype_of(task), device=device_of(task))
        exponential = -torch.log1p(-unit)
        return task | {"transition": exponential / exponential.sum(-1, keepdim=True)}

    @override
    def model(self, task: Task) -> tuple[Tensor, Tensor]:
        return task["transition"], task["reward"]

    def render(self, obs: Tensor, task: Task) -> Image.Image:
        """Draw the states as a row of squares, the current one blue."""
        return draw_cells(self.num_states, 1, {"royalblue": int(obs.argmax())})


Family = TabularMDP
