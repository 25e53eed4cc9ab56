"""Exploration."""

from __future__ import annotations

import torch
from torch import Tensor

from metarl_cli.experience.rollout import Act
from metarl_cli.interfaces import Learner, Params


def explorer(learner: Learner, params: Params, epsilon: float | Tensor, repeat: int, rng: torch.Generator) -> Act:
    """Epsilon-greedy where a random action lasts ``repeat`` steps; the share of random steps stays epsilon.

    Temporally extended exploration (Dabney 2021, arXiv:2006.01782) with a fixed duration. ``params`` lead with [M];
    ``epsilon`` is that of all tasks, or of each, ``[M]``.
    """
    share = epsilon[:, None] if isinstance(epsilon, Tensor) else epsilon
    if repeat == 1:
        return lambda obs: learner.act(params, obs, epsilon, rng)
    held: Tensor | None = None
    left: Tensor | None = None

    def act(obs: Tensor) -> Tensor:
        nonlocal held, left
        anything = learner.act(params, obs, 1.0, rng)
        if held is None or left is None:
            held, left = anything, torch.zeros(obs.shape[:2], dtype=torch.long, device=obs.device)
            # as if it had always explored: some are in the middle of a random action, of which 0 to repeat - 1 steps are left
            part = torch.randint(repeat, left.shape, generator=rng, device=obs.device)
            left = torch.where(torch.rand(left.shape, generator=rng, device=obs.device) < share, part, left)
        starts = share / (share + repeat * (1 - share))  # of idle steps, so that a share epsilon of all is random
        begin = (left == 0) & (torch.rand(left.shape, generator=rng, device=obs.device) < starts)
        left = torch.where(begin, repeat, left)
        wide = (...,) + (None,) * (anything.dim() - 2)
        held = torch.where(begin[wide], anything, held)
        if learner.spec.masked:  # what was chosen may no longer be allowed
            legal = obs[..., -learner.spec.num_actions :].gather(-1, held[..., None])[..., 0] > 0
            held = torch.where(legal, held, anything)
        random = left > 0
        left = (left - 1).clamp(min=0)
        return (
            held
            if not isinstance(epsilon, Tensor) and epsilon >= 1
            else torch.where(random[wide], held, learner.act(params, obs, 0.0))
        )

    return act
