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


class Ranks:
    """The processes of this run; one, where it was not started by ``torchrun``."""

    def __init__(self) -> None:
        self.size, self.rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        if self.size > 1 and not distributed.is_initialized():
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
            distributed.init_process_group("gloo", timeout=PATIENCE)

    def mine(self, num: int) -> Tensor:
        """The numbers of this process's part of ``num`` individuals."""
        return torch.arange(num).tensor_split(self.size)[self.rank]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes of ``values``, zero where another has evaluated."""
        if self.size > 1:
            shared = values.cpu()
            distributed.all_reduce(shared)
            values = shared.to(values.device)
        return values

    def tell(self, content: bytes = b"") -> bytes:
        """The ``content`` of rank 0, to all."""
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

    def agree(self, value: bool = False) -> bool:
        """The ``value`` of rank 0, to all."""
        return self.tell(b"yes" if value else b"") == b"yes"
