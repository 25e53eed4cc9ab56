"""What is stored and passed on: tasks, weights, steps, physics, experience and demonstrations; and nothing that acts.

Axes, in this order: M tasks, N envs per task, T time; ``...`` an observation.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

Params = dict[str, Tensor]  # one network; leading [M] where each task owns a copy
Task = dict[str, Tensor]  # one tensor [M, ...] per physical quantity, SI units
State = dict[str, Any]  # tensors, numbers, strings, lists and dicts of them: what a checkpoint may hold


def untracked() -> AbstractContextManager[object]:
    """Return a context for what nobody differentiates: operations on small tensors take a fifth less time.

    As in ``torch.inference_mode``, autograd sees nothing of torch's own operations, so that derivatives within the block are
    errors, or zeros. The tensors that are made are ordinary ones, from which gradients can be taken later.
    """
    return torch._C._AutoDispatchBelowADInplaceOrView()


def num_tasks(task: Task) -> int:
    """Return M, the number of tasks."""
    return len(next(iter(task.values())))


def device_of(task: Task) -> torch.device:
    """Return the device on which the tasks live."""
    return next(iter(task.values())).device


def dtype_of(task: Task) -> torch.dtype:
    """Return the type of the tasks' first parameter."""
    return next(iter(task.values())).dtype


class Physics(NamedTuple):
    """The steps of environments that draw nothing, as functions of tensors."""

    state: Tensor  # [M, N, S] now
    constants: Task  # [M, 1, ...]
    starts: Tensor  # [M, N, S] where episodes begin
    dynamics: Callable[[Tensor, Tensor, Task], tuple[Tensor, Tensor, Tensor]]  # as in envs.native, without randomness
    observe: Callable[[Tensor], Tensor]  # states -> observations [M, N, ...]
    advance: Callable[[Tensor, int], None]  # have the environments go on from the states after so many steps


class Step(NamedTuple):
    """One step of every environment at once; all fields are ``[M, N, ...]``.

    ``next_obs`` is where the action led, also at an end; ``obs`` is what to act on now, after any automatic reset.
    """

    next_obs: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    obs: Tensor

    @property
    def ended(self) -> Tensor:
        """Whether the episode ended with this step, by termination or by the time limit."""
        return torch.bitwise_or(self.terminated, self.truncated)  # half the calls of the operator


class Transitions(NamedTuple):
    """Experience for learning; time first, ``[T, N, ...]`` for one task and ``[M, T, N, ...]`` for many.

    ``ended`` marks the last step of a trajectory, by termination or by the time limit: a return never reaches across it.
    ``weight`` is 1 for experience and 0 for padding, which no loss may see.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    terminated: Tensor
    ended: Tensor
    weight: Tensor

    def rows(self, tasks: Tensor | slice) -> Transitions:
        """Select the experience of some tasks."""
        return Transitions(*(x[tasks] for x in self))


class Demonstrations(NamedTuple):
    """Episodes of somebody who knows what each of M tasks wants, and where they took place.

    They show what is wanted, perhaps in another environment than that of the task that is learned from them.
    """

    task: Task  # M tasks: the environments of the episodes; their rewards are not shown
    experience: Transitions  # [M, T, N, ...] N episodes of each, from their start on; what it has of rewards is not to be read

    def first(self, num: int) -> Demonstrations:
        """Return the first ``num`` episodes of each task."""
        return Demonstrations(self.task, Transitions(*(x[:, :, :num] for x in self.experience)))
