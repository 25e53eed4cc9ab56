"""Sums over the processes of one machine, through memory that they share: much faster than over gloo (docs/speed.md).

Each process writes its values into a row of its own and sends one byte to each of the others. When it has received a byte from
each of them, all rows are complete, and it adds them up, in the same order as every other process. Sums use two places in
turns: a process that writes to a place again has received the bytes of the sum in between, and the others send those after
they have read that place.
"""

from __future__ import annotations

import math
import mmap
import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

ALIGNMENT = 64  # [bytes] of a row: a cache line
MOST = 2**28  # [bytes] to share; larger sums are rare, and gloo is as fast there


class SharedMemory:
    """Memory that processes share, and a connection to each of the others. Linux alone has what this needs.

    Args:
        size: number of processes.
        rank: of this one.
        folder: an empty folder, the same for all, where they find each other; None: there is none.
        agree: returns whether every process has called it with True; each process calls it twice.
        patience: how long to wait for the connections of the others [s].

    Raises:
        OSError: in every process, if one of them cannot share memory.
    """

    def __init__(self, size: int, rank: int, folder: Path | None, agree: Callable[[bool], bool], patience: float):
        self.size, self.rank, self.turn = size, rank, 0
        self.places = torch.empty(2, size, 0, dtype=torch.uint8)  # [turn, process, byte]
        self.others: list[socket.socket] = []  # by rank
        with socket.socket(socket.AF_UNIX) as server:
            try:
                self._together(lambda: self._listen(server, folder), agree)
                self._together(lambda: self._connect(server, folder, patience), agree)
            except BaseException:
                self.close()
                raise

    def sum(self, values: Tensor) -> bool:
        """Replace ``values [n]`` by their sums over all processes: the same bits in each of them.

        Returns:
            Whether they are; False, in all processes, where they take more memory than :data:`MOST`.

        Raises:
            ConnectionError: if another process has ended.
        """
        if not values.nbytes:
            return True
        num = -(-values.nbytes // ALIGNMENT) * ALIGNMENT
        if 2 * self.size * num > MOST:
            return False
        if num > self.places.shape[-1]:
            self._allocate(num)
        self.turn = 1 - self.turn
        rows = self.places[self.turn, :, : values.nbytes].view(values.dtype)
        rows[self.rank] = values
        self._meet()
        torch.sum(rows, 0, dtype=values.dtype, out=values)
        return True

    def close(self) -> None:
        """Close the connections. The system frees the memory when no process refers to it."""
        for connection in self.others:
            connection.close()

    def _together(self, step: Callable[[], None], agree: Callable[[bool], bool]) -> None:
        """Take a step that fails in every process if it fails in one."""
        failure: OSError | None = None
        try:
            step()
        except OSError as error:
            failure = error
        if not agree(failure is None):
            raise failure or OSError("another process cannot share memory")

    def _listen(self, server: socket.socket, folder: Path | None) -> None:
        """Make this process one that the others find."""
        if folder is None:
            raise FileNotFoundError("there is no folder to meet in")
        os.close(os.memfd_create("metarl"))  # which some systems forbid
        server.bind(str(folder / str(self.rank)))
        server.listen(self.size)

    def _connect(self, server: socket.socket, folder: Path | None, patience: float) -> None:
        """Connect to the processes of lower ranks, and wait for those of higher ones."""
        assert folder is not None
        for other in range(self.rank):
            self.others.append(socket.socket(socket.AF_UNIX))
            self.others[-1].connect(str(folder / str(other)))
        server.settimeout(patience)
        for _ in range(self.rank + 1, self.size):
            connection, _ = server.accept()
            connection.settimeout(None)
            self.others.append(connection)

    def _allocate(self, num: int) -> None:
        """Share rows of ``num`` bytes: rank 0 makes a file that has no name, and sends the others its descriptor."""
        shape = (2, self.size, num)
        if self.rank == 0:
            file = os.memfd_create("metarl")
            os.ftruncate(file, math.prod(shape))
            for other in self.others:
                socket.send_fds(other, [b"m"], [file], socket.MSG_NOSIGNAL)
        else:
            message, files, *_ = socket.recv_fds(self.others[0], 1, 1)
            if not message:
                raise ConnectionResetError("rank 0 has ended")
            (file,) = files
        try:
            self.places = torch.frombuffer(mmap.mmap(file, math.prod(shape)), dtype=torch.uint8).view(shape)
        finally:
            os.close(file)

    def _meet(self) -> None:
        """Wait until every other process has come this far."""
        for other in self.others:
            other.send(b"x", socket.MSG_NOSIGNAL)
        for other in self.others:
            if not other.recv(1):
                raise ConnectionResetError("another process has ended")
