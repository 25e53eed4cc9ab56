"""Watching over what environments return: nothing that is not finite gets into learning, evolution or a result."""

from __future__ import annotations

import torch
from torch import Tensor

from metarl_cli.errors import EnvironmentFault
from metarl_cli.interfaces import Env, Step

LARGEST = 1e18  # of an observation or a reward: a 32-bit number cannot hold the square of what is much larger
MOST = 32  # steps that are looked at together: a look at each would take a share of the time of small environments
BLOCK = 2**13  # numbers after which fewer steps are kept for a look: to read them anew from memory costs more than a look


class StepCheck:
    """Checks the steps of M x N environments, some at a time; call :meth:`finish` after the last one.

    Args:
        env: the environments, which messages name.
    """

    def __init__(self, env: Env):
        self.env, self.steps = env, list[Step]()
        self.seen = 0  # steps before those that wait
        self.together = 1  # steps of this look

    def see(self, step: Step) -> None:
        """Take in a step.

        Raises:
            EnvironmentFault: if one of the latest steps is not finite, or of another shape.
        """
        if not self.steps:
            if not self.seen:
                self._check_shapes(step)
            size = step.next_obs.numel()  # it gets smaller where environments are dropped
            self.together = MOST if step.next_obs.is_cuda else min(max(BLOCK // max(size, 1), 1), MOST)
        self.steps.append(step)
        if len(self.steps) == self.together:
            self.finish()

    def finish(self) -> None:
        """Check the steps that wait.

        Raises:
            EnvironmentFault: if one of them is not finite, or of another shape.
        """
        if self.steps:
            stacks = {"observation": [s.next_obs for s in self.steps], "reward": [s.reward for s in self.steps]}
            wrong = [(*place, what) for what, values in stacks.items() if (place := _first_wrong(values))]
            if wrong:
                t, row, value, what = min(wrong, key=lambda each: each[0])  # what came first; others follow from it
                where = self.env.details(row) or f", in task {row + 1} of {self.env.obs.shape[0]}"
                raise EnvironmentFault(f"{self.env.name}: the {what} is {value:g} after {self.seen + t + 1} steps{where}")
            self.seen += len(self.steps)
            self.steps.clear()

    def _check_shapes(self, step: Step) -> None:
        rows = self.env.obs.shape[:2]
        kinds = {"reward": step.reward.is_floating_point()}
        kinds |= {name: getattr(step, name).dtype == torch.bool for name in ("terminated", "truncated")}
        for name, right in kinds.items():
            value: Tensor = getattr(step, name)
            if value.shape != rows or not right:
                kind = "floating-point number" if name == "reward" else "boolean"
                text = f"{name} is {list(value.shape)} of {value.dtype}, not one {kind}"
                raise EnvironmentFault(f"{self.env.name}: {text} for each of {rows[0]} tasks x {rows[1]} environments")


def _first_wrong(steps: list[Tensor]) -> tuple[int, int, float] | None:
    """Return step, task and value of the first of the numbers ``[M, N, ...]`` that is not finite, or too large."""
    if not steps[0].is_floating_point():
        return None
    values = torch.stack(steps) if len(steps) > 1 else steps[0][None]
    if float(torch.linalg.vector_norm(values)) <= LARGEST:  # false for nan, too
        return None
    places = torch.nonzero(~(values.abs() <= LARGEST)).tolist()  # none where the norm alone is too large
    return (places[0][0], places[0][1], float(values[tuple(places[0])])) if places else None
