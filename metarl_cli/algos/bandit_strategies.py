"""Strategies for bandits that know the answer, or are known for theirs: the references of RL² (Duan 2016, arXiv:1611.02779).

Each pulls the arm of the greatest index, the first of equals; what the index is makes the strategy. With n pulls of an arm and
mean reward m, both counting the prior as imagined pulls, at pull t of the trial:

gittins               the constant reward one would give up for this arm (Gittins 1979, doi:10.1111/j.2517-6161.1979.tb01068.x):
                      the best there is for geometrically discounted rewards, and close to it at the end of a trial
thompson              one sample of the posterior of the arm's mean (Thompson 1933)
optimistic_thompson   the sample, but never below m (May 2012, jmlr.org/papers/v13/may12a)
ucb1                  m + c √(2 ln t / n) (Auer 2002, doi:10.1023/A:1013689704352)
epsilon_greedy        m, and a uniformly random arm in a share ε of the pulls
greedy                m

The prior is the family's own: Beta for Bernoulli arms, Beta(1, 1) where they are uniform in [0, 1], and normal for Gaussian
ones, each with the mean and variance of the family's. Nothing is learned: training passes at once.

Differs from the paper: it tunes c and ε for each setting, here they are single values. It does not say how arms never pulled
count; its short trials with many arms rule out that each is pulled once, and counting the prior meets its columns. So does
the first of equals: greedy would do better with ties broken at random (80.3 rather than 78.1 of 100 pulls of 50 arms). Its
column of optimistic Thompson sampling is not reached (5.99 rather than 6.5 of 10 pulls of 5 arms).
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

from metarl_cli.algos.reference import Reference
from metarl_cli.config.base import Share, StrictModel
from metarl_cli.envs.bandit import Bandit
from metarl_cli.envs.bandit import Config as BanditConfig
from metarl_cli.interfaces import Adapted, Budget, Context, Family, Policy, State, Step, Task
from metarl_cli.seeding import numpy_rng

GRID = 1001  # constant rewards in [0, 1] that an arm is compared with
TAIL = 1e-3  # what a reward after the last state computed may still weigh
LONGEST_TAIL = 1000  # [pulls] beyond the trial; by then an arm is known
FEWEST = 1e-6  # imagined pulls, where rewards are without noise and one pull says all


class Config(StrictModel):
    """Which index."""

    episodes: int = Field(gt=0, description="episodes of a trial; of a bandit, pulls")
    index: Literal["gittins", "sample", "optimistic_sample", "mean"] = Field(description="what the arms are compared by")
    discount: float = Field(gt=0, lt=1, description="of the Gittins index")
    bonus: float = Field(ge=0, description="c, the weight of UCB1's confidence radius; 0: none")
    epsilon: Share = Field(description="share of random pulls")


class Strategy(Reference):
    """Pull the arm of the greatest index.

    Args:
        config: see :class:`Config`.
        context: what it is built with.

    Raises:
        ValueError: for a family that is no bandit, or Gittins indices for arms that are not Bernoulli.
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
        """Yield one policy, which counts what each arm has paid."""
        episodes = budget.episodes or self.config.episodes
        yield Adapted(0, 0, 0, IndexPolicy(self.config, self.prior, task, episodes * self.horizon), episodes)


class Prior:
    """The prior of an arm's mean, as imagined pulls.

    Args:
        arms: the family's configuration.
    """

    def __init__(self, arms: BanditConfig):
        self.bernoulli = arms.rewards == "bernoulli"
        uniform = arms.prior == "uniform"
        self.mean = arms.location + arms.scale / 2 if uniform else arms.location
        variance = arms.scale**2 / (12 if uniform else 1)
        chance = self.mean * (1 - self.mean) - variance if self.bernoulli else arms.noise**2  # what a pull adds, on average
        self.pulls = max(chance / variance, FEWEST)
        self.noise = math.sqrt(self.pulls * variance)  # of a pull


class IndexPolicy(Policy):
    """The policy of an index, in trials on M bandits.

    Args:
        config: which index.
        prior: of an arm's mean.
        task: the bandits, of which it sees the number of arms alone.
        longest: the most pulls of a trial.
    """

    def __init__(self, config: Config, prior: Prior, task: Task, longest: int):
        self.config, self.prior, self.mean, self.longest = config, prior, task["mean"], longest

    def start(self, num_envs: int, rng: torch.Generator, greedy: bool = True) -> State:
        """Return no pulls yet: ``pulls`` and ``reward`` of every arm, ``[M, N, k]``."""
        nothing = self.mean.new_zeros(len(self.mean), num_envs, self.mean.shape[-1])
        return {"pulls": nothing, "reward": nothing, "rng": rng}

    def act(self, state: State, obs: Tensor) -> tuple[Tensor, State]:
        """Return the arms ``[M, N]`` of the greatest index."""
        action = self.index(state).argmax(-1)
        if self.config.epsilon:
            arms = state["pulls"].shape[-1]
            explore = torch.rand(action.shape, generator=state["rng"], device=action.device) < self.config.epsilon
            chance = torch.randint(arms, action.shape, generator=state["rng"], device=action.device)
            action = torch.where(explore, chance, action)
        return action, state

    def observe(self, state: State, obs: Tensor, action: Tensor, step: Step) -> State:
        """Count one more pull of each chosen arm, and what it paid."""
        arm = one_hot(action, state["pulls"].shape[-1])
        return {**state, "pulls": state["pulls"] + arm, "reward": state["reward"] + arm * step.reward[..., None]}

    def index(self, state: State) -> Tensor:
        """Return how good each arm looks, ``[M, N, k]``."""
        config, prior = self.config, self.prior
        pulls: Tensor = state["pulls"]
        reward: Tensor = state["reward"]
        if config.index == "gittins":
            wins, losses = prior.mean * prior.pulls, (1 - prior.mean) * prior.pulls
            table = gittins_indices(wins, losses, config.discount, self.longest)
            return table.to(pulls.device)[reward.long(), (pulls - reward).long()]
        n = prior.pulls + pulls
        mean = (prior.pulls * prior.mean + reward) / n
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


@lru_cache(maxsize=8)
def gittins_indices(wins: float, losses: float, discount: float, pulls: int) -> Tensor:
    """Gittins indices ``[pulls + 1, pulls + 1]`` of a Bernoulli arm after w wins and l losses, ``w + l <= pulls``, else 0.

    By calibration (Gittins 1979, section 7): beside an arm that pays λ for ever, the value, in units of λ, of one that is
    Beta(a, b) with a = wins + w, b = losses + l, p = a / (a + b), is

        V(a, b) = max(λ, (1 - γ) p + γ (p V(a + 1, b) + (1 - p) V(a, b + 1)))

    and the index is the λ at which both sides of the maximum are equal: found for all states and many λ at once, backwards
    from arms pulled so often that γ has forgotten what follows (they count as known), and between two λ by a straight line.

    Args:
        wins: a of the prior.
        losses: b of the prior.
        discount: γ.
        pulls: the most pulls of an arm.
    """
    rates = torch.linspace(0, 1, GRID, dtype=torch.float64)[:, None]  # [L, 1]
    table = torch.zeros(pulls + 1, pulls + 1, dtype=torch.float64)
    tail = min(math.ceil(math.log(TAIL) / math.log(discount)), LONGEST_TAIL)
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
            gain = pull - rates  # falls with λ
            above = (gain > 0).sum(0).clamp(1, GRID - 1)  # [n + 1] the first λ too high
            high, low = gain.gather(0, above[None] - 1)[0], gain.gather(0, above[None])[0]
            index = (above - 1 + high / (high - low)) / (GRID - 1)
            table[won.long(), n - won.long()] = index
    return table


Algo = Strategy
