"""Contexts: what an encoder infers from demonstrations, and a policy is given of a task.

    q(z | demonstrations) = N(0, I) prod_n N(mu(x_n), sigma(x_n)²)        x_n: a transition without its reward

The posterior is PEARL's (see :mod:`metarl_cli.adaptation.inference`), of episodes that somebody else has lived through.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from metarl_cli.adaptation.conditioning import ConditionedPolicy, History, join
from metarl_cli.adaptation.demonstrations import DemonstrationsConfig
from metarl_cli.adaptation.inference import EncoderConfig, PosteriorEncoder
from metarl_cli.adaptation.reward_maps import draw_rewards
from metarl_cli.config.base import StrictModel
from metarl_cli.envs.plane import PlaneFamily
from metarl_cli.experience.schedules import cosine
from metarl_cli.interfaces import (
    Demonstrations,
    Diagnostics,
    Family,
    Learner,
    Params,
    State,
    Task,
    Transitions,
    num_tasks,
)
from metarl_cli.networks.optimizers import backward
from metarl_cli.spaces import Spec

WIDTH = 1.0  # the precision of a transition's factor is softplus(-1) = 0.31 at first: four of them outweigh the prior
Rewards = Callable[[Tensor, Tensor], Tensor]  # of places [M, X, O] in tasks of contexts [M, Z]


class ContextConfig(EncoderConfig):
    """The context of a task and its encoder."""

    size: int = Field(gt=0, description="entries of the context")
    beta: float = Field(ge=0, description="weight of the divergence from the prior [loss per nat]")
    steps: int = Field(gt=0, description="longest part of an episode that is used, from its start [steps]")


class ContextualConfig(DemonstrationsConfig):
    """What is demonstrated, and the context that it tells."""

    context: ContextConfig


class FitConfig(StrictModel):
    """Steps of Adam on the demonstrations of an iteration."""

    updates: int = Field(gt=0, description="steps of Adam in an iteration")
    lr: float = Field(gt=0, description="Adam's learning rate")
    final_lr: float = Field(ge=0, description="final learning rate, as a share of lr (cosine over the run)")
    clip: float = Field(gt=0, description="largest norm of the gradient")


class Fit:
    """Adam, with the rate of a run's progress.

    Args:
        config: see :class:`FitConfig`.
        weights: what is learned; they then require gradients.
    """

    def __init__(self, config: FitConfig, weights: Params):
        self.config, self.weights = config, [value.requires_grad_() for value in weights.values()]
        self.adam = torch.optim.Adam(self.weights, lr=config.lr, fused=True)

    def __call__(self, loss: Callable[[], Tensor], progress: float) -> tuple[float, float]:
        """Take the steps of an iteration; returns the loss before the last, and the norm of its gradient."""
        self.adam.param_groups[0]["lr"] = self.config.lr * cosine(self.config.final_lr, progress)
        for _ in range(self.config.updates):
            value = loss()
            for weight, gradient in zip(self.weights, backward(value, self.weights), strict=True):
                weight.grad = gradient
            norm = torch.nn.utils.clip_grad_norm_(self.weights, self.config.clip)
            self.adam.step()
        return float(value.detach()), float(norm)

    def state_dict(self) -> State:
        """Return the state of Adam."""
        return self.adam.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self.adam.load_state_dict(state)


class DividedDemonstrations:
    """The demonstrations of an iteration: the first of each task, that its context is inferred from, and the others.

    Args:
        given: of M tasks, ``num`` and more of each.
        num: those that contexts are inferred from.
        steps: the part of each that is used, from its start.
    """

    def __init__(self, given: Demonstrations, num: int, steps: int):
        part = Transitions(*(x[:, :steps] for x in given.experience))
        self.task, self.env_steps = given.task, int(given.experience.weight.sum())
        self.support = Transitions(*(x[:, :, :num] for x in part))  # [M, T, num, ...]
        self.query = Transitions(*(x[:, :, num:] for x in part))  # [M, T, N - num, ...]


class ContextEncoder(PosteriorEncoder):
    """The posterior over the context of each task, from its demonstrations.

    Args:
        config: see :class:`ContextConfig`.
        spec: the family's.
    """

    def __init__(self, config: ContextConfig, spec: Spec):
        super().__init__(config, spec, config.size, WIDTH)
        self.steps = config.steps

    @override
    def _entries(self, support: Transitions) -> Tensor:
        return super()._entries(support._replace(reward=torch.zeros_like(support.reward)))

    def contexts(self, params: Params, measured: Params, task: Task, given: Demonstrations | None) -> Tensor:
        """Return the means ``[M, Z]`` of the posteriors after demonstrations; of the prior before any."""
        if given is None:
            return torch.zeros(num_tasks(task), self.outputs, device=params["encoder.factor.bias"].device)
        seen = Transitions(*(x[:, : self.steps] for x in given.experience))
        return self.posterior(params, self.read(measured, seen))[0]


class ContextPolicy(ConditionedPolicy):
    """The policies of one network in M tasks, which is given their contexts.

    Args:
        learner: the learner that defines the network.
        params: its weights.
        context: ``[M, Z]``.
        rewards: what is inferred of rewards; None where nothing is.
        place: the family and the tasks, to draw rewards; None: nothing is drawn.
        seen: demonstrations in these tasks, to be drawn; None where there are none.
    """

    def __init__(
        self,
        learner: Learner,
        params: Params,
        context: Tensor,
        rewards: Rewards | None = None,
        place: tuple[Family, Task] | None = None,
        seen: Demonstrations | None = None,
    ):
        super().__init__(learner, params, context, History(0, learner.spec))
        self.rewards, self.place, self.seen = rewards, place, seen

    @override
    @torch.no_grad()
    def diagnostics(self) -> Diagnostics:
        """Return the map of the inferred reward of the first task, where observations are places in a plane."""
        family, task = self.place or (None, {})
        if self.rewards is None or not isinstance(family, PlaneFamily) or (places := family.map(task)) is None:
            return super().diagnostics()
        one = {name: value[:1] for name, value in task.items()}
        flat, shape = places.flatten(0, 1), places.shape[:2]
        inferred, true = self.rewards(flat[None], self.given[:1]), family.worth(flat, one)
        paths = list[Tensor]()
        if self.seen is not None:
            steps = self.seen.experience.weight[0].sum(0).long().tolist()
            first = Transitions(*(x[0] for x in self.seen.experience))
            paths = [torch.cat([first.obs[:1, n], first.next_obs[:length, n]]) for n, length in enumerate(steps)]
        drawn = draw_rewards(inferred.view(shape), true.view(shape), ("x", "y"), paths, family.half)
        return Diagnostics({}, {}, {"reward": drawn})


def with_context(seen: Transitions, context: Tensor) -> Transitions:
    """Return transitions ``[M, T, N, ...]`` as a policy is given them: contexts ``[M, Z]`` before the observations."""
    beside = context[:, None, None].expand(*seen.reward.shape, -1)
    return seen._replace(obs=join(beside, seen.obs), next_obs=join(beside, seen.next_obs))
