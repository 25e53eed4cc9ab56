"""Memory networks of RL² (Duan 2016, arXiv:1611.02779), as functions of their weights, behind one interface.

``step`` is for acting, ``scan`` for learning from a whole trial or a segment of one; both compute the same features.
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
    """Map from inputs and state to features, for one step or a sequence; the rows R are independent."""

    size: int  # H, number of features
    context: int | None  # longest trial that it can remember [steps]; None: any

    def init(self, rng: torch.Generator) -> Params:
        """Draw the initial weights, named ``memory.*``."""
        ...

    def start(self, rows: int, device: torch.device | str) -> State:
        """Return the state before the first step of ``rows`` trials; the first axis of every tensor is R."""
        ...

    def step(self, params: Params, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the features ``[R, H]`` of inputs ``[R, I]``, and the next state."""
        ...

    def scan(self, params: Params, x: Tensor, state: State) -> Tensor:
        """Return the features ``[T, R, H]`` of inputs ``[T, R, I]``; once differentiable in ``params``, ``x`` and ``state``."""
        ...


def build_memory(config: MemoryConfig, inputs: int) -> Memory:
    """Build the memory that ``config`` selects, for inputs of ``inputs`` entries."""
    cells: dict[str, type[GRU] | type[LSTM] | type[Transformer]] = {"gru": GRU, "lstm": LSTM, "transformer": Transformer}
    return cells[config.cell](config, inputs)
