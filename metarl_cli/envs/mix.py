"""Several families in one: tasks with different observations, actions and horizons in every meta-batch.

Row i of a set of tasks belongs to family i modulo F, so that each family has its equal share in any number of tasks.

Action space: the whole numbers below the largest number of actions of any family. A continuous action space becomes the grid
of ``bins`` values per dimension.

Observation, ``[..., O + A]``:

| index | meaning |
|---|---|
| 0 ... O-1 | the family's own observation, divided by its usual size, then zeros up to the longest family's O |
| O ... O+A-1 | the action mask: 1 for each legal action of the family, 0 for the others |

Reward, start and ends: the family's own, its time limit included.

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
from torch.nn.functional import one_hot
from typing_extensions import override

from metarl_cli import interfaces
from metarl_cli.config.base import Group, Part, StrictModel
from metarl_cli.envs.tasks import shares
from metarl_cli.interfaces import Compiler, Env, State, Step, Task, num_tasks
from metarl_cli.spaces import ActionSpace, Bins, Continuous, Discrete, Spec

MOST_CHOICES = 64  # of one continuous action space


class Config(StrictModel):
    """The families of the mix."""

    families: Annotated[dict[str, Group], Part("env", many=True)] = Field(
        min_length=1, description="name -> an env group, as in conf/env"
    )
    bins: int = Field(ge=2, description="values of each action dimension, for families with continuous actions")


class FlatActions:
    """The actions of one family as the whole numbers below ``size``.

    Args:
        name: the family's name, for the message.
        actions: its action space.
        bins: the values of each dimension of a continuous action space.

    Raises:
        ValueError: if a continuous action space has too many dimensions.
    """

    def __init__(self, name: str, actions: ActionSpace, bins: int):
        self.masked = isinstance(actions, Discrete) and actions.masked
        self.bins = Bins(actions, bins) if isinstance(actions, Continuous) else None
        self.size = bins**actions.size if self.bins else actions.size
        if self.bins and self.size > MOST_CHOICES:
            raise ValueError(
                f"{name} has {actions.size} action dimensions: {bins} bins each make more than {MOST_CHOICES} choices to mix"
            )

    def decode(self, index: Tensor) -> Tensor:
        """Return the family's own actions, ``[m, N]`` or ``[m, N, D]``, from ``index [m, N]``."""
        if not self.bins:
            return index
        places = self.bins.num ** torch.arange(self.bins.actions.size, device=index.device)
        return self.bins.decode(index[..., None] // places % self.bins.num)


def _own(values: dict[str, float], name: str) -> dict[str, float]:
    """Return the parameters of one family in a mix, by their names there."""
    return {key.split(".", 1)[1]: value for key, value in values.items() if key.startswith(f"{name}.")}


class Mix(interfaces.Family):
    """A distribution of tasks over several families.

    Raises:
        ValueError: if a family cannot be mixed.
    """

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.families: dict[str, interfaces.Family] = {}
        self.nominal: dict[str, Task] = {}
        for name, group in config.families.items():
            try:
                self.families[name] = group.module.Family(group.config, device)
                self.nominal[name] = self.families[name].named_task({})  # once: a simulator is built to check it
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        self.members = list(self.families.values())
        self.actions = [FlatActions(name, family.spec.actions, config.bins) for name, family in self.families.items()]
        self.sizes = [
            math.prod(family.spec.obs_shape) - flat.masked * flat.size
            for family, flat in zip(self.members, self.actions, strict=True)
        ]
        most = max(flat.size for flat in self.actions)
        self.spec = Spec(
            obs_shape=(max(self.sizes) + most,),
            actions=Discrete(most, masked=True),
            horizon=max(family.spec.horizon for family in self.members),
        )
        self.max_envs = min((family.max_envs for family in self.members if family.max_envs is not None), default=None)
        self.splits = tuple(s for s in ("train", "validation", "test", "ood") if all(s in f.splits for f in self.members))
        self.finite = any(family.finite for family in self.members)
        self.in_time = any(family.in_time for family in self.members)
        self.held_out = tuple(split for split in self.splits if not any(shares(family, split) for family in self.members))

    # -- tasks

    @override
    def compile(self, compiler: Compiler) -> None:
        for family in self.members:
            family.compile(compiler)

    @override
    def sample_tasks(self, num: int, split: str, rng: np.random.Generator) -> Task:
        """Draw ``num`` tasks of a split, row i from family i modulo F; each family has a random stream of its own.

        Raises:
            ValueError: for a split that some family does not have.
        """
        if split not in self.splits:
            raise ValueError(f"no split {split!r}; this family has {', '.join(self.splits)}")
        count = len(self.members)
        task: Task = {"family": torch.arange(num, device=self.device) % count}
        for i, ((name, family), stream) in enumerate(zip(self.families.items(), rng.spawn(count), strict=True)):
            rows = task["family"] == i
            drawn = family.sample_tasks(int(rows.sum()), split, stream)
            for key, nominal in self.nominal[name].items():
                column = nominal.expand(num, *nominal.shape[1:]).clone()
                column[rows] = drawn[key]
                task[f"{name}.{key}"] = column
        return task

    @override
    def number(self, name: str, value: float | str) -> float:
        family, _, parameter = name.partition(".")
        return self.families[family].number(parameter, value) if family in self.families else super().number(name, value)

    @override
    def named_task(self, values: dict[str, float]) -> Task:
        """Return one task (M=1) of the family that the parameters name; of the first family where they name none.

        Raises:
            ValueError: for parameters of two families, an unknown parameter, or a value that the family does not allow.
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
            task |= {f"{name}.{key}": value for key, value in family.named_task(_own(values, name)).items()}
        return task

    @override
    def untrained(self, values: dict[str, float]) -> list[str]:
        return [f"{n}.{text}" for n, family in self.families.items() for text in family.untrained(_own(values, n))]

    def part(self, task: Task, name: str, rows: Tensor | slice) -> Task:
        """Return the tasks ``rows [m]`` of one family, with that family's own parameters."""
        return {key.split(".", 1)[1]: value[rows] for key, value in task.items() if key.startswith(f"{name}.")}

    def rows(self, task: Task) -> list[Tensor]:
        """Return the task indices ``[m]`` of each family."""
        return [torch.nonzero(task["family"] == i)[:, 0] for i in range(len(self.members))]

    def groups(self, task: Task) -> dict[str, Tensor]:
        """Return the task indices ``[m]`` of each family, whose returns are not on one scale."""
        return dict(zip(self.families, self.rows(task), strict=True))

    @override
    def horizons(self, task: Task) -> Tensor:
        horizons = torch.zeros(num_tasks(task), device=self.device)
        for (name, family), rows in zip(self.families.items(), self.rows(task), strict=True):
            if len(rows):
                horizons[rows] = family.horizons(self.part(task, name, rows))
        return horizons

    def optimum(self, task: Task) -> Tensor | None:
        """Return the expected return ``[M]`` of the best policy that knows the task; None if unknown for any family."""
        return self._known(task, "optimum")

    @override
    def solved(self, task: Task) -> Tensor | None:
        return self._known(task, "solved")

    def _known(self, task: Task, name: str) -> Tensor | None:
        """Return what the method ``name`` of each family says of its tasks ``[M]``; None if any says nothing."""
        values = torch.zeros(num_tasks(task), device=self.device)
        for (family, member), rows in zip(self.families.items(), self.rows(task), strict=True):
            known = getattr(member, name)(self.part(task, family, rows)) if len(rows) else values[rows]
            if known is None:
                return None
            values[rows] = known
        return values

    @override
    def knowledge(self, task: Task) -> Tensor | None:
        """Return the family one-hot and what each tells of its own tasks, with zeros elsewhere; None if any tells nothing."""
        parts = [one_hot(task["family"], len(self.members)).to(torch.get_default_dtype())]
        for (name, family), rows in zip(self.families.items(), self.rows(task), strict=True):
            known = family.knowledge(self.part(task, name, slice(None)))
            if known is None:
                return None
            parts.append(torch.zeros_like(known).index_copy(0, rows, known[rows]))
        return torch.cat(parts, -1)

    @override
    def make(self, task: Task, num_envs: int, rng: torch.Generator, render: bool = False) -> MixEnv:
        return MixEnv(self, task, num_envs, rng, render)


class MixEnv(Env):
    """M x N environments of several families; each family steps its own rows as one tensor."""

    def __init__(self, family: Mix, task: Task, num_envs: int, rng: torch.Generator, render: bool):
        self.family, self.shape = family, (num_tasks(task), num_envs)
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

    @property
    @override
    def name(self) -> str:
        return "env.families"

    @override
    def details(self, row: int) -> str:
        for i, rows, env in zip(self.members, self.rows, self.envs, strict=True):
            if row in rows:
                return f", in {list(self.family.families)[i]}{env.details(int((rows == row).nonzero()))}"
        return ""

    def _merge(self, parts: list[Tensor]) -> Tensor:
        """Merge the families' observations, ``[m, N, ...]`` each, into ``[M, N, O + A]``."""
        spec = self.family.spec
        merged = torch.zeros(*self.shape, *spec.obs_shape, device=self.family.device)
        for i, rows, obs in zip(self.members, self.rows, parts, strict=True):
            own, size, flat = self.family.members[i].spec, self.family.sizes[i], self.family.actions[i]
            seen = obs.flatten(2) / 255 if obs.dtype == torch.uint8 else obs.flatten(2)
            state = seen[..., :size]
            if own.obs_scale:
                state = state / state.new_tensor(own.obs_scale)[:size]
            merged[rows, :, :size] = state.to(merged.dtype)
            start = spec.obs_shape[0] - spec.actions.size
            mask = seen[..., size:].to(merged.dtype) if flat.masked else torch.ones((), device=merged.device)
            merged[rows, :, start : start + flat.size] = mask
        return merged

    def step(self, action: Tensor) -> Step:
        """Act in every environment; ``action [M, N]`` must be legal for each task's family."""
        parts = zip(self.members, self.rows, self.envs, strict=True)
        steps = [env.step(self.family.actions[i].decode(action[rows])) for i, rows, env in parts]
        reward = torch.zeros(self.shape, device=self.family.device)
        terminated, truncated = torch.zeros(2, *self.shape, dtype=torch.bool, device=self.family.device)
        for rows, step in zip(self.rows, steps, strict=True):
            reward[rows] = step.reward.to(reward.dtype)
            terminated[rows], truncated[rows] = step.terminated, step.truncated
        self.obs = self._merge([step.obs for step in steps])
        return Step(self._merge([step.next_obs for step in steps]), reward, terminated, truncated, self.obs)

    @override
    def one_episode(self) -> None:
        for env in self.envs:
            env.one_episode()

    @override
    def render(self) -> Image:
        return self.envs[self.members.index(self.first)].render()

    @override
    def state_dict(self) -> State:
        return {"envs": [env.state_dict() for env in self.envs]}

    @override
    def load_state_dict(self, state: State) -> None:
        if len(state["envs"]) != len(self.envs):
            raise ValueError("the saved environments are of other families")
        for env, saved in zip(self.envs, state["envs"], strict=True):
            env.load_state_dict(saved)
        self.obs = self._merge([env.obs for env in self.envs])


Family = Mix
