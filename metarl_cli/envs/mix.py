"""Several families in one: tasks of different state sizes, actions and horizons side by side in every meta-batch.

Row i of a set of tasks belongs to family i modulo F, so that each family has its equal share in any number of tasks.

Action space: the whole numbers below the largest number of actions of any family. Vectors are offered as a grid of ``bins``
values per dimension, all dimensions together.

Observation, ``[..., O + A]``:

| index | meaning |
|---|---|
| 0 ... O-1 | the family's own observation, divided by its usual size, then zeros up to the longest family's O |
| O ... O+A-1 | 1 for each action the family has, 0 for the others, which must not be taken |

Reward, start and ends: the family's own; each row has its own family's time limit.

Task parameters: ``family`` (its number), and ``<family>.<parameter>`` for every parameter of every family; a task holds the
nominal values of the families it does not belong to.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import torch
from PIL.Image import Image
from pydantic import Field
from torch import Tensor

from metarl_cli.config.base import Group, Part, StrictModel
from metarl_cli.interfaces import Env, State, Step, Task
from metarl_cli.interfaces import Family as AnyFamily
from metarl_cli.spaces import Bins, Box, Spec

MOST_CHOICES = 64  # of one vector action


class Config(StrictModel):
    """Which families are mixed."""

    families: Annotated[dict[str, Group], Part("env", many=True)] = Field(
        min_length=1, description="name -> an env group, as in conf/env"
    )
    bins: int = Field(ge=2, description="values of each action dimension, for families whose actions are vectors")


class Mix(AnyFamily):
    max_envs = None
    """A distribution of tasks over several families.

    Raises:
        ValueError: if a family cannot be mixed.
    """

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.families: dict[str, AnyFamily] = {}
        for name, group in config.families.items():
            try:
                self.families[name] = group.module.Family(group.config, device)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        self.members = list(self.families.values())
        self.grids = [self._grid(name, family.spec.box, config.bins) for name, family in self.families.items()]
        self.num_choices = [
            family.spec.num_actions if grid is None else grid.num ** len(grid.box.low)
            for family, grid in zip(self.members, self.grids, strict=True)
        ]
        self.sizes = [
            math.prod(family.spec.obs_shape) - family.spec.masked * family.spec.num_actions for family in self.members
        ]
        self.spec = Spec(
            obs_shape=(max(self.sizes) + max(self.num_choices),),
            num_actions=max(self.num_choices),
            horizon=max(family.spec.horizon for family in self.members),
            masked=True,
        )
        self._splits = tuple(s for s in ("train", "validation", "test", "ood") if all(s in f.splits for f in self.members))
        self.finite = any(family.finite for family in self.members)

    def _grid(self, name: str, box: Box | None, bins: int) -> Bins | None:
        if box is None:
            return None
        if bins ** len(box.low) > MOST_CHOICES:
            raise ValueError(
                f"{name} has {len(box.low)} action dimensions: {bins} bins each make more than {MOST_CHOICES} choices to mix"
            )
        return Bins(box, bins)

    @property
    def splits(self) -> tuple[str, ...]:
        return self._splits

    # -- tasks

    def sample_tasks(self, num: int, split: str, rng: np.random.Generator) -> Task:
        """Draw ``num`` tasks of a split, the families in turn; each family has a stream of its own.

        Raises:
            ValueError: for a split that not every family has.
        """
        if split not in self.splits:
            raise ValueError(f"no split {split!r}; this family has {', '.join(self.splits)}")
        count = len(self.members)
        task: Task = {"family": torch.arange(num, device=self.device) % count}
        for i, ((name, family), stream) in enumerate(zip(self.families.items(), rng.spawn(count), strict=True)):
            mine = task["family"] == i
            drawn = family.sample_tasks(int(mine.sum()), split, stream)
            for key, nominal in family.named_task({}).items():
                rows = nominal.expand(num, *nominal.shape[1:]).clone()
                rows[mine] = drawn[key]
                task[f"{name}.{key}"] = rows
        return task

    def named_task(self, values: dict[str, float]) -> Task:
        """One task (M=1) of the family that the parameters name, the first one otherwise.

        Raises:
            ValueError: for parameters of two families, or a name or value the family does not have.
        """
        names = list(self.families)
        asked = {key.split(".", 1)[0] for key in values if key != "family"}
        unknown = [key for key in values if key != "family" and (key.split(".", 1)[0] not in names or "." not in key)]
        if unknown:
            known = ", ".join(f"{name}.*" for name in names)
            raise ValueError(f"no such task parameter: {', '.join(unknown)}; known: family, {known}")
        number = values.get("family", float(names.index(min(asked))) if asked else 0.0)
        if number not in range(len(names)):
            raise ValueError(f"family must be one of 0 to {len(names) - 1} ({', '.join(names)}), got {number:g}")
        chosen = names[int(number)]
        if asked - {chosen}:
            raise ValueError(f"one task belongs to one family: parameters of {', '.join(sorted(asked | {chosen}))} do not mix")
        task: Task = {"family": torch.full((1,), int(number), device=self.device)}
        for name, family in self.families.items():
            mine = {key.split(".", 1)[1]: value for key, value in values.items() if key.startswith(f"{name}.")}
            task |= {f"{name}.{key}": value for key, value in family.named_task(mine).items()}
        return task

    def part(self, task: Task, name: str, rows: Tensor) -> Task:
        """The tasks of one family among ``task``, as that family knows them."""
        return {key.split(".", 1)[1]: value[rows] for key, value in task.items() if key.startswith(f"{name}.")}

    def rows(self, task: Task) -> list[Tensor]:
        """The rows ``[m]`` of each family."""
        return [torch.nonzero(task["family"] == i)[:, 0] for i in range(len(self.members))]

    def groups(self, task: Task) -> dict[str, Tensor]:
        """The rows of each family: their returns do not compare."""
        return dict(zip(self.families, self.rows(task), strict=True))

    def optimum(self, task: Task) -> Tensor | None:
        """The expected return ``[M]`` of the best policy that knows the task; None if any family cannot tell."""
        found = torch.zeros(len(task["family"]), device=self.device)
        for (name, family), rows in zip(self.families.items(), self.rows(task), strict=True):
            best = family.optimum(self.part(task, name, rows)) if len(rows) else found[rows]
            if best is None:
                return None
            found[rows] = best
        return found

    def make(self, task: Task, num_envs: int, rng: torch.Generator, render: bool = False) -> MixEnv:
        return MixEnv(self, task, num_envs, rng, render)


class MixEnv(Env):
    can_select_rows = False
    """M x N environments of several families; each family steps its own rows as one tensor."""

    def __init__(self, family: Mix, task: Task, num_envs: int, rng: torch.Generator, render: bool):
        self.family, self.shape = family, (len(task["family"]), num_envs)
        self.first = int(task["family"][0])
        self.rows: list[Tensor] = []
        self.members: list[int] = []
        self.envs: list[Env] = []
        for i, (name, rows) in enumerate(zip(family.families, family.rows(task), strict=True)):
            if len(rows):
                self.members.append(i)
                self.rows.append(rows)
                self.envs.append(family.members[i].make(family.part(task, name, rows), num_envs, rng, render))
        self.obs = self._merge([env.obs for env in self.envs])

    def _merge(self, parts: list[Tensor]) -> Tensor:
        """The families' observations ``[m, N, ...]`` -> ``[M, N, O + A]``."""
        spec = self.family.spec
        merged = torch.zeros(*self.shape, *spec.obs_shape, device=self.family.device)
        for i, rows, obs in zip(self.members, self.rows, parts, strict=True):
            own, size = self.family.members[i].spec, self.family.sizes[i]
            flat = obs.flatten(2) / 255 if obs.dtype == torch.uint8 else obs.flatten(2)
            seen = flat[..., :size]
            if own.obs_scale:
                seen = seen / seen.new_tensor(own.obs_scale)[:size]
            merged[rows, :, :size] = seen.to(merged.dtype)
            place = spec.obs_shape[0] - spec.num_actions
            legal = flat[..., size:].to(merged.dtype) if own.masked else torch.ones((), device=merged.device)
            merged[rows, :, place : place + self.family.num_choices[i]] = legal
        return merged

    def step(self, action: Tensor) -> Step:
        """Act in every environment; ``action [M, N]``, of those each row's family has."""
        steps = []
        for i, rows, env in zip(self.members, self.rows, self.envs, strict=True):
            grid, mine = self.family.grids[i], action[rows]
            if grid is not None:
                places = grid.num ** torch.arange(len(grid.box.low), device=mine.device)
                mine = grid.values(mine[..., None] // places % grid.num)
            steps.append(env.step(mine))
        reward = torch.zeros(self.shape, device=self.family.device)
        terminated, truncated = torch.zeros(2, *self.shape, dtype=torch.bool, device=self.family.device)
        for rows, step in zip(self.rows, steps, strict=True):
            reward[rows] = step.reward.to(reward.dtype)
            terminated[rows], truncated[rows] = step.terminated, step.truncated
        self.obs = self._merge([step.obs for step in steps])
        return Step(self._merge([step.next_obs for step in steps]), reward, terminated, truncated, self.obs)

    def render(self) -> Image:
        """Draw the first environment of the first task."""
        return self.envs[self.members.index(self.first)].render()

    def state_dict(self) -> State:
        return {"envs": [env.state_dict() for env in self.envs]}

    def load_state_dict(self, state: State) -> None:
        if len(state["envs"]) != len(self.envs):
            raise ValueError("the saved environments are of other families")
        for env, saved in zip(self.envs, state["envs"], strict=True):
            env.load_state_dict(saved)
        self.obs = self._merge([env.obs for env in self.envs])


Family = Mix
