"""Experience replay (Lin 1992): a ring buffer of the latest transitions of each task, all tasks in one tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from metarl_cli.interfaces import State, Transitions
from metarl_cli.progress import timed

ALL = slice(None)


class Replay:
    """The latest ``capacity`` transitions of each of M tasks.

    Args:
        num_tasks: M.
        capacity: transitions kept per task.
        device: device of the buffer.
    """

    def __init__(self, num_tasks: int, capacity: int, device: torch.device | str = "cpu"):
        self.num_tasks, self.capacity, self.device = num_tasks, capacity, device
        self.data: Transitions | None = None  # each field [M, capacity, ...], of which the first len(self) are filled
        self.added = 0  # transitions ever added, per task

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, batch: Transitions) -> None:
        """Append transitions ``[M, T, N, ...]``; a full buffer drops the oldest.

        Raises:
            ValueError: if the batch holds more transitions than the capacity.
        """
        flat = Transitions(*(x.flatten(1, 2) for x in batch))
        size = flat.reward.shape[1]
        if size > self.capacity:
            raise ValueError(f"a batch of {size} transitions does not fit a replay of {self.capacity}")
        if self.data is None:
            self.data = self._allocate(flat)
        places = (self.added + torch.arange(size, device=flat.reward.device)) % self.capacity
        for stored, new in zip(self.data, flat, strict=True):
            stored[:, places] = new
        self.added += size

    def _allocate(self, content: Transitions) -> Transitions:
        """Return a buffer of the whole capacity that starts with ``content [M, size, ...]``.

        The rest is not initialised: the system maps its memory at the first write.
        """
        buffer = Transitions(*(x.new_empty(self.num_tasks, self.capacity, *x.shape[2:], device=self.device) for x in content))
        for stored, old in zip(buffer, content, strict=True):
            stored[:, : old.shape[1]] = old
        return buffer

    @timed("sampling from replay")
    def sample(self, tasks: Tensor, size: int, rng: torch.Generator, own: slice = ALL) -> Transitions:
        """Draw ``size`` transitions of each task in ``tasks [m]``, uniformly with replacement -> ``[m, 1, size, ...]``.

        Only the tasks ``own`` are returned; the draw does not depend on it.
        """
        assert self.data is not None, "the replay is empty"
        index = torch.randint(len(self), (len(tasks), size), generator=rng, device=tasks.device)
        tasks, index = tasks[own], index[own]
        places = (index + tasks[:, None] * self.capacity).flatten()
        shape = len(tasks), 1, size
        return Transitions(*(x.flatten(0, 1).index_select(0, places).view(*shape, *x.shape[2:]) for x in self.data))

    def select_rows(self, tasks: Tensor) -> None:
        """Replace the content by copies of the rows ``tasks [M]``."""
        if self.data is not None:
            self.data = self._allocate(Transitions(*(x[tasks] for x in self._filled(self.data))))

    def clear(self) -> None:
        """Drop the content."""
        self.data, self.added = None, 0

    def _filled(self, data: Transitions) -> Transitions:
        """Return the filled part of ``data [M, capacity, ...]``."""
        return Transitions(*(x[:, : len(self)] for x in data))

    def state_dict(self) -> State:
        """Return the filled part of the buffer."""
        data = self.data
        if data is not None and len(self) < self.capacity:
            data = Transitions(*(x.clone() for x in self._filled(data)))  # torch.save writes the whole storage of a view
        return {"data": None if data is None else data._asdict(), "added": self.added}

    def load_state_dict(self, state: State) -> None:
        """Restore the buffer from :meth:`state_dict`.

        Raises:
            ValueError: if the numbers of tasks or transitions differ.
        """
        self.added = state["added"]
        if (state["data"] is None) != (self.added == 0):
            raise ValueError("the saved replay is not whole")
        data = None if state["data"] is None else self._filled(Transitions(**state["data"]))
        if data is not None and any(x.shape[:2] != (self.num_tasks, len(self)) for x in data):
            raise ValueError("the saved replay has another size")
        self.data = None if data is None else self._allocate(data)
