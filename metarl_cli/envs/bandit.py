"""Multi-armed bandits (Duan et al. 2016, arXiv:1611.02779, section 3.1): find the best of k arms.

One pull is one episode, so a trial of n pulls is n episodes on one task; an agent can only learn from memory across them.

Action space: the arm, 0 to k - 1. Observation, ``[..., 1]``: always 1, there is one state. Reward: 1 with the arm's own
probability, else 0 (bernoulli), or the arm's mean plus normal noise (gaussian). Start: the one state. Ends: at the horizon
only (truncated).

Task parameters: mean, ``[M, k]``, the expected reward of each arm, drawn independently from the prior; named arm_0 to
arm_{k-1}. Best possible: the greatest mean; on average k/(k+1) a pull where they are uniform in [0, 1].

The paper has Bernoulli arms uniform in [0, 1] with k of 5, 10, 50 and n of 10, 100, 500; Gaussian arms are for comparison with
the literature on Thompson sampling.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import override

from metarl_cli.envs.tabular import TabularConfig, TabularFamily
from metarl_cli.envs.tasks import Columns
from metarl_cli.interfaces import Task
from metarl_cli.spaces import Discrete, Spec


class Config(TabularConfig):
    """The arms, their rewards, and the prior of their means."""

    arms: int = Field(gt=0, le=10_000, description="k, the number of arms")
    rewards: Literal["bernoulli", "gaussian"] = Field(description="distribution of a reward, given the arm's mean")
    noise: float = Field(ge=0, description="standard deviation of a gaussian reward; 0 for bernoulli, which has its own")
    prior: Literal["uniform", "normal"] = Field(description="distribution of an arm's mean")
    location: float = Field(description="the least mean of a uniform prior, the average of a normal one")
    scale: float = Field(gt=0, description="width of a uniform prior, standard deviation of a normal one")

    @model_validator(mode="after")
    def _bernoulli_means_are_probabilities(self) -> Config:
        if self.rewards == "bernoulli":
            if self.prior != "uniform" or self.location < 0 or self.location + self.scale > 1:
                raise ValueError("bernoulli rewards need means within [0, 1]: prior uniform, location and scale within it")
            if self.noise:
                raise ValueError("bernoulli rewards have no noise to set")
        return self


class Bandit(TabularFamily):
    """Pull arms; see the module's docstring."""

    stochastic = True

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        super().__init__(num_states=1, first_state=0, device=device)
        self.config = config
        self.spec = Spec(obs_shape=(1,), actions=Discrete(config.arms), horizon=config.horizon)
        average = config.location + config.scale / 2 if config.prior == "uniform" else config.location
        self.parameters = {f"arm_{i}": average for i in range(config.arms)}

    @override
    def draw(self, num: int, split: str, rng: np.random.Generator) -> Columns:
        shape = (num, self.config.arms)
        unit = rng.random(shape) if self.config.prior == "uniform" else rng.standard_normal(shape)
        return {"mean": self.config.location + self.config.scale * unit}

    @override
    def check(self, name: str, value: float) -> None:
        super().check(name, value)
        if self.config.rewards == "bernoulli" and not 0 <= value <= 1:
            raise ValueError(f"{name} is a probability, got {value:g}")

    @override
    def named_task(self, values: dict[str, float]) -> Task:
        return {"mean": torch.stack(list(super().named_task(values).values()), -1)}

    @override
    def knowledge(self, task: Task) -> Tensor:
        """Return the arms' means ``[M, k]``: -1 and 1 at the ends of a uniform prior, standard scores of a normal one."""
        unit = (task["mean"] - self.config.location) / self.config.scale
        return 2 * unit - 1 if self.config.prior == "uniform" else unit

    @override
    def dynamics(self, state: Tensor, action: Tensor, task: Task, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        mean = task["mean"].expand(*action.shape, -1).gather(-1, action[..., None])[..., 0]
        if self.config.rewards == "bernoulli":
            reward = torch.bernoulli(mean, generator=rng)
        else:
            noise = torch.randn(mean.shape, generator=rng, dtype=mean.dtype, device=mean.device)
            reward = mean + self.config.noise * noise
        return state, reward, torch.zeros_like(action, dtype=torch.bool)

    @override
    def model(self, task: Task) -> tuple[Tensor, Tensor]:
        reward = task["mean"][:, None]
        return torch.ones_like(reward)[..., None], reward

    def render(self, obs: Tensor, task: Task) -> Image.Image:
        """Draw the arms' means as bars, 300 x 100 pixels, the best one green; the line is zero."""
        mean, width, height = task["mean"].flatten().tolist(), 300, 100
        image = Image.new("RGB", (width, height), "white")
        draw = ImageDraw.Draw(image)
        low, high = min(0.0, *mean), max(1.0, *mean)
        zero, step = (height - 1) * high / (high - low), width / len(mean)
        for arm, value in enumerate(mean):
            top = (height - 1) * (high - value) / (high - low)
            colour = "seagreen" if value == max(mean) else "royalblue"
            draw.rectangle([arm * step, min(top, zero), (arm + 0.8) * step, max(top, zero)], fill=colour)
        draw.line([(0, zero), (width, zero)], fill="black")
        return image


Family = Bandit
