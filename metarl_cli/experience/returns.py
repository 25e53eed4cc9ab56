"""Returns along trajectories, written for one task."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from metarl_cli.config.base import StrictModel


class ReturnsConfig(StrictModel):
    """The estimate of returns: discount and lambda."""

    gamma: float | None = Field(ge=0, lt=1, description="discount; none: the learner's; 0 regresses on the reward alone")
    lambda_: float = Field(ge=0, le=1, alias="lambda", description="share of longer returns; 0 is one-step DQN")


def lambda_returns(
    reward: Tensor, next_value: Tensor, terminated: Tensor, ended: Tensor, gamma: float | Tensor, lambda_: float
) -> Tensor:
    """Q(lambda) targets, ``[T, N]`` each, with next_value the bootstrap value of the true successor.

    ``G_t = r_t + gamma * (1 - terminated_t) * ((1 - lambda) * V_{t+1} + lambda * G_{t+1})``, where ``G_{t+1}`` is ``V_{t+1}``
    itself at the end of a trajectory or of the data (Peng and Williams 1996; Sutton and Barto 2018, section 12.8).
    lambda=0 is the one-step target of DQN, lambda=1 the Monte-Carlo return. Computed as one product instead of a
    loop over time: G = W u with W[t, j] = (gamma*lambda)^(j-t) for j >= t in the same trajectory.
    """
    steps = reward.shape[0]
    discount = gamma * (~terminated).to(reward.dtype)
    if lambda_ == 0 or steps == 1:
        return reward + discount * next_value
    last = ended.clone()
    last[-1] = True
    carry = torch.where(last, 1.0, 1.0 - lambda_)
    u = reward + discount * carry * next_value  # [T, N]
    index = torch.arange(steps, device=reward.device)
    distance = (index[None, :] - index[:, None]).to(reward.dtype)  # [T, T]
    power = torch.where(distance >= 0, (gamma * lambda_) ** distance.clamp(min=0), 0.0)
    trajectory = ended.long().cumsum(0) - ended.long()  # [T, N] how many trajectories ended before
    same = trajectory[:, None] == trajectory[None, :]  # [T, T, N]
    return torch.einsum("tj,tjn,jn->tn", power, same.to(reward.dtype), u)


def generalized_advantages(reward: Tensor, value: Tensor, weight: Tensor, gamma: float, lambda_: float) -> Tensor:
    """Generalised advantage estimates ``[T, ...]`` (Schulman 2016, arXiv:1506.02438, equation 16).

    ``A_t = delta_t + gamma * lambda * A_{t+1}`` with ``delta_t = r_t + gamma * V_{t+1} - V_t``; nothing follows the last step
    whose ``weight`` is 1, and padding (weight 0) has no advantage. With lambda=1 the Monte-Carlo return minus the value.

    Args:
        reward, value, weight: ``[T, ...]`` each; ``value`` that of the state acted in.
    """
    advantages = torch.zeros_like(reward)
    following = advantage = torch.zeros_like(reward[0])
    for t in range(len(reward) - 1, -1, -1):
        delta = reward[t] + gamma * following - value[t]
        advantage = (delta + gamma * lambda_ * advantage) * weight[t]
        following = value[t] * weight[t]
        advantages[t] = advantage
    return advantages


def trial_returns(reward: Tensor, discount: Tensor, value: Tensor, lambda_: float) -> Tensor:
    """Q(lambda) returns ``[T, R]`` along trials (the module's equation), where ``value [T, R]`` is that of each step's state.

    ``discount`` is 0 at a trial's last step. A last row that is not one only bootstraps: its return is its value.
    """
    returns = torch.where(discount > 0, value, reward)
    if lambda_ == 0:
        returns[:-1] = reward[:-1] + discount[:-1] * value[1:]
        return returns
    for t in range(len(reward) - 2, -1, -1):
        returns[t] = reward[t] + discount[t] * torch.lerp(value[t + 1], returns[t + 1], lambda_)
    return returns
