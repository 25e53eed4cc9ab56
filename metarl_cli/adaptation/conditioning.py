"""Conditioning: one Q-network for all tasks, which is given something of each beside the observation, Q(s, a | c).

    input   [numbers of the task, the last k steps of the episode, observation]

The numbers are those that a family tells an oracle, or that an encoder infers from a support. What is given comes before the
observation, whose last entries may be a mask of actions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from metarl_cli.errors import UserError
from metarl_cli.interfaces import Family, Learner, Params, Policy, State, Step, Task, Transitions, num_tasks
from metarl_cli.spaces import Spec


def symlog(x: Tensor) -> Tensor:
    """Compress numbers of any size, sign(x) ln(1 + |x|) (Hafner 2023, arXiv:2301.04104)."""
    return x.sign() * x.abs().log1p()


def join(*parts: Tensor) -> Tensor:
    """Join vectors ``[..., n]`` in the default type; a single one, and empty ones, stay as they are."""
    parts = tuple(part for part in parts if part.shape[-1]) or parts[:1]
    return parts[0] if len(parts) == 1 else torch.cat([part.to(torch.get_default_dtype()) for part in parts], -1)


def widened(spec: Spec, *scales: tuple[float, ...]) -> Spec:
    """Return a family's spec with further entries before those of its observations, of the usual sizes ``scales``.

    Raises:
        UserError: if observations are images.
    """
    more = sum(scales, ())
    if not more:
        return spec
    if len(spec.obs_shape) != 1 or spec.pixels:
        raise UserError(f"the network can be given nothing beside images, observations of {list(spec.obs_shape)}")
    usual = spec.obs_scale or (1.0,) * spec.obs_shape[0]
    scaled = any(scale != 1 for scale in more + usual)
    return spec._replace(obs_shape=(len(more) + spec.obs_shape[0],), obs_scale=more + usual if scaled else ())


def knowledge_of(family: Family, task: Task, reader: str = "an oracle") -> Tensor:
    """Return the numbers ``[M, F]`` that tell each of M tasks; ``reader`` is what needs them, for the message.

    Raises:
        UserError: if the family has none.
    """
    known = family.knowledge(task)
    if known is None:
        raise UserError(f"{type(family).__name__} has no numbers that describe a task, which {reader} could be given")
    return known


def check_given(given: Tensor, task: Task, size: int) -> None:
    """Check the numbers that a saved policy is given of each of M tasks.

    Raises:
        ValueError: if they are not ``[M, size]``.
    """
    if given.shape != (num_tasks(task), size):
        raise ValueError(f"the saved policy is not given the {size} numbers of this network, of {num_tasks(task)} tasks")


class History:
    """The last ``steps`` steps of an episode, the newest last: observation, action and reward; zeros before it began."""

    def __init__(self, steps: int, spec: Spec):
        self.steps, self.spec = steps, spec
        self.each = math.prod(spec.obs_shape) + spec.actions.size + 1  # entries of a step
        self.size = steps * self.each
        self.scale = (*(spec.obs_scale or (1.0,) * math.prod(spec.obs_shape)), *(1.0,) * (spec.actions.size + 1)) * steps

    def start(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Return the history at the start of an episode, ``[*shape, H]``."""
        return torch.zeros(*shape, self.size, device=device)

    def after(self, before: Tensor, obs: Tensor, action: Tensor, reward: Tensor) -> Tensor:
        """Return the history ``[..., H]`` after a step with ``obs [..., O]``, ``action [...]``, ``reward [...]``."""
        if not self.steps:
            return before
        action = self.spec.actions.encode(self.spec.actions.clip(action))
        return join(before[..., self.each :], join(obs, action, symlog(reward)[..., None]))

    def along(self, before: Tensor, experience: Transitions) -> tuple[Transitions, Tensor]:
        """Prepend to the observations of ``experience [M, T, N, ...]`` the history that each was seen with.

        Args:
            before: the history ``[M, N, H]`` at the first step.
            experience: the steps, one after another.

        Returns:
            The experience, and the history after its last step.
        """
        if not self.steps:
            return experience, before
        seen, led = [], []
        for obs, action, reward, ended in zip(
            *(x.unbind(1) for x in (experience.obs, experience.action, experience.reward, experience.ended)), strict=True
        ):
            seen.append(before)
            led.append(self.after(before, obs, action, reward))
            before = led[-1].masked_fill(ended[..., None], 0)
        obs, next_obs = join(torch.stack(seen, 1), experience.obs), join(torch.stack(led, 1), experience.next_obs)
        return experience._replace(obs=obs, next_obs=next_obs), before


class ConditionedPolicy(Policy):
    """The policies of one network in M tasks.

    Args:
        learner: the learner that defines the network.
        params: its weights.
        given: what it is given of each task, ``[M, C]``; or the means of what is drawn at the start of each trial.
        history: of the steps that it is given.
        spread: standard deviations ``[M, C]`` of what is drawn (posterior sampling); None: nothing is.
    """

    def __init__(self, learner: Learner, params: Params, given: Tensor, history: History, spread: Tensor | None = None):
        self.learner, self.params, self.given, self.history, self.spread = learner, params, given, history, spread
        self.stochastic = learner.stochastic or spread is not None

    @override
    def start(self, num_envs: int, rng: torch.Generator, greedy: bool = True) -> State:
        shape = len(self.given), num_envs
        given = self.given[:, None].expand(*shape, -1)
        if self.spread is not None and not greedy:
            noise = torch.randn(given.shape, generator=rng, device=given.device)
            given = given + self.spread[:, None] * noise
        history = self.history.start(shape, given.device)
        return {"rng": None if greedy else rng, "given": given, "history": history}

    @override
    @torch.no_grad()
    def act(self, state: State, obs: Tensor) -> tuple[Tensor, State]:
        given = state["given"].expand(*obs.shape[:2], -1)  # a caller without a history may ask of any number of observations
        policy = self.learner.policy(self.params, join(given, state["history"], obs))
        return policy.mode() if state["rng"] is None else policy.sample(state["rng"]), state

    @override
    def observe(self, state: State, obs: Tensor, action: Tensor, step: Step) -> State:
        if not self.history.steps:
            return state
        after = self.history.after(state["history"], obs, action, step.reward)
        return {**state, "history": after.masked_fill(step.ended[..., None], 0)}

    @override
    def state_dict(self) -> State:
        return {"given": self.given, "spread": self.spread}
