"""Replay of whole trials or of segments of trials (R2D2: Kapturowski 2019)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from metarl_cli.config.base import StrictModel
from metarl_cli.experience.trials import Trials
from metarl_cli.interfaces import Params, State
from metarl_cli.progress import timed


class ReplayConfig(StrictModel):
    """The capacity of the replay, and the segments drawn for an update."""

    capacity: int = Field(gt=0, description="trials kept")
    batch: int = Field(gt=0, description="segments per update")
    segment: int | None = Field(gt=0, description="learned steps of a segment (gru, lstm); none: whole trials")
    burn_in: int = Field(ge=0, description="steps before a segment that only warm up the memory; unused for whole trials")


class Batch(NamedTuple):
    """Segments of B trials, time first: ``[T, B, ...]``; ``discount`` is that of the next step, 0 at a trial's last step."""

    inputs: Tensor
    action: Tensor
    reward: Tensor
    discount: Tensor
    weight: Tensor  # 1 for learned steps; 0 for burn-in, for the step after the segment, which bootstraps, and for padding
    start: State  # the memory's state before the first step, [B, ...]; empty for whole trials

    def rows(self, own: slice) -> Batch:
        """Return some of the segments."""
        steps = {k: v[:, own] for k, v in self._asdict().items() if k != "start"}
        return Batch(**steps, start={k: v[own] for k, v in self.start.items()})


class TrialReplay:
    """The latest trials; if segments are drawn, also the memory's state every ``stride`` steps, as it was when acting.

    Args:
        config: see :class:`ReplayConfig`.
        horizon: the longest trial [steps].
        device: device of the buffer.
    """

    def __init__(self, config: ReplayConfig, horizon: int, device: torch.device):
        self.config, self.horizon, self.device = config, horizon, device
        self.segment = config.segment or horizon
        # segments and their burn-in start at multiples of the stride
        self.stride = math.gcd(self.segment, config.burn_in) if config.segment else horizon
        self.steps: Params = {}  # inputs, action, reward and discount, [capacity, horizon, ...]
        self.starts: State = {}  # [capacity, horizon / stride, ...]
        self.lengths = torch.zeros(config.capacity, dtype=torch.long, device=device)
        self.added = 0  # trials ever added

    def add(self, trials: Trials, discount: Tensor) -> None:
        """Append trials; a full buffer drops the oldest.

        Args:
            trials: R trials, whose ``starts`` are ``stride`` steps apart.
            discount: ``[T, R]``, as in :class:`Batch`.
        """
        steps = {"inputs": trials.inputs, "action": trials.action, "reward": trials.reward, "discount": discount}
        starts = trials.starts if self.config.segment else {}
        rows = discount.shape[1]
        places = (self.added + torch.arange(rows, device=self.device)) % self.config.capacity
        for stored, new, length in (
            (self.steps, steps, self.horizon),
            (self.starts, starts, -(-self.horizon // self.stride)),
        ):
            for name, value in new.items():
                if name not in stored:
                    stored[name] = value.new_zeros(self.config.capacity, length, *value.shape[2:])
                stored[name][places, : len(value)] = value.transpose(0, 1)
        self.lengths[places] = trials.weight.sum(0).long()
        self.added += rows

    def clear(self) -> None:
        """Drop the content."""
        self.steps, self.starts, self.added = {}, {}, 0
        self.lengths = torch.zeros_like(self.lengths)

    @timed("sampling from replay")
    def sample(self, rng: torch.Generator) -> Batch:
        """Draw ``batch`` segments, each after its burn-in: a trial uniformly, then one of its segments uniformly.

        Trials of failed tasks are short: if all segments were equally likely, few segments would be from these trials.
        """
        filled = min(self.added, self.config.capacity)
        row = torch.randint(filled, (self.config.batch,), generator=rng, device=self.device)
        counts = (self.lengths[row] + self.segment - 1) // self.segment  # of segments in each trial
        place = torch.rand(self.config.batch, generator=rng, device=self.device)
        first = (place * counts).long() * self.segment  # [B] the first learned step
        begin = (first - self.config.burn_in).clamp(min=0)
        longest = min(self.config.burn_in + self.segment + 1, int((self.lengths[row] - begin).max()))
        t = begin + torch.arange(longest, device=self.device)[:, None]  # [T, B]
        learned = (t >= first) & (t < first + self.segment) & (t < self.lengths[row])
        t = torch.minimum(t, self.lengths[row] - 1)  # padding repeats the last step
        start = {name: value[row, begin // self.stride] for name, value in self.starts.items()}
        steps = {name: value[row, t] for name, value in self.steps.items()}
        return Batch(**steps, weight=learned.to(steps["reward"].dtype), start=start)

    def state_dict(self) -> State:
        """Return the content of the buffer."""
        return {"steps": self.steps, "starts": self.starts, "lengths": self.lengths, "added": self.added}

    def load_state_dict(self, state: State) -> None:
        """Restore the content from :meth:`state_dict`.

        Raises:
            ValueError: if the capacities differ.
        """
        if state["lengths"].shape != self.lengths.shape:
            raise ValueError("the saved replay has another size")
        self.steps = {name: value.to(self.device) for name, value in state["steps"].items()}
        self.starts = {name: value.to(self.device) for name, value in state["starts"].items()}
        self.lengths, self.added = state["lengths"].to(self.device), state["added"]
