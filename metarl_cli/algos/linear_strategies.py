"""Strategies for linear contextual bandits: the baselines of meta-learning on recommendations, which know no other user.

They keep, for each trial, the posterior of a linear regression of the rewards on the features of what was shown: the item's
features, its satiation, and a constant. With the precision ``A = λ I + Σ x xᵀ`` and the mean ``θ = A⁻¹ Σ r x``, they show the
item of the greatest index:

linucb            x·θ + c √(xᵀ A⁻¹ x) (Li 2010, arXiv:1003.0146, algorithm 1 with one θ for all items)
linear_thompson   x·θ~, with θ~ normal around θ with the covariance v² A⁻¹ (Agrawal and Goyal 2013, arXiv:1209.3352)

There is nothing to train: a training step is a no-op.

Differs from the papers: satiation is a feature, so that the strategies can see that a user is bored; they do not plan ahead.
Clicks are regressed on linearly, as in the papers, though their chance is logistic.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from metarl_cli.algos.reference import Reference
from metarl_cli.config.base import StrictModel
from metarl_cli.envs.recommendation import Recommendation
from metarl_cli.interfaces import Adapted, Budget, Context, Family, Policy, State, Step, Task, num_tasks
from metarl_cli.seeding import numpy_rng


class Config(StrictModel):
    """The index and its constants."""

    episodes: int = Field(gt=0, description="episodes of a trial")
    prior: float = Field(gt=0, description="λ, the precision of the prior of θ")
    bonus: float = Field(ge=0, description="c, the weight of LinUCB's confidence radius; 0: none")
    spread: float = Field(ge=0, description="v, the scale of Thompson's samples; 0: no samples")


class Strategy(Reference):
    """The strategy that shows the item of the greatest index.

    Args:
        config: see :class:`Config`.
        context: the family, the seed and the device.

    Raises:
        ValueError: for a family without items.
    """

    def __init__(self, config: Config, context: Context):
        if not isinstance(context.family, Recommendation):
            raise ValueError("this algorithm is for items with features (env=recommendation)")
        self.config, self.items = config, context.family.items
        self.task = context.family.sample_tasks(1, "train", numpy_rng(context.seed, "tasks", "train"))

    def adapt(self, task: Task, budget: Budget, rng: torch.Generator, family: Family | None = None) -> Iterator[Adapted]:
        """Yield one policy, which keeps the regression of each trial."""
        yield Adapted(0, 0, 0, LinearPolicy(self.config, self.items, num_tasks(task)), budget.episodes or self.config.episodes)

    @override
    def load_policy(self, state: State, task: Task) -> LinearPolicy:
        return LinearPolicy(self.config, self.items, num_tasks(task))


class LinearPolicy(Policy):
    """The policy of a linear strategy, in trials with M users.

    Args:
        config: the index and its constants.
        items: the features ``[N, d]`` of the items.
        users: M.
    """

    def __init__(self, config: Config, items: Tensor, users: int):
        self.config, self.items, self.users = config, items, users

    def start(self, num_envs: int, rng: torch.Generator, greedy: bool = True) -> State:
        """Return the state before the first step: A, ``precision [M, N, D, D]``, and the summed r x, ``moment [M, N, D]``."""
        size = self.items.shape[1] + 2
        precision = self.config.prior * torch.eye(size, dtype=self.items.dtype, device=self.items.device)
        moment = self.items.new_zeros(self.users, num_envs, size)
        return {"precision": precision.expand(self.users, num_envs, size, size), "moment": moment, "rng": rng}

    def act(self, state: State, obs: Tensor) -> tuple[Tensor, State]:
        """Return the items ``[M, N]`` of the greatest index."""
        return self.index(state, obs).argmax(-1), state

    def observe(self, state: State, obs: Tensor, action: Tensor, step: Step) -> State:
        """Add the items that were shown, and whether they were clicked, to the regression."""
        place = action[..., None, None].expand(*action.shape, 1, self.items.shape[1] + 2)
        features = self.features(obs).gather(-2, place)[..., 0, :]  # [M, N, D] of the items that were shown
        precision = state["precision"] + features[..., :, None] * features[..., None, :]
        return {**state, "precision": precision, "moment": state["moment"] + features * step.reward[..., None]}

    def features(self, obs: Tensor) -> Tensor:
        """Return the features ``[M, N, items, D]`` of all items in the observations: their own, satiation and 1."""
        own = self.items.expand(*obs.shape[:-1], *self.items.shape)
        return torch.cat([own, obs[..., None], torch.ones_like(obs)[..., None]], -1)

    def index(self, state: State, obs: Tensor) -> Tensor:
        """Return the index of each item, ``[M, N, items]``."""
        features, factor = self.features(obs), torch.linalg.cholesky(state["precision"])
        theta = torch.cholesky_solve(state["moment"][..., None], factor)
        if self.config.spread:
            noise = torch.randn(theta.shape, generator=state["rng"], dtype=theta.dtype, device=theta.device)
            theta = theta + self.config.spread * torch.linalg.solve_triangular(factor.mT, noise, upper=True)
        index: Tensor = (features @ theta)[..., 0]
        if self.config.bonus:
            radius = torch.linalg.solve_triangular(factor, features.mT, upper=False).norm(dim=-2)
            index = index + self.config.bonus * radius
        return index


Algo = Strategy
