"""Sums over the processes of one machine, through memory that they share: an exchange takes a tenth of gloo's (docs/speed.md).

Each process writes its values into a row of its own and sends one byte to each of the others. A byte from each of them says
that all rows are complete, and every process adds them up in the same order. Successive sums use two places in turns: a
process writes to a place again after the bytes of the sum in between, which the others send once they have read that place.
"""

from __future__ import annotations

import mmap
import os
import socket
import weakref
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from metarl_cli.errors import ProcessLost

ALIGNMENT = 64  # [bytes] of a row: a cache line


class SharedMemory:
    """Memory that ``size`` processes share, and a connection to each of the others. Linux has both; neither outlives them.

    Args:
        size: number of processes.
        rank: of this one.
        folder: an empty folder, the same for all, where they find each other; it may be deleted afterwards.
        agree: returns whether all processes call it with True; each calls it once.
        patience: how long to wait for the others [s].

    Raises:
        OSError: in every process, if one of them cannot be found there.
        ProcessLost: if another process does not come.
    """

    def __init__(self, size: int, rank: int, folder: Path, agree: Callable[[bool], bool], patience: float):
        self.size, self.rank, self.turn = size, rank, 0
        self.places = torch.empty(2, size, 0, dtype=torch.uint8)  # [turn, process, byte]
        with socket.socket(socket.AF_UNIX) as server:
            error: OSError | None = None
            try:
                server.bind(str(folder / str(rank)))
                server.listen(size)
            except OSError as failed:  # such as a path that is too long
                error = failed
            if not agree(error is None):
                raise error or OSError(f"another process cannot be found in {folder}")
            self.others = [socket.socket(socket.AF_UNIX) for _ in range(rank)]  # rank 0 is the first
            weakref.finalize(self, _close, self.others)
            for other, connection in enumerate(self.others):
                connection.connect(str(folder / str(other)))
            server.settimeout(patience)
            try:
                self.others.extend(server.accept()[0] for _ in range(rank + 1, size))
            except TimeoutError as late:
                raise ProcessLost(f"process {rank} has waited {patience:g} s for the others (hardware.patience)") from late

    def sum(self, values: Tensor) -> None:
        """Replace ``values [n]`` by their sums over all processes: the same bits in each of them.

        Raises:
            ConnectionError: if another process has ended.
        """
        num = values.nbytes
        if num > self.places.shape[-1]:
            self._allocate(-(-num // ALIGNMENT) * ALIGNMENT)
        self.turn = 1 - self.turn
        rows = self.places[self.turn, :, :num].view(values.dtype)
        rows[self.rank] = values
        self._meet()
        torch.sum(rows, 0, dtype=values.dtype, out=values)

    def _allocate(self, num: int) -> None:
        """Share rows of ``num`` bytes: rank 0 makes them and sends the others a descriptor, which is their only name."""
        shape = (2, self.size, num)
        if self.rank == 0:
            file = os.memfd_create("metarl")
            os.ftruncate(file, torch.Size(shape).numel())
            for other in self.others:
                socket.send_fds(other, [b"m"], [file], socket.MSG_NOSIGNAL)
        else:
            message, files, *_ = socket.recv_fds(self.others[0], 1, 1)
            if not message:
                raise ConnectionResetError("rank 0 has ended")
            (file,) = files
        with open(file, "r+b", buffering=0):
            self.places = torch.frombuffer(mmap.mmap(file, torch.Size(shape).numel()), dtype=torch.uint8).view(shape)

    def _meet(self) -> None:
        """Wait until every other process has come this far."""
        for other in self.others:
            other.send(b"x", socket.MSG_NOSIGNAL)
        for other in self.others:
            if not other.recv(1):
                raise ConnectionResetError("another process has ended")


def _close(connections: list[socket.socket]) -> None:
    for connection in connections:
        connection.close()
