"""Explorers of an unknown Markov decision process, and an oracle: the references of RL² (Duan 2016, arXiv:1611.02779).

All keep the same posterior and, at the start of every episode, plan by value iteration over its horizon; they differ in what
they plan on. With α_s' the Dirichlet weights of the successors of a state and action, n the times it was taken, and τ
imagined rewards of mean μ beside the n real ones:

psrl            one process sampled from the posterior (Osband 2013, arXiv:1306.0940)
opsrl           the greatest of several samples' values (Osband 2013), for each state, action and step; as in Osband's own
                comparison of PSRL with others, github.com/iosband/TabulaRL
ucrl2           the best process within bounds (Jaksch 2010, jmlr.org/papers/v11/jaksch10a): √(c² ln(2SAT/δ) / n) of the mean
                reward, and √S times that of the mean transition, in L1
beb             the mean, and β / (1 + n) more reward (Kolter and Ng 2009, doi:10.1145/1553374.1553441)
epsilon_greedy  the mean, and a uniformly random action in a share ε of the steps
greedy          the mean
oracle          the true process: the optimum

Nothing is learned: training passes at once. A state seen to end an episode counts as worth nothing from then on.

Differs from the papers: UCRL2 plans over the episode and at its start, not on doubled counts and without end; BEB's n counts
visits alone, not the prior. The RL² paper tunes the constants for each setting and does not name them; here they are one
value each. Its greedy column is close to what greedy does without a prior (``prior`` near 0), which is worse.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from metarl_cli.algos.reference import Reference
from metarl_cli.config.base import Share, StrictModel
from metarl_cli.envs.tabular import TabularFamily, value_iteration
from metarl_cli.interfaces import Family, Learner, State, Step, Task
from metarl_cli.seeding import numpy_rng

CONFIDENCE = 0.05  # δ of UCRL2; what c leaves of it is not a probability any more


class PriorConfig(StrictModel):
    """What is believed of every state and action before it is tried."""

    successors: float = Field(gt=0, description="Dirichlet weight of each successor")
    reward: float = Field(description="μ, expected reward")
    strength: float = Field(gt=0, description="τ, imagined rewards: the noise's variance over the variance of μ")
    noise: float = Field(ge=0, description="standard deviation of a reward around its expectation")


class Config(StrictModel):
    """What is planned on."""

    episodes: int = Field(gt=0, description="episodes of a trial")
    told: bool = Field(description="plan on the true process: an oracle")
    samples: int = Field(ge=0, description="processes sampled from the posterior, their values' maximum; 0: the mean")
    bonus: float = Field(ge=0, description="β, BEB's extra reward; 0: none")
    radius: float = Field(ge=0, description="c, scale of UCRL2's confidence sets; 0: none")
    epsilon: Share = Field(description="share of random actions")
    prior: PriorConfig


class Explorer(Reference):
    """Plan at the start of every episode on what is known.

    Args:
        config: see :class:`Config`.
        learner: unused.
        family: the processes.
        seed: of the one training task the interface asks for.

    Raises:
        ValueError: for a family that is not tabular, or does not show its state.
    """

    def __init__(self, config: Config, learner: Learner, family: Family, iterations: int, seed: int, device: torch.device):
        if not isinstance(family, TabularFamily) or family.spec.obs_shape != (family.num_states,):
            raise ValueError("this algorithm needs a table of states it can see (env=tabular_mdp)")
        self.config, self.family, self.episodes = config, family, config.episodes
        self.task = family.sample_tasks(1, "train", numpy_rng(seed, "tasks", "train"))

    def begin(self, task: Task, num_envs: int, rng: torch.Generator, greedy: bool = True) -> State:
        """Nothing seen yet.

        ``policy [M, N, H, S]`` is the plan, ``clock [M, N]`` the step of the episode, ``seen [M, N, S, A, S]`` counts
        transitions, ``reward [M, N, S, A]`` adds rewards up and ``final [M, N, S]`` marks states that end an episode. An
        oracle has its plan from the start and counts nothing.
        """
        like, horizon = next(iter(task.values())), self.family.spec.horizon
        table = (len(like), num_envs, self.family.num_states, self.family.spec.num_actions)
        memory = {"clock": torch.zeros(table[:2], dtype=torch.long, device=like.device), "rng": rng}
        if self.config.told:
            _, best = value_iteration(*self.family.model(task), horizon)
            return {**memory, "policy": best.movedim(0, 1)[:, None].expand(-1, num_envs, -1, -1)}
        zeros = torch.zeros(*table, table[2], device=like.device)
        return {
            **memory,
            "policy": torch.zeros(*table[:2], horizon, table[2], dtype=torch.long, device=like.device),
            "seen": zeros,
            "reward": zeros[..., 0],
            "final": zeros[..., 0, 0],
        }

    def choose(self, memory: State, obs: Tensor) -> tuple[Tensor, State]:
        """The planned actions ``[M, N]``; where an episode starts, after planning it."""
        fresh = memory["clock"] == 0
        if not self.config.told and fresh.any():
            policy = memory["policy"].clone()
            policy[fresh] = self.plan(
                memory["seen"][fresh], memory["reward"][fresh], memory["final"][fresh], memory["rng"]
            ).movedim(0, 1)
            memory = {**memory, "policy": policy}
        where = memory["clock"][..., None, None].expand(*fresh.shape, 1, obs.shape[-1])
        row = memory["policy"].gather(2, where)[:, :, 0]  # [M, N, S]
        action = row.gather(-1, obs.argmax(-1, keepdim=True))[..., 0]
        if self.config.epsilon:
            explore = torch.rand(action.shape, generator=memory["rng"], device=action.device) < self.config.epsilon
            actions = self.family.spec.num_actions
            chance = torch.randint(actions, action.shape, generator=memory["rng"], device=action.device)
            action = torch.where(explore, chance, action)
        return action, memory

    def observe(self, memory: State, obs: Tensor, action: Tensor, step: Step) -> State:
        """Count the transition and its reward."""
        memory = {**memory, "clock": torch.where(step.terminated | step.truncated, 0, memory["clock"] + 1)}
        if self.config.told:
            return memory
        taken = obs[..., None] * one_hot(action, self.family.spec.num_actions)[..., None, :]  # [M, N, S, A]
        return {
            **memory,
            "seen": memory["seen"] + taken[..., None] * step.next_obs[..., None, None, :],
            "reward": memory["reward"] + taken * step.reward[..., None, None],
            "final": torch.maximum(memory["final"], step.next_obs * step.terminated[..., None]),
        }

    def plan(self, seen: Tensor, reward: Tensor, final: Tensor, rng: torch.Generator) -> Tensor:
        """The best actions ``[H, B, S]`` on what B trials saw, each as :meth:`begin` says without ``[M, N]``."""
        config, prior, horizon = self.config, self.config.prior, self.family.spec.horizon
        visits = seen.sum(-1)
        weights, strength = seen + prior.successors, visits + prior.strength
        mean = (reward + prior.strength * prior.reward) / strength
        alive = (1 - final)[:, None, None]  # [B, 1, 1, S]
        if config.samples:
            best = mean.new_full((horizon, *mean.shape), -math.inf)
            for _ in range(config.samples):
                transition, expected = sample_process(weights, mean, prior.noise * strength.rsqrt(), rng)
                values, _ = value_iteration(transition * alive, expected, horizon)
                best = torch.maximum(best, expected + torch.einsum("bsan,hbn->hbsa", transition * alive, values[1:]))
            return best.argmax(-1)
        transition = weights / weights.sum(-1, keepdim=True)
        if config.radius:
            return self.plan_optimistically(transition, mean, visits, final)
        return value_iteration(transition * alive, mean + config.bonus / (1 + visits), horizon)[1]

    def plan_optimistically(self, transition: Tensor, mean: Tensor, visits: Tensor, final: Tensor) -> Tensor:
        """Extended value iteration: the best actions ``[H, B, S]`` on the best process of UCRL2's confidence sets."""
        _, states, actions = mean.shape
        time = visits.sum((1, 2)).clamp(min=1)[:, None, None]
        radius = self.config.radius * ((2 * states * actions * time / CONFIDENCE).log() / visits.clamp(min=1)).sqrt()
        value, plan = torch.zeros_like(final), []
        for _ in range(self.family.spec.horizon):
            best = (mean + radius + greatest_mean(transition, math.sqrt(states) * radius, value)).max(-1)
            value = best.values * (1 - final)
            plan.append(best.indices)
        return torch.stack(plan[::-1])


def sample_process(weights: Tensor, mean: Tensor, std: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Transition probabilities ``[B, S, A, S]`` from Dirichlet(weights), expected rewards ``[B, S, A]`` from N(mean, std²)."""
    gamma = torch._standard_gamma(weights, generator=rng).clamp(min=torch.finfo(weights.dtype).tiny)
    noise = torch.randn(mean.shape, generator=rng, dtype=mean.dtype, device=mean.device)
    return gamma / gamma.sum(-1, keepdim=True), mean + std * noise


def greatest_mean(transition: Tensor, radius: Tensor, value: Tensor) -> Tensor:
    """The greatest mean ``[B, S, A]`` of ``value [B, S]`` under probabilities within an L1 ``radius [B, S, A]`` of
    ``transition [B, S, A, S]``: half of it goes to the best successor, taken from the worst ones (Jaksch 2010, figure 2).
    """
    order = value.argsort(-1, descending=True)  # [B, S] the best successor first
    ranked = transition.gather(-1, order[:, None, None].expand_as(transition))
    ranked[..., 0] += radius / 2
    total = ranked.cumsum(-1).clamp(max=1)  # what exceeds 1 is what the worst ones lose
    moved = torch.diff(total, dim=-1, prepend=torch.zeros_like(total[..., :1]))
    return torch.einsum("bsan,bn->bsa", moved, value.gather(-1, order))


Algo = Explorer
