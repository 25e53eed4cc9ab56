"""Memory networks of RL² (Duan 2016, arXiv:1611.02779), as functions of their weights, behind one interface.

``step`` acts, ``scan`` learns from a whole trial or a segment of one; both give the same features.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from metarl_cli.interfaces import Params, State
from metarl_cli.networks.memory_config import MemoryConfig
from metarl_cli.networks.recurrent import GRU, LSTM
from metarl_cli.networks.transformer import Transformer


class Memory(Protocol):
    """Inputs and state -> features, step by step or over a sequence; rows R never meet."""

    size: int  # H, features out

    def init(self, rng: torch.Generator) -> Params:
        """Fresh weights, named ``memory.*``."""
        ...

    def start(self, rows: int, device: torch.device | str) -> State:
        """The state before the first step of ``rows`` trials; every tensor leads with [R]."""
        ...

    def step(self, params: Params, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Features ``[R, H]`` of inputs ``[R, I]``, and the state after them."""
        ...

    def scan(self, params: Params, x: Tensor, state: State) -> Tensor:
        """Features ``[T, R, H]`` of inputs ``[T, R, I]`` from ``state`` on; differentiable once in all three."""
        ...


def build_memory(config: MemoryConfig, inputs: int) -> Memory:
    """The memory of ``config`` for inputs of ``inputs`` entries."""
    cells: dict[str, type[GRU] | type[LSTM] | type[Transformer]] = {"gru": GRU, "lstm": LSTM, "transformer": Transformer}
    return cells[config.cell](config, inputs)
