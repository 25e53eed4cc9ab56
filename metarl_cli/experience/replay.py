"""Experience replay (Lin 1992): a ring buffer of the latest transitions of each task, all tasks in one tensor.

A transition is stored in one row, so that sampling it reads one place in memory instead of seven.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metarl_cli.interfaces import State, Transitions
from metarl_cli.progress import timed

ALL = slice(None)
UNITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # whole numbers by their bytes


class RowLayout:
    """The layout of a transition in a row of whole numbers. Fields of wider types come first, so that every field is aligned.

    Args:
        content: transitions ``[M, size, ...]`` of these types and shapes.
    """

    def __init__(self, content: Transitions):
        self.places = dict[str, tuple[torch.dtype, int, torch.Size]]()  # type, offset in items of that type, shape
        used = 0  # [bytes]
        for name, x in sorted(zip(content._fields, content, strict=True), key=lambda field: -field[1].itemsize):
            shape = x.shape[2:]
            self.places[name] = x.dtype, used // x.itemsize, shape
            used += shape.numel() * x.itemsize
        widest = max(x.itemsize for x in content)
        self.unit, self.width = UNITS[widest], -(-used // widest)
        self.types = {dtype for dtype, *_ in self.places.values()}

    def fields(self, rows: Tensor) -> Transitions:
        """Return the fields ``[..., *shape]`` of ``rows [..., width]``, which share their memory."""
        typed = {dtype: rows.view(dtype) for dtype in self.types}
        fields = dict[str, Tensor]()
        for name, (dtype, offset, shape) in self.places.items():
            items = typed[dtype]
            if shape:
                x = items.narrow(-1, offset, shape.numel())
                fields[name] = x if len(shape) == 1 else x.view(*rows.shape[:-1], *shape)
            else:
                fields[name] = items.select(-1, offset)
        return Transitions(**fields)


class Replay:
    """The latest ``capacity`` transitions of each of M tasks.

    Args:
        num_tasks: M.
        capacity: transitions kept per task.
        device: device of the buffer.
    """

    layout: RowLayout  # once there is content

    def __init__(self, num_tasks: int, capacity: int, device: torch.device | str = "cpu"):
        self.num_tasks, self.capacity, self.device = num_tasks, capacity, device
        self.rows: Tensor | None = None  # [M, capacity, width], of which the first len(self) are filled
        self.data: Transitions | None = None  # its fields [M, capacity, ...], which share its memory
        self.added = 0  # transitions ever added, per task

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, batch: Transitions) -> None:
        """Append transitions ``[M, T, N, ...]``; a full buffer drops the oldest.

        Raises:
            ValueError: if the batch holds more transitions than the capacity, or has other types or shapes than the buffer.
        """
        new = Transitions(*(x.flatten(1, 2) for x in batch))
        size, begin = new.reward.shape[1], self.added % self.capacity
        if size > self.capacity:
            raise ValueError(f"a batch of {size} transitions does not fit a replay of {self.capacity}")
        data = self.data or self._allocate(new)
        if RowLayout(new).places != self.layout.places:
            raise ValueError("transitions of other types or shapes than those of the replay")
        first = min(size, self.capacity - begin)  # the others go to the beginning
        for stored, x in zip(data, new, strict=True):
            stored[:, begin : begin + first] = x[:, :first]
            stored[:, : size - first] = x[:, first:]
        self.added += size

    def _allocate(self, like: Transitions) -> Transitions:
        """Make a buffer of the whole capacity for transitions of these types and shapes, and return its fields.

        It is not initialised: the system maps its memory at the first write.
        """
        self.layout = RowLayout(like)
        self.rows = torch.empty(self.num_tasks, self.capacity, self.layout.width, dtype=self.layout.unit, device=self.device)
        self.data = self.layout.fields(self.rows)
        return self.data

    @timed("sampling from replay")
    def sample(self, tasks: Tensor, size: int, rng: torch.Generator, own: slice = ALL) -> Transitions:
        """Draw ``size`` transitions of each task in ``tasks [m]``, uniformly with replacement -> ``[m, 1, size, ...]``.

        Only the tasks ``own`` are returned; the draw does not depend on it.
        """
        assert self.rows is not None, "the replay is empty"
        index = torch.randint(len(self), (len(tasks), size), generator=rng, device=tasks.device)
        tasks, index = tasks[own], index[own]
        places = (index + tasks[:, None] * self.capacity).flatten()
        drawn = self.rows.flatten(0, 1).index_select(0, places)
        return self.layout.fields(drawn.view(len(tasks), 1, size, self.layout.width))

    def select_tasks(self, tasks: Tensor) -> None:
        """Replace the content by copies of that of ``tasks [M]``."""
        if self.rows is not None:
            filled = self.rows[tasks, : len(self)]
            self.rows = torch.empty_like(self.rows)
            self.rows[:, : len(self)] = filled
            self.data = self.layout.fields(self.rows)

    def clear(self) -> None:
        """Drop the content, and give its memory back."""
        self.rows, self.data, self.added = None, None, 0

    def state_dict(self) -> State:
        """Return a copy of the filled part of the buffer."""
        if self.data is None:
            return {"data": None, "added": self.added}
        filled = {
            name: x[:, : len(self)].clone(memory_format=torch.contiguous_format) for name, x in self.data._asdict().items()
        }
        return {"data": filled, "added": self.added}

    def load_state_dict(self, state: State) -> None:
        """Restore the buffer from :meth:`state_dict`.

        Raises:
            ValueError: if the numbers of tasks or transitions differ.
        """
        self.clear()
        size = min(state["added"], self.capacity)
        if (state["data"] is None) != (size == 0):
            raise ValueError("the saved replay is not whole")
        if state["data"] is not None:
            saved = Transitions(*(x[:, :size] for x in Transitions(**state["data"])))
            if any(x.shape[:2] != (self.num_tasks, size) for x in saved):
                raise ValueError("the saved replay has another size")
            for stored, x in zip(self._allocate(saved), saved, strict=True):
                stored[:, :size] = x
        self.added = state["added"]
