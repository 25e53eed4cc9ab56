"""Experience replay (Lin 1992): a ring of the latest transitions of each task, all tasks as one tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from metarl_cli.types import State, Transitions


class Replay:
    """The latest ``capacity`` transitions of each of M tasks; memory is taken as they come, up to twice what they need.

    Args:
        num_tasks: M.
        capacity: transitions kept per task.
        device: where they are kept.
    """

    def __init__(self, num_tasks: int, capacity: int, device: torch.device | str = "cpu"):
        self.num_tasks, self.capacity, self.device = num_tasks, capacity, device
        self.data: Transitions | None = None  # each field [M, room, ...], room <= capacity
        self.added = 0  # transitions ever added, per task

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, batch: Transitions) -> None:
        """Append ``[M, T, N, ...]``; the oldest go when full.

        Raises:
            ValueError: if one batch holds more than the capacity.
        """
        flat = Transitions(*(x.flatten(1, 2) for x in batch))
        size = flat.reward.shape[1]
        if size > self.capacity:
            raise ValueError(f"a batch of {size} transitions does not fit a replay of {self.capacity}")
        self._make_room(flat)
        assert self.data is not None, "there is room"
        places = (self.added + torch.arange(size, device=flat.reward.device)) % self.capacity
        for stored, new in zip(self.data, flat, strict=True):
            stored[:, places] = new
        self.added += size

    def _make_room(self, flat: Transitions) -> None:
        """For these ``[M, size, ...]`` too: what there is twice over, until it is the capacity."""
        room = 0 if self.data is None else self.data.reward.shape[1]
        need = min(self.added + flat.reward.shape[1], self.capacity)
        if need > room:
            size = min(max(need, 2 * room), self.capacity)
            larger = Transitions(*(x.new_zeros(self.num_tasks, size, *x.shape[2:]) for x in flat))
            if self.data is not None:
                for wide, stored in zip(larger, self.data, strict=True):
                    wide[:, :room] = stored
            self.data = larger

    def sample(self, tasks: Tensor, size: int, rng: torch.Generator) -> Transitions:
        """``size`` transitions, uniformly with replacement, of each task in ``tasks [m]``, as ``[m, 1, size, ...]``."""
        assert self.data is not None, "nothing was added yet"
        index = torch.randint(len(self), (len(tasks), size), generator=rng, device=tasks.device)
        return Transitions(*(x[tasks[:, None], index][:, None] for x in self.data))

    def take(self, tasks: Tensor) -> None:
        """Go on with what there is of these ``tasks [M]`` in the place of all."""
        if self.data is not None:
            self.data = Transitions(*(x[tasks] for x in self.data))

    def state_dict(self) -> State:
        return {"data": None if self.data is None else self.data._asdict(), "added": self.added}

    def load_state_dict(self, state: State) -> None:
        data = None if state["data"] is None else Transitions(**state["data"])
        held = min(state["added"], self.capacity)
        if data is not None and any(len(x) != self.num_tasks or not held <= x.shape[1] <= self.capacity for x in data):
            raise ValueError("the saved replay has another size")
        self.data = None if data is None else Transitions(*(x.to(self.device) for x in data))
        self.added = state["added"]
