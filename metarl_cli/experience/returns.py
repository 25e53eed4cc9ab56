"""Returns and advantages along trajectories."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from metarl_cli.config.base import StrictModel


class ReturnsConfig(StrictModel):
    """The estimator of returns: discount and lambda of Q(lambda)."""

    gamma: float | None = Field(
        ge=0, lt=1, description="discount; none: that of the learner; 0: the target is the reward alone"
    )
    lambda_: float = Field(ge=0, le=1, alias="lambda", description="weight of longer returns; 0: one-step DQN, 1: Monte Carlo")


def deviation(values: Tensor) -> Tensor:
    """Return the sample standard deviation of ``values [n]``; that of a single value is 0."""
    return values.std() if len(values) > 1 else values.new_zeros(())


def variance(values: Tensor) -> Tensor:
    """Return the sample variance of ``values [n, ...]`` over n; that of a single value is 0."""
    return values.var(0) if len(values) > 1 else torch.zeros_like(values[0])


def lambda_returns(
    reward: Tensor, next_value: Tensor, terminated: Tensor, ended: Tensor, gamma: float | Tensor, lambda_: float
) -> Tensor:
    """Compute Q(lambda) targets ``[..., T, N]``; ``next_value [..., T, N]`` is the bootstrap value of the true successor.

    ``gamma`` is one discount, or one for each task, ``[..., 1, 1]``.

    ``G_t = r_t + gamma * (1 - terminated_t) * ((1 - lambda) * V_{t+1} + lambda * G_{t+1})``, where ``G_{t+1}`` is ``V_{t+1}``
    itself at the end of a trajectory or of the data (Peng and Williams 1996; Sutton and Barto 2018, section 12.8).
    lambda=0 is the one-step target of DQN, lambda=1 the Monte-Carlo return. The sum is one product instead of a loop over
    time: G = W u with W[t, j] = (gamma*lambda)^(j-t) for j >= t in the same trajectory.
    """
    steps = reward.shape[-2]
    discount = gamma * (~terminated).to(reward.dtype)
    if lambda_ == 0 or steps == 1:
        return reward + discount * next_value
    last = ended.clone()
    last[..., -1, :] = True
    share = torch.where(last, 1.0, 1.0 - lambda_)  # weight of the bootstrap value
    u = reward + discount * share * next_value  # [..., T, N]
    index = torch.arange(steps, device=reward.device)
    distance = (index[None, :] - index[:, None]).to(reward.dtype)  # [T, T]
    power = torch.where(distance >= 0, (gamma * lambda_) ** distance.clamp(min=0), 0.0)
    trajectory = ended.long().cumsum(-2) - ended.long()  # [..., T, N] number of trajectories that ended before
    same = trajectory[..., :, None, :] == trajectory[..., None, :, :]  # [..., T, T, N]
    return torch.einsum("...tj,...tjn,...jn->...tn", power, same.to(reward.dtype), u)


def generalized_advantages(reward: Tensor, value: Tensor, weight: Tensor, gamma: float | Tensor, lambda_: float) -> Tensor:
    """Compute generalised advantage estimates ``[T, ...]`` (Schulman 2016, arXiv:1506.02438, equation 16).

    ``A_t = delta_t + gamma * lambda * A_{t+1}`` with ``delta_t = r_t + gamma * V_{t+1} - V_t``. V and A are 0 after the last
    step of ``weight`` 1; A is 0 at padding (weight 0). With lambda=1, A is the Monte-Carlo return minus the value.

    Args:
        reward: ``[T, ...]``.
        value: value of the state before the action, ``[T, ...]``.
        weight: 1 within a trial, 0 for padding, ``[T, ...]``.
        gamma: discount per step, which broadcasts against a row.
        lambda_: decay of the sum of temporal differences.
    """
    delta = (reward - value) * weight
    delta = torch.cat([delta[:-1] + gamma * value[1:] * weight[1:] * weight[:-1], delta[-1:]])
    steps, decays = list(delta.unbind()), (gamma * lambda_ * weight).unbind()
    for t in range(len(steps) - 2, -1, -1):
        steps[t] = torch.addcmul(steps[t], decays[t], steps[t + 1])
    return torch.stack(steps)


def trial_returns(reward: Tensor, discount: Tensor, value: Tensor, lambda_: float) -> Tensor:
    """Compute Q(lambda) returns ``[T, R]`` along trials (equation of :func:`lambda_returns`).

    ``value [T, R]`` is the value of each step's state. ``discount`` is 0 at the last step of a trial. If the last row is not
    the last step of a trial, it only bootstraps: its return is its value.
    """
    returns = torch.where(discount > 0, value, reward)
    if lambda_ == 0:
        returns[:-1] = reward[:-1] + discount[:-1] * value[1:]
        return returns
    for t in range(len(reward) - 2, -1, -1):
        returns[t] = reward[t] + discount[t] * torch.lerp(value[t + 1], returns[t + 1], lambda_)
    return returns
