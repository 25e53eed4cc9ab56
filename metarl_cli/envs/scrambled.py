"""Another family with its observations turned, its actions rewired and its rewards rescaled, anew for every task.

What stays the same in all tasks is how to learn, so that a policy cannot be remembered: tasks of this kind were made for
learning algorithms that generalise (Kirsch 2022, arXiv:2109.10781, permuted observations and actions; Lu 2023,
arXiv:2303.03982, random projections of observations).

Action space: the family's own. Numbered actions are permuted; the entries of a vector too, and each is reversed or not.
Observation, ``[..., O]``: the family's own, each entry divided by its usual size, times a random orthogonal matrix (uniform
among all: Mezzadri 2007, math-ph/0609050), so that distances stay as they are. Reward: the family's own times
``reward_scale``. Start and ends: the family's own.

Task parameters: those of the family, under their own names; ``scramble``, a whole number from which the matrix and the
permutation are drawn, with 0 for none of both; and ``reward_scale``. A new number is drawn for every task.

Returns, optimum and solved are those of the rescaled rewards. The default scales are 1 on average, so that the mean over many
tasks stays on the family's own scale. An oracle is given the matrix, the permutation, the scale and what the family tells.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated

import numpy as np
import torch
from PIL.Image import Image
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from metarl_cli import interfaces
from metarl_cli.config.base import Group, Part, StrictModel
from metarl_cli.envs.tasks import Range, Uniform
from metarl_cli.interfaces import Compiler, Env, State, Step, Task
from metarl_cli.spaces import Continuous, constant

SCRAMBLES = 2**24  # whole numbers, each of which a float32 can hold
OWN = ("scramble", "reward_scale")


class Config(StrictModel):
    """The family that is scrambled."""

    family: Annotated[Group, Part("env")] = Field(description="an env group, as in conf/env")
    obs_scale: list[Annotated[float, Field(gt=0)]] | None = Field(
        description="usual size of each entry of the family's observations, divided out before they are mixed; none: its own"
    )
    reward_scale: Range = Field(description="[low, high] of what rewards are multiplied by, drawn uniformly")


class Scrambled(interfaces.Family):
    """A distribution over scrambled tasks of another family; see the module's docstring.

    Raises:
        ValueError: for a family that cannot be scrambled, or values that do not fit it.
    """

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.base: interfaces.Family = config.family.module.Family(config.family.config, device)
        spec = self.base.spec
        if len(spec.obs_shape) != 1 or spec.pixels or getattr(spec.actions, "masked", False):
            raise ValueError("family: only observations in a row of numbers, and actions that are all legal, are scrambled")
        self.size, self.wires = spec.obs_shape[0], spec.actions.size
        self.obs_scale = tuple(config.obs_scale or spec.obs_scale or [1.0] * self.size)
        if len(self.obs_scale) != self.size:
            raise ValueError(f"obs_scale: {len(self.obs_scale)} sizes for {self.size} entries of an observation")
        low, high = config.reward_scale
        if not 0 < low <= high:
            raise ValueError(f"reward_scale must be [low, high] with 0 < low <= high, got [{low:g}, {high:g}]")
        self.reward_scale = Uniform(low, high)
        self.reversible = isinstance(spec.actions, Continuous)
        self.spec = spec._replace(obs_scale=())
        self.splits, self.first_action, self.in_time = self.base.splits, self.base.first_action, self.base.in_time
        self.simulator_bytes, self.max_envs = self.base.simulator_bytes, self.base.max_envs
        if taken := set(OWN) & set(self.base.named_task({})):
            raise ValueError(f"family: it has a parameter {min(taken)} already")

    # -- tasks

    @override
    def sample_tasks(self, num: int, split: str, rng: np.random.Generator) -> Task:
        """Draw tasks of the family, and for each a scramble and a scale; raises ValueError for an unknown split."""
        theirs, own = rng.spawn(2)
        unit = own.random((num, len(OWN)))
        columns = [1 + np.floor((SCRAMBLES - 1) * unit[:, 0]), self.reward_scale.sample(unit[:, 1])]
        drawn = {name: self._number(column) for name, column in zip(OWN, columns, strict=True)}
        return self.base.sample_tasks(num, split, theirs) | drawn

    def _number(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=torch.get_default_dtype(), device=self.device)

    @override
    def number(self, name: str, value: float | str) -> float:
        return super().number(name, value) if name in OWN else self.base.number(name, value)

    @override
    def named_task(self, values: dict[str, float]) -> Task:
        own = {"scramble": 0.0, "reward_scale": 1.0} | {name: values[name] for name in OWN if name in values}
        if own["scramble"] not in range(SCRAMBLES):
            raise ValueError(f"scramble must be a whole number from 0 to {SCRAMBLES - 1}, got {own['scramble']:g}")
        if own["reward_scale"] <= 0:
            raise ValueError(f"reward_scale must be above 0, got {own['reward_scale']:g}")
        theirs = self.base.named_task({name: value for name, value in values.items() if name not in OWN})
        return theirs | {name: self._number(np.array([value])) for name, value in own.items()}

    @override
    def untrained(self, values: dict[str, float]) -> list[str]:
        beyond = self.base.untrained({name: value for name, value in values.items() if name not in OWN})
        scale = values.get("reward_scale")
        if scale is not None and not self.reward_scale.contains(np.asarray(scale)):
            beyond.append(f"reward_scale={scale:g} is outside {self.reward_scale} of the training tasks")
        if values.get("scramble") == 0:
            beyond.append("scramble=0 is no scramble, which no training task has")
        return beyond

    def theirs(self, task: Task) -> Task:
        """Return the parameters of the family itself."""
        return {name: value for name, value in task.items() if name not in OWN}

    def maps(self, task: Task) -> tuple[Tensor, Tensor]:
        """Return what turns observations, ``[M, O, O]``, and the (signed) permutation of actions, ``[M, A, A]``."""
        pairs = [drawn(int(number), self.size, self.wires, self.reversible) for number in task["scramble"].tolist()]
        turn, wiring = (self._number(np.stack(matrices)) for matrices in zip(*pairs, strict=True))
        return turn, wiring

    @override
    def knowledge(self, task: Task) -> Tensor:
        turn, wiring = self.maps(task)
        parts = [turn.flatten(1), wiring.flatten(1)]
        if not self.reward_scale.finite:
            parts.append(self.reward_scale.standard(task["reward_scale"]))
        known = self.base.knowledge(self.theirs(task))
        return torch.cat(parts if known is None else [*parts, known], -1)

    @override
    def horizons(self, task: Task) -> Tensor:
        return self.base.horizons(self.theirs(task))

    @override
    def optimum(self, task: Task) -> Tensor | None:
        return self._scaled(self.base.optimum(self.theirs(task)), task)

    @override
    def solved(self, task: Task) -> Tensor | None:
        return self._scaled(self.base.solved(self.theirs(task)), task)

    def _scaled(self, returns: Tensor | None, task: Task) -> Tensor | None:
        return None if returns is None else task["reward_scale"] * returns

    @override
    def groups(self, task: Task) -> dict[str, Tensor]:
        return self.base.groups(self.theirs(task))

    # -- environments

    @override
    def compile(self, compiler: Compiler) -> None:
        self.base.compile(compiler)

    @override
    def make(self, task: Task, num_envs: int, rng: torch.Generator, render: bool = False) -> ScrambledEnv:
        return ScrambledEnv(self, task, self.base.make(self.theirs(task), num_envs, rng, render))


@lru_cache(maxsize=4096)
def drawn(number: int, size: int, wires: int, reversible: bool) -> tuple[np.ndarray, np.ndarray]:
    """Draw the orthogonal matrix ``[size, size]`` and the permutation ``[wires, wires]`` of a number; identities for 0."""
    if not number:
        return np.eye(size), np.eye(wires)
    rng = np.random.default_rng(number)
    orthogonal, triangular = np.linalg.qr(rng.standard_normal((size, size)))
    permutation = np.eye(wires)[rng.permutation(wires)]
    signs = rng.choice([-1.0, 1.0], wires) if reversible else np.ones(wires)
    return orthogonal * np.sign(np.diag(triangular)), permutation * signs


class ScrambledEnv(Env):
    """M x N environments of a family behind the maps of their tasks; they are drawn as the family draws them.

    Args:
        family: the scrambled family.
        task: M tasks.
        env: their environments in the family itself.
    """

    name = "env.module=scrambled"

    def __init__(self, family: Scrambled, task: Task, env: Env):
        self.family, self.env, self.can_select_rows = family, env, env.can_select_rows
        turn, self.wiring = family.maps(task)
        self.turn = turn / constant(family.obs_scale, turn.dtype, turn.device)[:, None]  # [M, O, O]
        self.choice = self.wiring.argmax(-1)  # [M, A] of the family's numbered actions
        self.reward_scale = task["reward_scale"][:, None]  # [M, 1]
        self.obs = env.obs @ self.turn

    @override
    def details(self, row: int) -> str:
        return self.env.details(row)

    def _wired(self, action: Tensor) -> Tensor:
        """Return the family's own actions."""
        actions = self.family.spec.actions
        if isinstance(actions, Continuous):
            return actions.decode(actions.encode(action) @ self.wiring)
        return self.choice.gather(1, action)

    @override
    def step(self, action: Tensor) -> Step:
        step = self.env.step(self._wired(action))
        next_obs = step.next_obs @ self.turn
        self.obs = next_obs if step.obs is step.next_obs else step.obs @ self.turn
        return Step(next_obs, step.reward * self.reward_scale, step.terminated, step.truncated, self.obs)

    @override
    def one_episode(self) -> None:
        self.env.one_episode()
        self.draws = self.env.draws

    @override
    def select_rows(self, rows: Tensor) -> None:
        self.env.select_rows(rows)
        self.turn, self.wiring, self.choice = self.turn[rows], self.wiring[rows], self.choice[rows]
        self.reward_scale = self.reward_scale[rows]
        self.obs = self.env.obs @ self.turn

    @override
    def render(self) -> Image:
        return self.env.render()

    @override
    def state_dict(self) -> State:
        return {"env": self.env.state_dict()}

    @override
    def load_state_dict(self, state: State) -> None:
        self.env.load_state_dict(state["env"])
        self.obs = self.env.obs @ self.turn


Family = Scrambled
