"""Rollouts: a policy acts in M x N environments. All acting in the package goes through :func:`rollout`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from PIL.Image import Image
from torch import Tensor
from typing_extensions import override

from metarl_cli.experience.finite import StepCheck
from metarl_cli.interfaces import Env, Family, Policy, State, Step, Task, Transitions
from metarl_cli.progress import timed, track
from metarl_cli.spaces import ActionSpace


class Moment(NamedTuple):
    """One step of a rollout."""

    obs: Tensor  # [M, N, ...] before the action
    action: Tensor  # [M, N] or [M, N, D]
    step: Step
    chosen: State  # the policy's state after choosing the action
    state: State  # the policy's state after observing the step


class Stepped(Protocol):
    """The part of an environment that a rollout uses; :class:`Env` has it."""

    obs: Tensor

    def step(self, action: Tensor) -> Step:
        """Act in every environment."""
        ...


def rollout(env: Stepped, policy: Policy, state: State) -> Iterator[Moment]:
    """Act from the policy's ``state`` on, without end: the caller stops the iteration."""
    act, step_all = timed("acting")(policy.act), timed("stepping environments")(env.step)
    while True:
        obs = env.obs
        action, chosen = act(state, obs)
        step = step_all(action)
        state = policy.observe(chosen, obs, action, step)
        yield Moment(obs, action, step, chosen, state)


class RandomPolicy(Policy):
    """A policy that draws actions uniformly at random."""

    stochastic = True

    def __init__(self, actions: ActionSpace):
        self.actions = actions

    @override
    def start(self, num_envs: int, rng: torch.Generator, greedy: bool = True) -> State:
        return {"rng": rng}

    @override
    def act(self, state: State, obs: Tensor) -> tuple[Tensor, State]:
        return self.actions.random(obs, state["rng"]), state


@timed("collecting experience")
def collect(env: Env, policy: Policy, state: State, steps: int, one_episode: bool = False, stop: bool = False) -> Transitions:
    """Collect ``steps`` steps of every environment -> ``[M, T, N, ...]``.

    With ``one_episode``, the environments must be new, and steps after the end of the first episode of each have weight 0.
    With ``stop``, none is taken once all have ended: the last step, with weight 0, fills the rest.
    """
    if one_episode:
        env.one_episode()
    rows, watch = [], StepCheck(env)
    weight = torch.ones(env.obs.shape[:2], device=env.obs.device)
    for _, moment in zip(range(steps), rollout(env, policy, state), strict=False):
        step, ended = moment.step, moment.step.ended
        watch.see(step)
        rows.append(Transitions(moment.obs, moment.action, step.reward, step.next_obs, step.terminated, ended, weight))
        if one_episode:
            weight = weight.masked_fill(ended, 0)
            if stop and not weight.any():
                rows += [rows[-1]._replace(weight=weight)] * (steps - len(rows))
                break
    watch.finish()
    return Transitions(*(torch.stack(field, 1) for field in zip(*rows, strict=True)))


@torch.no_grad()
def run_episodes(
    family: Family,
    task: Task,
    policy: Policy,
    num_envs: int,
    env_rng: torch.Generator,
    rng: torch.Generator,
    episodes: int = 1,
    greedy: bool = True,
) -> tuple[Tensor, Tensor]:
    """Run a trial of ``episodes`` whole episodes in each of ``num_envs`` environments per task; the policy keeps its state.

    The environments draw from ``env_rng`` and the policy from ``rng``, so that greedy and sampled actions are compared in the
    same environments. Return the undiscounted return and the length [steps] of every episode, both ``[episodes, M, num_envs]``.
    """
    env = family.make(task, num_envs, env_rng)
    if episodes == 1:
        env.one_episode()
    shape, device = env.obs.shape[:2], env.obs.device
    # the last row receives the steps after a trial's end
    returns, lengths = torch.zeros(2, episodes + 1, *shape, device=device)
    current = torch.zeros(1, *shape, dtype=torch.long, device=device)  # the episode of each environment
    longest, watch = episodes * family.spec.horizon, StepCheck(env)
    steps = range(longest) if episodes == 1 else track(range(longest), longest, "step of the trials")
    for _, moment in zip(steps, rollout(env, policy, policy.start(num_envs, rng, greedy)), strict=False):
        watch.see(moment.step)
        reward = moment.step.reward[None]
        returns.scatter_add_(0, current, reward)
        lengths.scatter_add_(0, current, torch.ones_like(reward))
        current = (current + moment.step.ended).clamp(max=episodes)
        if (current == episodes).all():
            break
    watch.finish()
    return returns[:-1], lengths[:-1]


class Played(NamedTuple):
    """A trial in one environment."""

    returns: list[float]  # of each episode
    places: list[list[str]]  # of each episode, its start and the successor of each step; empty if a family has no names
    frames: list[Image]
    state: State  # of the policy after the last episode


@torch.no_grad()
def play(family: Family, env: Env, policy: Policy, state: State, episodes: int = 1, frames: int = 0) -> Played:
    """Run whole episodes in one environment of one task (M = N = 1), from the policy's ``state`` on; record them.

    Args:
        family: the family of the environment; it may describe observations.
        env: the environment, at the start of an episode; it must support rendering if ``frames`` is above 0.
        policy: the policy.
        state: the policy's state.
        episodes: number of episodes.
        frames: largest number of frames to render, one before each step.
    """
    returns: list[float] = [0.0]
    places, drawn, watch = [[family.describe(env.obs[0, 0])]], [env.render()] if frames else [], StepCheck(env)
    for moment in rollout(env, policy, state):
        state = moment.state
        watch.see(moment.step)
        returns[-1] += float(moment.step.reward)
        places[-1].append(family.describe(moment.step.next_obs[0, 0]))
        if bool(moment.step.ended):
            if len(returns) == episodes:
                break
            returns.append(0.0)
            places.append([family.describe(env.obs[0, 0])])
        if len(drawn) < frames:
            drawn.append(env.render())
    watch.finish()
    named = [[place for place in episode if place is not None] for episode in places]
    return Played(returns, named if any(named) else [], drawn, state)
