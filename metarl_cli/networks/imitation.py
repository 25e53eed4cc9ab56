"""Networks that explain demonstrations: one of what is wanted (inverse reinforcement learning), one of what is done (cloning).

    reward    r(features of a place), and whoever demonstrates is soft-optimal for it: -log π_r (maximum causal entropy IRL)
    policy    π(a | features around a state), which copies; what is around is told by where actions lead

The network of a policy is convolutional where the states are a grid: a layer joins a state's units with those expected after
each action, ``h'(s) = relu(W_0 h(s) + Σ_a W_a Σ_s' P(s' | s, a) h(s'))``. Both networks are told the transition probabilities.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import override

from metarl_cli.config.base import StrictModel
from metarl_cli.envs.planning import Process
from metarl_cli.interfaces import Params
from metarl_cli.networks.layers import layers, linear


class ModelConfig(StrictModel):
    """What a network tells of a task, and its layers."""

    of: Literal["reward", "policy"] = Field(description="what it tells: what is wanted (inverse RL), or what to do (cloning)")
    hidden: list[Annotated[int, Field(gt=0)]] = Field(description="units of each hidden layer; none: linear in the features")

    @model_validator(mode="after")
    def _sees_beyond_its_place(self) -> ModelConfig:
        if self.of == "policy" and not self.hidden:
            raise ValueError("model.hidden=[] sees nothing but the place; a policy needs hidden layers")
        return self


class Solution(NamedTuple):
    """What a network says of M tasks."""

    table: Tensor  # [M, H, S, A] probabilities of the actions to take
    reward: Tensor | None  # [M, X] of places; None where nothing is said of it


class Model(ABC):
    """A network that explains demonstrations; functions of the weights ``[M, ...]`` of M tasks."""

    @abstractmethod
    def init(self, rng: torch.Generator) -> Params:
        """Draw fresh weights of one network."""

    @abstractmethod
    def choices(self, params: Params, process: Process) -> Tensor:
        """Return the log-probabilities ``[M, H, S, A]`` of the actions of whoever demonstrates."""

    @abstractmethod
    def solve(self, params: Params, process: Process) -> Solution:
        """Return what to do in the environments."""


class RewardModel(Model):
    """A reward of each place, and the soft-optimal policy for it.

    Args:
        hidden: units of each hidden layer.
        features: F, of a place.
    """

    def __init__(self, hidden: list[int], features: int):
        self.sizes = [features, *hidden]

    @override
    def init(self, rng: torch.Generator) -> Params:
        return layers("reward", self.sizes, rng) | linear("reward.out", 1, self.sizes[-1], 0.3, rng)

    def rewards(self, params: Params, process: Process) -> Tensor:
        """Return the rewards of places ``[M, X]``."""
        x = process.features
        for i in range(len(self.sizes) - 1):
            x = apply_linear(params, f"reward.{i}", x).relu()
        return apply_linear(params, "reward.out", x)[..., 0]

    @override
    def choices(self, params: Params, process: Process) -> Tensor:
        return process.choices(self.rewards(params, process))

    @override
    def solve(self, params: Params, process: Process) -> Solution:
        reward = self.rewards(params, process)
        return Solution(process.plan(reward), reward)


class PolicyModel(Model):
    """A policy, the same at every step of an episode.

    Args:
        hidden: units of each hidden layer; each sees one step further.
        features: F, of all places of a state together.
        actions: A.
    """

    def __init__(self, hidden: list[int], features: int, actions: int):
        self.sizes, self.actions = [features, *hidden], actions

    @override
    def init(self, rng: torch.Generator) -> Params:
        first, *rest = self.sizes[1:]
        params = layers("policy", self.sizes[:2], rng)
        for i, units in enumerate(rest, 1):
            params |= linear(f"policy.{i}", units, self._seen(first), 2**0.5, rng)
            first = units
        return params | linear("policy.out", self.actions, self._seen(first), 0.1, rng)

    def _seen(self, units: int) -> int:
        return (1 + self.actions) * units

    def _around(self, x: Tensor, process: Process) -> Tensor:
        """Return the units ``[M, S, (1 + A) H]`` of each state and those expected after each action, of units ``[M, S, H]``."""
        num, states, actions, _ = process.transition.shape
        led = torch.bmm(process.transition.reshape(num, states * actions, states), x).view(num, states, -1)
        return torch.cat([x, led], -1)

    @override
    def choices(self, params: Params, process: Process) -> Tensor:
        num, states = process.transition.shape[:2]
        x = apply_linear(params, "policy.0", process.features.reshape(num, states, -1)).relu()
        for i in range(1, len(self.sizes) - 1):
            x = apply_linear(params, f"policy.{i}", self._around(x, process)).relu()
        logits = apply_linear(params, "policy.out", self._around(x, process))
        return logits.log_softmax(-1)[:, None].expand(-1, process.horizon, -1, -1)

    @override
    def solve(self, params: Params, process: Process) -> Solution:
        return Solution(self.choices(params, process).exp(), None)


def build_model(config: ModelConfig, process: Process) -> Model:
    """Return the network for environments like those of a process."""
    _, states, actions, _ = process.transition.shape
    _, places, features = process.features.shape
    if config.of == "reward":
        return RewardModel(config.hidden, features)
    return PolicyModel(config.hidden, places // states * features, actions)


def apply_linear(params: Params, name: str, x: Tensor) -> Tensor:
    """Return the outputs ``[M, X, O]`` of the linear layers of M networks, for inputs ``[M, X, I]``."""
    return torch.baddbmm(params[f"{name}.bias"][:, None], x, params[f"{name}.weight"].mT)
