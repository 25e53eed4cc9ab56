"""Whole trials as tensors."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from metarl_cli.interfaces import State


class Trials(NamedTuple):
    """R whole trials, time first: ``[T, R, ...]``. ``weight`` is 1 within a trial and 0 after its end."""

    inputs: Tensor
    action: Tensor
    reward: Tensor
    ended: Tensor  # the last step of an episode
    terminated: Tensor
    weight: Tensor
    clock: Tensor  # [T, R, 2]
    features: Tensor  # [T, R, H] of the memory, when it acted
    starts: State  # the memory's state at the start of each segment of back-propagation, [S, R, ...], and perhaps of more

    def rows(self, rows: Tensor) -> Trials:
        """Return the trials that an index selects, up to the end of the longest of them."""
        longest = int(self.weight.index_select(1, rows).sum(0).max())
        steps = {k: v[:longest].index_select(1, rows) for k, v in self._asdict().items() if k != "starts"}
        return Trials(**steps, starts={k: v.index_select(1, rows) for k, v in self.starts.items()})

    def summary(self) -> dict[str, float]:
        """Return the metrics of the trials."""
        total, num = float((self.reward * self.weight).sum()), float(self.weight.sum())
        return {
            "train/trial_return": total / self.reward.shape[1],
            "train/reward": total / num,
            "train/episode_length": num / float((self.ended * self.weight).sum().clamp(min=1)),
        }
