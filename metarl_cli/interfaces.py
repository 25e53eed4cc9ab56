"""The words every part shares: what a task, a step, an environment, a family and an algorithm are.

Axes, always in this order: M tasks, N envs per task, T time, B minibatch, D action dimensions, A actions; ``...`` is the
observation's shape.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from metarl_cli.spaces import Spec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Params = dict[str, Tensor]  # one network; leading [M] where each task owns a copy
Task = dict[str, Tensor]  # one tensor [M, ...] per physical quantity, SI units
State = dict[str, Any]  # tensors, numbers, strings, lists and dicts of them: what a checkpoint may hold


def num_tasks(task: Task) -> int:
    """Return M, the number of tasks."""
    return len(next(iter(task.values())))


def device_of(task: Task) -> torch.device:
    """Return the device on which the tasks live."""
    return next(iter(task.values())).device


def dtype_of(task: Task) -> torch.dtype:
    """Return the type of the tasks' first parameter."""
    return next(iter(task.values())).dtype


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
        return self.terminated | self.truncated


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


class Env(ABC):
    """M x N running environments, reset automatically when an episode ends."""

    obs: Tensor  # [M, N, ...] what to act on now
    can_select_rows: bool = False  # whether ``select_rows`` works

    @abstractmethod
    def step(self, action: Tensor) -> Step:
        """Act in every environment; ``action [M, N]``, or ``[M, N, D]`` where the action space is continuous."""

    def select_rows(self, rows: Tensor) -> None:
        """Drop all tasks but those of the mask ``rows [M]``, in the middle of their episodes.

        Raises:
            NotImplementedError: unless ``can_select_rows``.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot drop the environments of single tasks")

    @abstractmethod
    def render(self) -> Image:
        """Draw the first environment of the first task.

        Raises:
            ValueError: if the environments cannot be drawn; some can only where ``make`` was called with ``render=True``.
        """

    @abstractmethod
    def state_dict(self) -> State:
        """Return the state of all environments, as a checkpoint may hold it."""

    @abstractmethod
    def load_state_dict(self, state: State) -> None:
        """Continue from a state that ``state_dict`` returned.

        Raises:
            ValueError: if the state is of another number or kind of environments.
        """


class Family(ABC):
    """A distribution of tasks and the environments that run them.

    A subclass sets ``spec`` and gives the abstract methods; everything else has a default.
    """

    spec: Spec
    splits: tuple[str, ...] = ("train", "validation", "test")  # which of train, validation, test and ood the family has
    finite: bool = False  # whether the tasks are so few that the splits share them
    max_envs: int | None = None  # the most environments of one task that can run at once; None: any number

    @abstractmethod
    def sample_tasks(self, num: int, split: str, rng: np.random.Generator) -> Task:
        """Draw ``num`` tasks of a split; the first n do not depend on ``num``.

        Raises:
            ValueError: for a split that the family does not have.
        """

    @abstractmethod
    def named_task(self, values: dict[str, float]) -> Task:
        """Return one task (M=1) with these parameters; the others have the family's nominal values.

        Raises:
            ValueError: for an unknown parameter, or a value that the family does not allow.
        """

    @abstractmethod
    def make(self, task: Task, num_envs: int, rng: torch.Generator, render: bool = False) -> Env:
        """Start ``num_envs`` environments of each task, each at the beginning of an episode.

        Args:
            task: M tasks.
            num_envs: N.
            rng: the generator of everything random in the environments.
            render: whether the first environment of the first task will be drawn.
        """

    def optimum(self, task: Task) -> Tensor | None:
        """Return the expected return ``[M]`` of an episode under the best policy that knows the task; None where unknown."""
        return None

    def groups(self, task: Task) -> dict[str, Tensor]:
        """Return the task indices ``[m]`` of each group, for families whose returns are not on one scale; empty otherwise."""
        return {}

    def describe(self, obs: Tensor) -> str | None:
        """Describe one observation in a few characters, e.g. as a grid cell; None where a family has no such text."""
        return None


class Learner(Protocol):
    """How one task is learned: functions of its weights, written for ONE task and vmapped by the caller; but for ``act``."""

    spec: Spec

    def init(self, rng: torch.Generator) -> Params:
        """Fresh weights of one network."""
        ...

    def act(self, params: Params, obs: Tensor, epsilon: float | Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Actions ``[M, N]`` for ``obs [M, N, ...]`` with ``params`` of M networks; ``epsilon`` for all, or of each ``[M]``."""
        ...

    def targets(
        self,
        params: Params,
        target_params: Params,
        batch: Transitions,
        returns: Any = None,
        gamma: Tensor | None = None,
    ) -> Tensor:
        """What the network should say about ``batch``, ``[T, N]``; one step ahead unless told otherwise.

        ``gamma`` is a discount ``[]`` in the place of the learner's own.
        """
        ...

    def loss(self, params: Params, batch: Transitions, target: Tensor) -> Tensor:
        """A scalar, deterministic."""
        ...


Traits = dict[str, Params]  # kind of trait -> its values, leading with [P], or [R] once each is a row of its own


class Genome(Protocol):
    """Says what a vector of genes means.

    Built by ``Genome(config, learner, rng)``; one part of what an individual is, each part with genes of its own.
    """

    start: Tensor  # [G] to begin a search at
    scale: Tensor  # [G] the natural size of a change of each gene

    def express(self, genes: Tensor) -> Traits:
        """What the genes ``[P, G]`` make of a lifetime: ``init``, ``structure``, ``rates``, ``hyper`` or ``optimizer``."""
        ...

    def read(self, genes: Tensor) -> dict[str, Tensor]:
        """The genes in numbers people understand, ``{name: [P]}``."""
        ...


class Life(Protocol):
    """R learners in their lifetimes, each on its own task: grows by one adaptation step after another."""

    params: Params  # [R, ...], or [P, ...] as long as P individuals are the same on each of their R / P tasks
    gradient_steps: int  # so far
    env_steps: Tensor  # [R] so far

    def grow(self) -> None:
        """Live through one adaptation step."""
        ...


class Lifetime(Protocol):
    """How an individual learns a task; built by ``Lifetime(config, learner, family, device)``."""

    steps: int  # adaptation steps of a whole lifetime, after which fitness is measured
    traits: frozenset[str]  # the kinds it has a use for beside ``init`` and ``structure``
    default: Traits  # of a learner without a genome, of each kind in ``traits`` it has; leading with [1]

    def begin(self, params: Params, traits: Traits, task: Task, rng: torch.Generator) -> Life:
        """Put learners with these weights and ``traits [R]`` to the tasks ``[R]``."""
        ...


class Search(Protocol):
    """Moves a population of P genomes, vectors of G genes, towards greater fitness.

    Built by ``Search(config, start, scale, rng)``: the genome ``[G]`` to start at, the natural size ``[G]`` of each gene's
    change, and the generator that it owns; the state goes into one built with the same ``config`` and ``scale``.
    """

    def ask(self) -> Tensor:
        """The genomes ``[P, G]`` to evaluate now; the same ones until told."""
        ...

    def tell(self, fitness: Tensor) -> dict[str, float]:
        """Go on from the fitness ``[P]`` of those; greater is better, equal is equal, not finite counts as the least.

        Returns what happened as ``{"search/name": value}``. ValueError: not one number per genome, or none finite.
        """
        ...

    def best(self) -> Tensor:
        """The genome ``[G]`` to use now."""
        ...

    def state_dict(self) -> State:
        """Everything the search goes on from, its generator included; between ``ask`` and ``tell`` too."""
        ...

    def load_state_dict(self, state: State) -> None: ...


class Adaptation(NamedTuple):
    """The policies of M tasks after ``step`` adaptation steps, and what they have cost per task."""

    step: int
    gradient_steps: int
    env_steps: int
    params: Params  # leading [M]


class Algorithm(Protocol):
    """What is learned across tasks; adapts to a task as a :class:`GradientAlgorithm` or a :class:`TrialAlgorithm` does."""

    task: Task  # the training tasks
    env_steps: int  # environment steps of meta-training so far, the x-axis of every curve
    learns: bool  # False for a reference, which has nothing to train

    def train_step(self) -> dict[str, float]:
        """One meta-iteration; returns what happened as ``{"group/name": value}``."""
        ...

    def weights(self) -> State:
        """What was learned, all that adaptation needs."""
        ...

    def load_weights(self, state: State) -> None: ...

    def state_dict(self) -> State:
        """Everything that training goes on from; holds ``weights`` under that name."""
        ...

    def load_state_dict(self, state: State) -> None: ...


class GradientAlgorithm(Algorithm, Protocol):
    """Adapts by gradient steps on a few episodes: a policy before, and one after each step."""

    def adapt(self, task: Task, steps: int, rng: torch.Generator) -> Iterator[Adaptation]:
        """Learn these tasks; yields the policies before the first and after each step; leaves the algorithm unchanged."""
        ...

    def adapt_from_scratch(self, task: Task, steps: int, rng: torch.Generator) -> Iterator[Adaptation]:
        """The reference: the same learner from fresh weights, at the same budget."""
        ...

    def act(self, params: Params, obs: Tensor) -> Tensor:
        """The greedy actions ``[M, N]`` of adapted policies."""
        ...

    def learned(self) -> tuple[Task, Params] | None:
        """Tasks that already own weights (each task learned from scratch), or None where tasks are only adapted to."""
        ...


class Portrait(NamedTuple):
    """What an algorithm shows of itself beside numbers; keys are ``group/name``."""

    histograms: dict[str, Tensor]  # [P] each
    texts: dict[str, str]  # Markdown
    figures: dict[str, Figure]


@runtime_checkable
class Portrayed(Protocol):
    """An algorithm that has something to show."""

    def portrait(self) -> Portrait: ...


@runtime_checkable
class Sharded(Protocol):
    """An algorithm whose ``train_step`` several processes take together, to the same bits as one."""

    ranks: Any


@runtime_checkable
class TrialAlgorithm(Algorithm, Protocol):
    """Adapts by memory, within a trial of several episodes on one task: what RL² learns, and what bandit strategies do."""

    episodes: int  # of a trial
    stochastic: bool  # whether its policy can be sampled from beside taking its greedy actions; False for references

    def begin(self, task: Task, num_envs: int, rng: torch.Generator, greedy: bool = True) -> State:
        """The memory of M x N trials at their start.

        Args:
            task: for those that are told it (an oracle).
            num_envs: N.
            rng: of whatever chance the trials' actions need; the memory carries it, under ``rng``.
            greedy: take the greedy actions all along, or sample; without effect on what is not ``stochastic``.
        """
        ...

    def choose(self, memory: State, obs: Tensor) -> tuple[Tensor, State]:
        """The actions for ``obs [M, N, ...]``, and the memory after choosing them."""
        ...

    def observe(self, memory: State, obs: Tensor, action: Tensor, step: Step) -> State:
        """The memory after seeing where the actions led; it lasts across the episodes of the trial."""
        ...
