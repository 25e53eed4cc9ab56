"""A learned inner loss: the targets of the support get a correction that the outer loop learns.

    y'_t = y_t + c_psi(s_t, a_t, r_t, s'_t, y_t)         inner loss  mean (Q(s, a) - y')^2

A temporal-difference error tells little about some tasks: its noise hides what one transition may show exactly. The correction
is a small network, trained by the meta-gradient as the initialisation is, so that the inner step moves the weights by what
identifies the task. It starts at zero, from the plain loss.

A learned loss is the idea of ML³ (Bechtle 2021, arXiv:1906.05374). Differs from it: what is learned is the target within the
learner's own loss, not the loss, and its inputs include the successor.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from metarl_cli.interfaces import Batch, Distribution, Learner, Params, Transitions
from metarl_cli.networks.layers import linear
from metarl_cli.spaces import constant


class LearnedTarget(Learner):
    """A learner of M tasks whose targets are corrected; else it is ``learner``.

    Args:
        learner: the learner; its ``prepare`` makes the signal ``target``.
        correction: the weights of the correction, from :func:`initial_correction`; one network for all tasks.
    """

    stacked = True

    def __init__(self, learner: Learner, correction: Params):
        self.learner, self.correction = learner, correction
        self.spec, self.actions = learner.spec, learner.actions

    @override
    def init(self, rng: torch.Generator) -> Params:
        return self.learner.init(rng)

    @override
    def policy(self, params: Params, obs: Tensor) -> Distribution:
        return self.learner.policy(params, obs)

    @override
    def prepare(
        self, params: Params, slow: Params, batch: Transitions, gamma: float | Tensor | None = None, lambda_: float = 0.0
    ) -> Batch:
        """Prepare the targets ``target [M, T, N]``, and add the correction; differentiable in its weights."""
        experience, signal = self.learner.prepare(params, slow, batch, gamma, lambda_)
        inputs = transition_inputs(self.learner, batch, signal["target"])
        weights = self.correction
        hidden = torch.tanh(inputs @ weights["hidden.weight"].mT + weights["hidden.bias"])
        return Batch(experience, signal | {"target": signal["target"] + hidden @ weights["out.weight"] + weights["out.bias"]})

    @override
    def loss(self, params: Params, batch: Batch) -> Tensor:
        return self.learner.loss(params, batch)


def transition_inputs(learner: Learner, batch: Transitions, target: Tensor) -> Tensor:
    """Return what the correction sees of each transition, ``[..., I]``."""
    obs, change = batch.obs, batch.next_obs - batch.obs
    if scale := learner.spec.obs_scale:
        obs, change = (x / constant(scale, x.dtype, x.device) for x in (obs, change))
    numbers = torch.stack([batch.reward, batch.terminated.to(target.dtype), target], -1)
    return torch.cat([obs, change, learner.actions.encode(batch.action), numbers], -1)


def initial_correction(learner: Learner, hidden: int, rng: torch.Generator) -> Params:
    """Draw the weights of a correction with so many hidden units, which is zero at first.

    Raises:
        ValueError: if the observations are images, or the learner takes one task at a time.
    """
    shape = learner.spec.obs_shape
    if len(shape) != 1 or not learner.stacked:
        raise ValueError(f"inner.correction needs observations of numbers, not {list(shape)}, and a learner that is stacked")
    inputs = 2 * math.prod(shape) + learner.actions.size + 3
    weights = linear("hidden", hidden, inputs, 1.0, rng)
    return weights | {name: torch.zeros(size, device=rng.device) for name, size in (("out.weight", [hidden]), ("out.bias", []))}
