"""Distributed evaluation of one population by several processes, on one machine or many, started by ``torchrun``.

Each process evaluates its own share of the individuals, from seeds; only fitness values are exchanged. A process holds zeros
for the individuals of the others, so that the sum is the same to the bit for any number of processes. Only rank 0 has a run
folder; it broadcasts the state that training starts from.
"""

from __future__ import annotations

import datetime
import os

import torch
from torch import Tensor, distributed

PATIENCE = datetime.timedelta(days=1)  # the other ranks wait while rank 0 validates and tests


def join() -> None:
    """Join the process group, if ``torchrun`` started this process. Only commands call this: importing has no effects."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        distributed.init_process_group("gloo", timeout=PATIENCE)


class Processes:
    """The process group of this run; a group of one where :func:`join` joined none."""

    def __init__(self) -> None:
        joined = distributed.is_available() and distributed.is_initialized()
        self.size, self.rank = (distributed.get_world_size(), distributed.get_rank()) if joined else (1, 0)

    def shard(self, num: int) -> Tensor:
        """Return the indices of this process's share of ``num`` individuals."""
        return torch.arange(num).tensor_split(self.size)[self.rank]

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of ``values`` over all processes; each holds zeros for the individuals of the others."""
        if self.size > 1:
            shared = values.cpu()
            distributed.all_reduce(shared)
            values = shared.to(values.device)
        return values

    def broadcast(self, content: bytes = b"") -> bytes:
        """Broadcast bytes from rank 0 to every process."""
        if self.size == 1:
            return content
        length = torch.tensor([len(content)])
        distributed.broadcast(length, 0)
        numbers = torch.zeros(int(length), dtype=torch.uint8)
        if self.rank == 0:
            numbers = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else numbers
        if len(numbers):
            distributed.broadcast(numbers, 0)
        return numbers.numpy().tobytes()

    def broadcast_flag(self, value: bool = False) -> bool:
        """Broadcast a flag from rank 0 to every process."""
        return self.broadcast(b"yes" if value else b"") == b"yes"
