"""Several processes, on one machine or many, that evaluate one population together: started by ``torchrun``.

Each evaluates its own individuals, from seeds; what travels are numbers of fitness. Every rank adds its numbers to zeros, so
the sum is the same to the bit however many there are. Rank 0 alone has a run folder, and tells the others what it starts from.
"""

from __future__ import annotations

import datetime
import os

import torch
from torch import Tensor, distributed

PATIENCE = datetime.timedelta(days=1)  # the others wait while rank 0 validates and tests


def join() -> None:
    """Join the processes that ``torchrun`` started, if it did; a command does this, and nothing else."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        distributed.init_process_group("gloo", timeout=PATIENCE)


class Processes:
    """The processes of this run; one, where none were joined."""

    def __init__(self) -> None:
        joined = distributed.is_available() and distributed.is_initialized()
        self.size, self.rank = (distributed.get_world_size(), distributed.get_rank()) if joined else (1, 0)

    def shard(self, num: int) -> Tensor:
        """Return the indices of this process's share of ``num`` individuals."""
        return torch.arange(num).tensor_split(self.size)[self.rank]

    def sum(self, values: Tensor) -> Tensor:
        """Sum ``values`` over all processes; each holds zeros where another has evaluated."""
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
