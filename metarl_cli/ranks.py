"""Several processes, on one machine or many, that evaluate one population together: started by ``torchrun``.

Each evaluates its own individuals, from seeds; what travels are numbers of fitness. Every rank adds its numbers to zeros, so
the sum is the same to the bit however many there are.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor


class Ranks:
    """The processes of this run; one, where it was not started by ``torchrun``."""

    def __init__(self) -> None:
        self.size, self.rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        if self.size > 1 and not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")

    def mine(self, num: int) -> Tensor:
        """The numbers of this process's part of ``num`` individuals."""
        return torch.arange(num).tensor_split(self.size)[self.rank]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes of ``values``, zero where another has evaluated."""
        if self.size > 1:
            shared = values.cpu()
            torch.distributed.all_reduce(shared)
            values = shared.to(values.device)
        return values

    def agree(self, value: bool) -> bool:
        """The first process's ``value``."""
        if self.size > 1:
            said = torch.tensor([int(value)])
            torch.distributed.broadcast(said, 0)
            value = bool(said.item())
        return value
