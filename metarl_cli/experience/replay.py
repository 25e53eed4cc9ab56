"""Experience replay (Lin 1992): a ring buffer of the latest transitions of each task, all tasks in one tensor.

A transition is a row of bytes, so that drawing it reads memory at one place instead of seven.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metarl_cli.interfaces import State, Transitions
from metarl_cli.progress import timed

ALL = slice(None)


class Rows:
    """The places of a transition's fields in a row of bytes: those of the largest numbers come first, so that all are aligned.

    Args:
        content: transitions ``[M, size, ...]`` of these types and shapes.
    """

    def __init__(self, content: Transitions):
        self.places = dict[str, tuple[torch.dtype, int, torch.Size]]()  # type, first number of that type, shape
        used = 0
        for name, x in sorted(zip(content._fields, content, strict=True), key=lambda field: -field[1].itemsize):
            shape = x.shape[2:]
            self.places[name] = x.dtype, used // x.itemsize, shape
            used += shape.numel() * x.itemsize
        largest = max(x.itemsize for x in content)
        self.width = -(-used // largest) * largest

    def fields(self, rows: Tensor) -> Transitions:
        """Return the fields of ``rows [..., width]``, which share their memory."""
        typed = {dtype: rows.view(dtype) for dtype in dict.fromkeys(dtype for dtype, *_ in self.places.values())}
        fields = dict[str, Tensor]()
        for name, (dtype, begin, shape) in self.places.items():
            numbers = typed[dtype]
            if shape:
                x = numbers.narrow(-1, begin, shape.numel())
                fields[name] = x if len(shape) == 1 else x.view(*rows.shape[:-1], *shape)
            else:
                fields[name] = numbers.select(-1, begin)
        return Transitions(**fields)


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
            self._allocate(Transitions(*(x[:, :0] for x in flat)))
        new = self.rows.new_empty(self.num_tasks, size, self.layout.width)
        for stored, x in zip(self.layout.fields(new), flat, strict=True):
            stored.copy_(x)
        self.rows[:, (self.added + torch.arange(size, device=new.device)) % self.capacity] = new
        self.added += size

    def _allocate(self, content: Transitions) -> None:
        """Start with ``content [M, size, ...]`` in a buffer of the whole capacity.

        The rest is not initialised: the system maps its memory at the first write.
        """
        self.layout = Rows(content)
        self.rows = torch.empty(self.num_tasks, self.capacity, self.layout.width, dtype=torch.uint8, device=self.device)
        self.data = self.layout.fields(self.rows)
        for stored, old in zip(self.data, content, strict=True):
            stored[:, : old.shape[1]] = old

    @timed("sampling from replay")
    def sample(self, tasks: Tensor, size: int, rng: torch.Generator, own: slice = ALL) -> Transitions:
        """Draw ``size`` transitions of each task in ``tasks [m]``, uniformly with replacement -> ``[m, 1, size, ...]``.

        Only the tasks ``own`` are returned; the draw does not depend on it.
        """
        assert self.data is not None, "the replay is empty"
        index = torch.randint(len(self), (len(tasks), size), generator=rng, device=tasks.device)
        tasks, index = tasks[own], index[own]
        places = (index + tasks[:, None] * self.capacity).flatten()
        return self.layout.fields(self.rows.flatten(0, 1).index_select(0, places).view(len(tasks), 1, size, -1))

    def select_rows(self, tasks: Tensor) -> None:
        """Replace the content by copies of the rows ``tasks [M]``."""
        if self.data is not None:
            self._allocate(Transitions(*(x[tasks] for x in self._filled(self.data))))

    def clear(self) -> None:
        """Drop the content."""
        self.data, self.added = None, 0

    def _filled(self, data: Transitions) -> Transitions:
        """Return the filled part of ``data [M, capacity, ...]``."""
        return Transitions(*(x[:, : len(self)] for x in data))

    def state_dict(self) -> State:
        """Return a copy of the filled part of the buffer."""
        data = (
            None
            if self.data is None
            else Transitions(*(x.clone(memory_format=torch.contiguous_format) for x in self._filled(self.data)))
        )
        return {"data": None if data is None else data._asdict(), "added": self.added}

    def load_state_dict(self, state: State) -> None:
        """Restore the buffer from :meth:`state_dict`.

        Raises:
            ValueError: if the numbers of tasks or transitions differ.
        """
        self.data, self.added = None, state["added"]
        if (state["data"] is None) != (self.added == 0):
            raise ValueError("the saved replay is not whole")
        if state["data"] is None:
            return
        data = self._filled(Transitions(**state["data"]))
        if any(x.shape[:2] != (self.num_tasks, len(self)) for x in data):
            raise ValueError("the saved replay has another size")
        self._allocate(data)
