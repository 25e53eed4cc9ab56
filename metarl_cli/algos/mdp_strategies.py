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
from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from metarl_cli.algos.reference import Reference
from metarl_cli.config.base import Share, StrictModel
from metarl_cli.envs.tabular import TabularFamily, value_iteration
from metarl_cli.interfaces import Adapted, Budget, Context, Family, Policy, State, Step, Task, device_of, num_tasks
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
    oracle: bool = Field(description="plan on the true process")
    samples: int = Field(ge=0, description="processes sampled from the posterior, their values' maximum; 0: the mean")
    bonus: float = Field(ge=0, description="β, BEB's extra reward; 0: none")
    radius: float = Field(ge=0, description="c, scale of UCRL2's confidence sets; 0: none")
    epsilon: Share = Field(description="share of random actions")
    prior: PriorConfig


class Planner(Reference):
    """Plan at the start of every episode on what is known.

    Args:
        config: see :class:`Config`.
        context: what it is built with.

    Raises:
        ValueError: for a family that is not tabular, or does not show its state.
    """

    def __init__(self, config: Config, context: Context):
        family = context.family
        if not isinstance(family, TabularFamily) or family.spec.obs_shape != (family.num_states,):
            raise ValueError("this algorithm needs a table of states it can see (env=tabular_mdp)")
        self.config, self.family = config, family
        self.task = family.sample_tasks(1, "train", numpy_rng(context.seed, "tasks", "train"))

    def adapt(self, task: Task, budget: Budget, rng: torch.Generator, family: Family | None = None) -> Iterator[Adapted]:
        """Yield one policy, which counts what it has seen; an oracle sees the task itself."""
        yield Adapted(0, 0, 0, PlannedPolicy(self.config, self.family, task), budget.episodes or self.config.episodes)


class PlannedPolicy(Policy):
    """The policy of a planner, in trials on M processes.

    Args:
        config: what is planned on.
        family: the processes.
        task: the processes, which an oracle plans on.
    """

    def __init__(self, config: Config, family: TabularFamily, task: Task):
        self.config, self.family, self.task = config, family, task
        self.horizon, self.actions = family.spec.horizon, family.spec.actions.size

    def start(self, num_envs: int, rng: torch.Generator, greedy: bool = True) -> State:
        """Return the state before anything was seen.

        ``policy [M, N, H, S]`` is the plan, ``clock [M, N]`` the step of the episode, ``seen [M, N, S, A, S]`` counts
        transitions, ``reward [M, N, S, A]`` adds rewards up and ``final [M, N, S]`` marks states that end an episode. An
        oracle has its plan from the start and counts nothing.
        """
        num, device = num_tasks(self.task), device_of(self.task)
        table = (num, num_envs, self.family.num_states, self.actions)
        state = {"clock": torch.zeros(table[:2], dtype=torch.long, device=device), "rng": rng}
        if self.config.oracle:
            _, best = value_iteration(*self.family.model(self.task), self.horizon)
            return {**state, "policy": best.movedim(0, 1)[:, None].expand(-1, num_envs, -1, -1)}
        zeros = torch.zeros(*table, table[2], device=device)
        return {
            **state,
            "policy": torch.zeros(*table[:2], self.horizon, table[2], dtype=torch.long, device=device),
            "seen": zeros,
            "reward": zeros[..., 0],
            "final": zeros[..., 0, 0],
        }

    def act(self, state: State, obs: Tensor) -> tuple[Tensor, State]:
        """Return the planned actions ``[M, N]``; where an episode starts, after planning it."""
        fresh = state["clock"] == 0
        if not self.config.oracle and fresh.any():
            policy = state["policy"].clone()
            seen, reward, final = (state[name][fresh] for name in ("seen", "reward", "final"))
            policy[fresh] = self.plan(seen, reward, final, state["rng"]).movedim(0, 1)
            state = {**state, "policy": policy}
        where = state["clock"][..., None, None].expand(*fresh.shape, 1, obs.shape[-1])
        row = state["policy"].gather(2, where)[:, :, 0]  # [M, N, S]
        action = row.gather(-1, obs.argmax(-1, keepdim=True))[..., 0]
        if self.config.epsilon:
            explore = torch.rand(action.shape, generator=state["rng"], device=action.device) < self.config.epsilon
            chance = torch.randint(self.actions, action.shape, generator=state["rng"], device=action.device)
            action = torch.where(explore, chance, action)
        return action, state

    def observe(self, state: State, obs: Tensor, action: Tensor, step: Step) -> State:
        """Count the transition and its reward."""
        state = {**state, "clock": torch.where(step.ended, 0, state["clock"] + 1)}
        if self.config.oracle:
            return state
        taken = obs[..., None] * one_hot(action, self.actions)[..., None, :]  # [M, N, S, A]
        return {
            **state,
            "seen": state["seen"] + taken[..., None] * step.next_obs[..., None, None, :],
            "reward": state["reward"] + taken * step.reward[..., None, None],
            "final": torch.maximum(state["final"], step.next_obs * step.terminated[..., None]),
        }

    def plan(self, seen: Tensor, reward: Tensor, final: Tensor, rng: torch.Generator) -> Tensor:
        """The best actions ``[H, B, S]`` on what B trials saw, each as :meth:`start` says without ``[M, N]``."""
        config, prior, horizon = self.config, self.config.prior, self.horizon
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
        for _ in range(self.horizon):
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


Algo = Planner
