"""Experience replay (Lin 1992): a ring of the latest transitions of each task, all tasks as one tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from metarl_cli.interfaces import State, Transitions


class Replay:
    """The latest ``capacity`` transitions of each of M tasks.

    Args:
        num_tasks: M.
        capacity: transitions kept per task.
        device: where they are kept.
    """

    def __init__(self, num_tasks: int, capacity: int, device: torch.device | str = "cpu"):
        self.num_tasks, self.capacity, self.device = num_tasks, capacity, device
        self.data: Transitions | None = None  # each field [M, capacity, ...], of which the first len(self) mean something
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
        if self.data is None:
            self.data = self._room_for(flat)
        places = (self.added + torch.arange(size, device=flat.reward.device)) % self.capacity
        for stored, new in zip(self.data, flat, strict=True):
            stored[:, places] = new
        self.added += size

    def _room_for(self, held: Transitions) -> Transitions:
        """With what is ``held [M, size, ...]``, and room for all that may come: memory is taken when it is first written."""
        room = Transitions(*(x.new_empty(self.num_tasks, self.capacity, *x.shape[2:], device=self.device) for x in held))
        for stored, old in zip(room, held, strict=True):
            stored[:, : old.shape[1]] = old
        return room

    def sample(self, tasks: Tensor, size: int, rng: torch.Generator) -> Transitions:
        """``size`` transitions, uniformly with replacement, of each task in ``tasks [m]``, as ``[m, 1, size, ...]``."""
        assert self.data is not None, "nothing was added yet"
        index = torch.randint(len(self), (len(tasks), size), generator=rng, device=tasks.device)
        return Transitions(*(x[tasks[:, None], index][:, None] for x in self.data))

    def select_rows(self, tasks: Tensor) -> None:
        """Go on with what there is of these ``tasks [M]`` in the place of all."""
        if self.data is not None:
            self.data = self._room_for(Transitions(*(x[tasks] for x in self._held(self.data))))

    def _held(self, data: Transitions) -> Transitions:
        """What means something of ``data [M, capacity, ...]``."""
        return Transitions(*(x[:, : len(self)] for x in data))

    def state_dict(self) -> State:
        data = self.data
        if data is not None and len(self) < self.capacity:
            data = Transitions(*(x.clone() for x in self._held(data)))  # of a view all would be saved
        return {"data": None if data is None else data._asdict(), "added": self.added}

    def load_state_dict(self, state: State) -> None:
        self.added = state["added"]
        data = None if state["data"] is None else self._held(Transitions(**state["data"]))
        if data is not None and any(x.shape[:2] != (self.num_tasks, len(self)) for x in data):
            raise ValueError("the saved replay has another size")
        self.data = None if data is None else self._room_for(data)
