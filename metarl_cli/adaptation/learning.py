"""What an adaptation learns from supports that somebody else collects, as functions of tensors: what a device can do alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from metarl_cli.adaptation.support import RolloutsConfig
from metarl_cli.interfaces import Params, Transitions
from metarl_cli.spaces import ActionSpace, Distribution


class Learning(NamedTuple):
    """An adaptation as functions of tensors: how a policy of one task (M = 1) changes with its supports."""

    start: Params  # [1, ...] what changes, before the first support: weights, or what a network is given of the task
    step: Callable[[Tensor, Params, Transitions], Params]  # of the number of a step [], from 1, and a support [1, T, N, ...]
    act: Callable[[Params, Tensor], Distribution]  # over the actions in observations [1, B, ...]
    actions: ActionSpace  # that exploration chooses among
    support: RolloutsConfig
    fresh: bool  # whether each step takes a support of the policy before it; else all steps take the first
    most: int | None = None  # steps; None: any number


@runtime_checkable
class LearnsFromSupports(Protocol):
    """An algorithm whose adaptation is functions of tensors."""

    def learning(self) -> Learning | None:
        """Return what its adaptation learns from supports; None where its configuration keeps more than tensors."""
        ...
