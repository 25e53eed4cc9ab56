"""Statistics of whole episodes that go on from one collection of experience to the next."""

from __future__ import annotations

import torch
from torch import Tensor

from metarl_cli.interfaces import State, Transitions


class Episodes:
    """The episodes that M x N environments are in the middle of."""

    def __init__(self) -> None:
        self.open: Tensor | None = None  # [2, M, N] the steps and the return so far of each, in float64

    def summary(self, experience: Transitions) -> dict[str, float]:
        """Return the metrics of newly collected experience ``[M, T, N, ...]``.

        They are the mean reward of a step, and the mean length and return of the episodes that ended in it, from their first
        step on; without the latter two where none ended.
        """
        reward, ended = experience.reward.double(), experience.ended
        new = torch.stack([torch.ones_like(reward), reward])  # [2, M, T, N]
        unfinished = ~ended.flip(1).cumsum(1).flip(1).bool()  # steps after the last end
        before = torch.zeros_like(new[:, :, 0]) if self.open is None else self.open.to(new.device)
        total = before + new.sum(2)
        self.open = torch.where(ended.any(1), (new * unfinished).sum(2), total)
        metrics, episodes = {"train/reward": float(reward.mean())}, int(ended.sum())
        if episodes:
            length, returns = ((total - self.open).sum((1, 2)) / episodes).tolist()
            metrics |= {"train/episode_length": length, "train/episode_return": returns}
        return metrics

    def state_dict(self) -> State:
        """Return the open episodes."""
        return {"open": self.open}

    def load_state_dict(self, state: State) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self.open = state["open"]
