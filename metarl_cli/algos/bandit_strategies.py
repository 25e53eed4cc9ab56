"""Index strategies for bandits, optimal ones and classical ones: the references of RL² (Duan 2016, arXiv:1611.02779).

Each strategy pulls the arm of the greatest index; ties go to the first arm. The strategies differ in their index. With n pulls
of an arm and mean reward m, both counting the prior as imaginary pulls, at pull t of the trial:

gittins               the constant reward of equal value to this arm (Gittins 1979, doi:10.1111/j.2517-6161.1979.tb01068.x):
                      optimal for geometrically discounted rewards, and near-optimal at the end of a finite trial
thompson              one sample of the posterior of the arm's mean (Thompson 1933)
optimistic_thompson   the greater of that sample and m (May 2012, jmlr.org/papers/v13/may12a)
ucb1                  m + c √(2 ln t / n) (Auer 2002, doi:10.1023/A:1013689704352)
epsilon_greedy        m, and a uniformly random arm in a share ε of the pulls
greedy                m

The prior has the mean and variance of the family's own: a Beta distribution for Bernoulli arms (Beta(1, 1) where means are
uniform in [0, 1]), a normal distribution for Gaussian arms. There is nothing to train: a training step is a no-op.

Differs from the paper: c and ε are single values, where the paper tunes them for each setting. The paper does not define the
index of an arm that was never pulled. Its short trials with many arms rule out one initial pull of each arm; counting the
prior reproduces its columns. So does giving ties to the first arm: greedy would do better with ties broken at random (80.3
instead of 78.1 for 100 pulls of 50 arms). The paper's column of optimistic Thompson sampling is not reproduced (5.99 instead
of 6.5 for 10 pulls of 5 arms).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot
from typing_extensions import override

from metarl_cli.algos.reference import Reference
from metarl_cli.config.base import Share, StrictModel
from metarl_cli.envs.bandit import Bandit
from metarl_cli.envs.bandit import Config as BanditConfig
from metarl_cli.interfaces import Adapted, Budget, Context, Family, Policy, State, Step, Task
from metarl_cli.seeding import numpy_rng

GRID = 1001  # points in [0, 1] of the constant reward that an arm is compared with
MOST_PULLS = 2000  # of an arm with a Gittins index of its own; after more, its mean counts as known
TAIL_WEIGHT = 1e-3  # largest discount factor of rewards beyond the last computed state
LONGEST_TAIL = 1000  # [pulls] beyond the trial; the posterior of an arm is narrow by then
FEWEST_PULLS = 1e-6  # of the prior, for rewards without noise: one pull reveals the mean


class Config(StrictModel):
    """The index and its constants."""

    episodes: int = Field(gt=0, description="episodes of a trial; of a bandit, pulls")
    index: Literal["gittins", "sample", "optimistic_sample", "mean"] = Field(description="index that arms are compared by")
    discount: float = Field(gt=0, lt=1, description="discount of the Gittins index")
    bonus: float = Field(ge=0, description="c, the weight of UCB1's confidence radius; 0: none")
    epsilon: Share = Field(description="share of random pulls")


class Strategy(Reference):
    """The strategy that pulls the arm of the greatest index.

    Args:
        config: see :class:`Config`.
        context: the family, the seed and the device.

    Raises:
        ValueError: for a family that is not a bandit, or Gittins indices for arms that are not Bernoulli.
    """

    def __init__(self, config: Config, context: Context):
        if not isinstance(context.family, Bandit):
            raise ValueError("this algorithm is for bandits (env=bandit)")
        arms = context.family.config
        if config.index == "gittins" and arms.rewards != "bernoulli":
            raise ValueError("algo=gittins needs Bernoulli arms (env=bandit)")
        self.config, self.horizon, self.prior = config, context.family.spec.horizon, Prior(arms)
        self.task = context.family.sample_tasks(1, "train", numpy_rng(context.seed, "tasks", "train"))

    def adapt(self, task: Task, budget: Budget, rng: torch.Generator, family: Family | None = None) -> Iterator[Adapted]:
        """Yield one policy, which counts the pulls and the rewards of each arm."""
        episodes = budget.episodes or self.config.episodes
        yield Adapted(0, 0, 0, IndexPolicy(self.config, self.prior, task, episodes * self.horizon), episodes)

    @override
    def load_policy(self, state: State, task: Task) -> IndexPolicy:
        if state["longest"] < 1:
            raise ValueError("a trial has at least one pull")
        return IndexPolicy(self.config, self.prior, task, int(state["longest"]))


class Prior:
    """The prior of an arm's mean, as imaginary pulls.

    Args:
        arms: the family's configuration.
    """

    def __init__(self, arms: BanditConfig):
        self.bernoulli = arms.rewards == "bernoulli"
        uniform = arms.prior == "uniform"
        self.mean = arms.location + arms.scale / 2 if uniform else arms.location
        variance = arms.scale**2 / (12 if uniform else 1)
        reward_variance = self.mean * (1 - self.mean) - variance if self.bernoulli else arms.noise**2  # given the mean
        self.pulls = max(reward_variance / variance, FEWEST_PULLS)
        self.noise = math.sqrt(self.pulls * variance)  # standard deviation of one reward


class IndexPolicy(Policy):
    """The policy of an index strategy, in trials on M bandits.

    Args:
        config: the index and its constants.
        prior: the prior of an arm's mean.
        task: the bandits; the policy uses their number of arms only.
        longest: the number of pulls in a trial. After more pulls of an arm, its Gittins index is its mean.
    """

    def __init__(self, config: Config, prior: Prior, task: Task, longest: int):
        self.config, self.prior, self.mean, self.longest = config, prior, task["mean"], min(longest, MOST_PULLS)

    def start(self, num_envs: int, rng: torch.Generator, greedy: bool = True) -> State:
        """Return the state before the first pull: ``pulls`` and summed ``reward`` of every arm, ``[M, N, k]``."""
        zeros = self.mean.new_zeros(len(self.mean), num_envs, self.mean.shape[-1])
        return {"pulls": zeros, "reward": zeros, "rng": rng}

    def act(self, state: State, obs: Tensor) -> tuple[Tensor, State]:
        """Return the arms ``[M, N]`` of the greatest index."""
        action = self.index(state).argmax(-1)
        if self.config.epsilon:
            arms = state["pulls"].shape[-1]
            explore = torch.rand(action.shape, generator=state["rng"], device=action.device) < self.config.epsilon
            random = torch.randint(arms, action.shape, generator=state["rng"], device=action.device)
            action = torch.where(explore, random, action)
        return action, state

    def observe(self, state: State, obs: Tensor, action: Tensor, step: Step) -> State:
        """Count one pull of each chosen arm and add its reward."""
        arm = one_hot(action, state["pulls"].shape[-1])
        return {**state, "pulls": state["pulls"] + arm, "reward": state["reward"] + arm * step.reward[..., None]}

    def index(self, state: State) -> Tensor:
        """Return the index of each arm, ``[M, N, k]``."""
        config, prior = self.config, self.prior
        pulls: Tensor = state["pulls"]
        reward: Tensor = state["reward"]
        n = prior.pulls + pulls
        mean = (prior.pulls * prior.mean + reward) / n
        if config.index == "gittins":
            wins, losses = prior.mean * prior.pulls, (1 - prior.mean) * prior.pulls
            table = gittins_indices(wins, losses, config.discount, self.longest).to(pulls.device)
            inside = pulls <= self.longest
            won, lost = (torch.where(inside, count, 0).long() for count in (reward, pulls - reward))
            return torch.where(inside, table[won, lost], mean)
        if config.index == "mean":
            t = 1 + pulls.sum(-1, keepdim=True)
            return mean + config.bonus * (2 * t.log() / n).sqrt()
        sample = self.sample(mean, n, state["rng"])
        return sample if config.index == "sample" else torch.maximum(sample, mean)

    def sample(self, mean: Tensor, n: Tensor, rng: torch.Generator) -> Tensor:
        """Sample from the posterior of each arm's mean: Beta(mn, (1 - m)n), or normal with variance noise² / n."""
        if not self.prior.bernoulli:
            noise = torch.randn(mean.shape, generator=rng, dtype=mean.dtype, device=mean.device)
            return mean + self.prior.noise * n.rsqrt() * noise
        gamma = torch._standard_gamma(torch.stack([mean * n, (1 - mean) * n]), generator=rng)
        return gamma[0] / gamma.sum(0)

    @override
    def state_dict(self) -> State:
        return {"longest": self.longest}


@lru_cache(maxsize=8)
def gittins_indices(wins: float, losses: float, discount: float, pulls: int) -> Tensor:
    """Compute the Gittins indices ``[pulls + 1, pulls + 1]`` of a Bernoulli arm after w wins and l losses.

    Entries with ``w + l > pulls`` are 0. The method is calibration (Gittins 1979, section 7). For the choice between an arm
    with constant reward λ and an arm Beta(a, b), with a = wins + w, b = losses + l and p = a / (a + b), the value is

        V(a, b) = max(λ, (1 - γ) p + γ (p V(a + 1, b) + (1 - p) V(a, b + 1)))

    as a rate of reward. The index is the λ at which both sides of the maximum are equal. Dynamic programming computes the
    values of all states on a grid of λ, backwards from states after so many pulls that the discount makes later rewards
    negligible (their mean counts as known); the index is interpolated linearly between two grid points.

    Args:
        wins: a of the prior.
        losses: b of the prior.
        discount: γ.
        pulls: the maximum number of pulls of an arm.
    """
    rates = torch.linspace(0, 1, GRID, dtype=torch.float64)[:, None]  # [L, 1]
    table = torch.zeros(pulls + 1, pulls + 1, dtype=torch.float64)
    tail = min(math.ceil(math.log(TAIL_WEIGHT) / math.log(discount)), LONGEST_TAIL)
    value = torch.empty(0)
    for n in range(pulls + tail, -1, -1):
        won = torch.arange(n + 1, dtype=torch.float64)
        p = (wins + won) / (wins + losses + n)
        if n == pulls + tail:
            value = torch.maximum(rates, p)  # [L, n + 1]
            continue
        pull = (1 - discount) * p + discount * (p * value[:, 1:] + (1 - p) * value[:, :-1])
        value = torch.maximum(rates, pull)
        if n <= pulls:
            gain = pull - rates  # decreases in λ
            above = (gain > 0).sum(0).clamp(1, GRID - 1)  # [n + 1] the first grid point above the index
            high, low = gain.gather(0, above[None] - 1)[0], gain.gather(0, above[None])[0]
            index = (above - 1 + high / (high - low)) / (GRID - 1)
            table[won.long(), n - won.long()] = index
    return table


Algo = Strategy
