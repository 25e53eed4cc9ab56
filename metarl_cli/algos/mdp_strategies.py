"""Exploration strategies for tabular MDPs, and an oracle: the references of RL² (Duan 2016, arXiv:1611.02779).

All strategies keep the same posterior and plan by value iteration over the horizon at the start of every episode; they differ
in the model that they plan on. Dirichlet weights α_s' count the successors of a state and action, n counts how often the
action was taken there, and the prior adds τ imaginary rewards of mean μ to the n observed ones:

psrl            one process sampled from the posterior (Osband 2013, arXiv:1306.0940)
opsrl           the greatest of several samples' values (Osband 2013), for each state, action and step; as in Osband's own
                comparison of PSRL with others, github.com/iosband/TabulaRL
ucrl2           the best process within bounds (Jaksch 2010, jmlr.org/papers/v11/jaksch10a): √(c² ln(2SAT/δ) / n) for the mean
                reward, and √S times that for the mean transition, in L1
beb             the mean, plus a bonus reward β / (1 + n) (Kolter and Ng 2009, doi:10.1145/1553374.1553441)
epsilon_greedy  the mean, and a uniformly random action in a share ε of the steps
greedy          the mean
oracle          the true process; its return is the optimum

There is nothing to train: a training step is a no-op. A state that has ended an episode has value zero from then on.

Differs from the papers: UCRL2 plans at the start of each episode and over its horizon, where the paper plans when a count has
doubled and for an infinite horizon; BEB's n counts visits without the prior. The RL² paper tunes the constants for each setting
and does not report them; here each has one value. Its greedy column is close to the return of greedy without a prior
(``prior`` near 0), which is lower.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot
from typing_extensions import override

from metarl_cli.algos.reference import Reference
from metarl_cli.config.base import Share, StrictModel
from metarl_cli.envs.planning import value_iteration
from metarl_cli.envs.tabular import TabularFamily
from metarl_cli.interfaces import Adapted, Budget, Context, Family, Policy, State, Step, Task, device_of, num_tasks
from metarl_cli.seeding import numpy_rng

CONFIDENCE = 0.05  # δ of UCRL2; with c below the paper's it no longer bounds a probability


class PriorConfig(StrictModel):
    """The prior of every state and action."""

    successors: float = Field(gt=0, description="Dirichlet weight of each successor")
    reward: float = Field(description="μ, expected reward")
    strength: float = Field(gt=0, description="τ, imagined rewards: the noise's variance over the variance of μ")
    noise: float = Field(ge=0, description="standard deviation of a reward around its expectation")


class Config(StrictModel):
    """The model that a strategy plans on, and its constants."""

    episodes: int = Field(gt=0, description="episodes of a trial")
    oracle: bool = Field(description="plan on the true process")
    samples: int = Field(ge=0, description="processes sampled from the posterior, for the maximum of their values; 0: the mean")
    bonus: float = Field(ge=0, description="β, BEB's bonus reward; 0: none")
    radius: float = Field(ge=0, description="c, scale of UCRL2's confidence sets; 0: none")
    epsilon: Share = Field(description="share of random actions")
    prior: PriorConfig


class Planner(Reference):
    """The strategy that plans at the start of every episode on its posterior.

    Args:
        config: see :class:`Config`.
        context: the family, the seed and the device.

    Raises:
        ValueError: for a family that is not tabular, or whose observation is not the state.
    """

    def __init__(self, config: Config, context: Context):
        family = context.family
        if not isinstance(family, TabularFamily) or family.spec.obs_shape != (family.num_states,):
            raise ValueError("this algorithm needs a table of states that it observes (env=tabular_mdp)")
        self.config, self.family = config, family
        self.task = family.sample_tasks(1, "train", numpy_rng(context.seed, "tasks", "train"))

    def adapt(self, task: Task, budget: Budget, rng: torch.Generator, family: Family | None = None) -> Iterator[Adapted]:
        """Yield one policy, which counts transitions and rewards; an oracle knows the task."""
        yield Adapted(0, 0, 0, PlannedPolicy(self.config, self.family, task), budget.episodes or self.config.episodes)

    @override
    def load_policy(self, state: State, task: Task) -> PlannedPolicy:
        return PlannedPolicy(self.config, self.family, task)


class PlannedPolicy(Policy):
    """The policy of a planner, in trials on M processes.

    Args:
        config: the model that the policy plans on.
        family: the family of the processes.
        task: the M processes; only an oracle plans on them.
    """

    def __init__(self, config: Config, family: TabularFamily, task: Task):
        self.config, self.family, self.task = config, family, task
        self.horizon, self.actions = family.spec.horizon, family.spec.actions.size

    def start(self, num_envs: int, rng: torch.Generator, greedy: bool = True) -> State:
        """Return the state before the first step.

        ``policy [M, N, H, S]`` is the plan, ``clock [M, N]`` the step of the episode, ``seen [M, N, S, A, S]`` counts
        transitions, ``reward [M, N, S, A]`` sums rewards and ``final [M, N, S]`` marks states that end an episode. The state
        of an oracle is its plan and the clock.
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
        """Return the planned actions ``[M, N]``; plan first where an episode starts."""
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
            random = torch.randint(self.actions, action.shape, generator=state["rng"], device=action.device)
            action = torch.where(explore, random, action)
        return action, state

    def observe(self, state: State, obs: Tensor, action: Tensor, step: Step) -> State:
        """Count the transition and add its reward."""
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
        """Return the best actions ``[H, B, S]`` for the counts of B trials.

        Args:
            seen: transition counts, ``[B, S, A, S]``.
            reward: summed rewards, ``[B, S, A]``.
            final: states that end an episode, ``[B, S]``.
            rng: generator of the samples from the posterior.
        """
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
        """Return the best actions ``[H, B, S]`` on the best process of UCRL2's confidence sets, by extended value iteration."""
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
    """Sample transitions ``[B, S, A, S]`` from Dirichlet(weights) and expected rewards ``[B, S, A]`` from N(mean, std²)."""
    gamma = torch._standard_gamma(weights, generator=rng).clamp(min=torch.finfo(weights.dtype).tiny)
    noise = torch.randn(mean.shape, generator=rng, dtype=mean.dtype, device=mean.device)
    return gamma / gamma.sum(-1, keepdim=True), mean + std * noise


def greatest_mean(transition: Tensor, radius: Tensor, value: Tensor) -> Tensor:
    """Compute the greatest mean ``[B, S, A]`` of ``value [B, S]`` within an L1 ball of transition probabilities.

    The ball has its centre at ``transition [B, S, A, S]`` and the ``radius [B, S, A]``. Half of the radius is added to the
    probability of the best successor and taken from the worst ones (Jaksch 2010, figure 2).
    """
    order = value.argsort(-1, descending=True)  # [B, S] the best successor first
    ranked = transition.gather(-1, order[:, None, None].expand_as(transition))
    ranked[..., 0] += radius / 2
    total = ranked.cumsum(-1).clamp(max=1)  # the worst successors lose the excess over 1
    moved = torch.diff(total, dim=-1, prepend=torch.zeros_like(total[..., :1]))
    return torch.einsum("bsan,bn->bsa", moved, value.gather(-1, order))


Algo = Planner
