"""The words every part shares: what a task, a step, an environment, a family and an algorithm are.

Axes, in this order: M tasks, N envs per task, T time, B minibatch, D action dimensions, A actions; ``...`` an observation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, Self

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from metarl_cli.data import Demonstrations as Demonstrations
from metarl_cli.data import Params as Params
from metarl_cli.data import Physics as Physics
from metarl_cli.data import State as State
from metarl_cli.data import Step as Step
from metarl_cli.data import Task as Task
from metarl_cli.data import Transitions as Transitions
from metarl_cli.data import device_of as device_of
from metarl_cli.data import dtype_of as dtype_of
from metarl_cli.data import num_tasks as num_tasks
from metarl_cli.processes import ALONE, Processes
from metarl_cli.spaces import ActionSpace, Distribution, Layers, Spec

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Env(ABC):
    """M x N running environments, reset automatically when an episode ends."""

    obs: Tensor  # [M, N, ...] what to act on now
    can_select_rows: bool = False  # whether ``select_rows`` works
    draws: bool = True  # whether a step may draw random numbers

    @property
    def name(self) -> str:
        """The key and the value by which messages name the environment."""
        return type(self).__name__

    def details(self, row: int) -> str:
        """Return what messages add about the task ``row``."""
        return ""

    @abstractmethod
    def step(self, action: Tensor) -> Step:
        """Act in every environment; ``action [M, N]``, or ``[M, N, D]`` where the action space is continuous."""

    def one_episode(self) -> None:  # noqa: B027 - by default, later episodes begin as the first
        """Announce, before the first step, that only the first episode of each counts: later ones begin wherever is cheap."""

    def select_rows(self, rows: Tensor) -> None:
        """Drop all tasks but those of the mask ``rows [M]``, in mid-episode; NotImplementedError unless ``can_select_rows``."""
        raise NotImplementedError(f"{type(self).__name__} cannot drop the environments of single tasks")

    def physics(self) -> Physics | None:
        """Return the environments as functions, to be compiled with others, after :meth:`one_episode`; None if they are not."""
        return None

    @abstractmethod
    def render(self) -> Image:
        """Draw the first environment of the first task.

        Raises:
            UserError: if the environments cannot be drawn; some can only where ``make`` was called with ``render=True``.
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


class Code(Protocol):
    """A compiled function of tensors."""

    def prepared(self, *args: Any) -> Callable[..., Any]:
        """Return the function for arguments like these in shape, strides and type."""
        ...


Compiler = Callable[[Callable[..., Any], str], Code]  # of a function and what it is, for messages


class Family(ABC):
    """A distribution of tasks and the environments that run them.

    A subclass sets ``spec`` and gives the abstract methods; everything else has a default.
    """

    spec: Spec
    splits: tuple[str, ...] = ("train", "validation", "test")  # which of train, validation, test and ood the family has
    finite: bool = False  # whether the tasks are so few that the splits share them, but for those that are held out
    held_out: tuple[str, ...] = ("ood",)
    in_time: bool = False  # whether tasks are parts of one history, cut by time: they overlap, and folds would mix them
    first_action: int = 0  # the number that the environment itself gives its first action, where actions are discrete
    simulator_bytes: float = 0  # of one environment, beside its observations
    max_envs: int | None = None  # the most environments of one task that can run at once; None: any number

    @abstractmethod
    def sample_tasks(self, num: int, split: str, rng: np.random.Generator) -> Task:
        """Draw ``num`` tasks of a split; the first n do not depend on ``num``.

        Raises:
            ValueError: for a split that the family does not have.
        """

    @abstractmethod
    def named_task(self, values: dict[str, float]) -> Task:
        """Return one task (M=1) with these parameters, else nominal ones; raises ValueError for those it does not allow."""

    def number(self, name: str, value: float | str) -> float:
        """Return the number by which a task holds a parameter's value; raises ValueError for a value that means none."""
        if isinstance(value, str | bool):
            raise ValueError(f"{name} must be a number, got {value}")
        return float(value)

    def untrained(self, values: dict[str, float]) -> list[str]:
        """Return in words which of a task's parameters training does not draw, and whether ood tasks have them."""
        return []

    @abstractmethod
    def make(self, task: Task, num_envs: int, rng: torch.Generator, render: bool = False) -> Env:
        """Start ``num_envs`` environments of each task, each at the beginning of an episode.

        Args:
            task: M tasks.
            num_envs: N.
            rng: the generator of everything random in the environments.
            render: whether the first environment of the first task will be drawn.
        """

    def compile(self, compiler: Compiler) -> None:  # noqa: B027 - by default, nothing is compiled
        """Have ``compiler`` compile what runs often, where the family can."""

    def horizons(self, task: Task) -> Tensor:
        """Return the time limit ``[M]`` of an episode of each task [steps]."""
        return torch.full((num_tasks(task),), float(self.spec.horizon), device=device_of(task))

    def optimum(self, task: Task) -> Tensor | None:
        """Return the expected return ``[M]`` of an episode under the best policy that knows the task; None where unknown."""
        return None

    def solved(self, task: Task) -> Tensor | None:
        """Return the mean return ``[M]`` of an episode from which a task counts as solved; None where nothing says that."""
        return None

    def knowledge(self, task: Task) -> Tensor | None:
        """Return what an oracle is given of each task, numbers ``[M, F]`` of about 1; None where none describe the task."""
        return None

    def rule(self, support: Transitions) -> Policy | None:
        """Return a hand-written policy, which reads each task from its support ``[M, T, N, ...]``; None where there is none."""
        return None

    def elsewhere(self, task: Task, rng: torch.Generator) -> Task | None:
        """Return the M tasks in new environments, with the same rewards; None where a task has one environment alone."""
        return None

    def expert(self, task: Task) -> Policy | None:
        """Return the policies of somebody who knows each of M tasks, and demonstrates it; None where nobody does."""
        return None

    def expected_return(self, task: Task, policy: Policy) -> Tensor | None:
        """Compute the expected return ``[M]`` of an episode of greedy policies; None where it can only be sampled."""
        return None

    def groups(self, task: Task) -> dict[str, Tensor]:
        """Return the task indices ``[m]`` of each group, for families whose returns are not on one scale; empty otherwise."""
        return {}

    def describe(self, obs: Tensor) -> str | None:
        """Describe one observation in a few characters, e.g. as a grid cell; None where a family has no such text."""
        return None


class Batch(NamedTuple):
    """Experience, and what a learner derived from it for its loss: targets of values, advantages of actions."""

    experience: Transitions
    signal: dict[str, Tensor]  # {name: [T, N]}


class Learner(ABC):
    """How one task is learned: functions of its weights, written for ONE task; the caller applies them to M tasks.

    Built by ``Learner(config, spec)``. The words fit Q-learning, policy gradients and reward learning alike. A learner whose
    functions reduce over the last two axes alone sets ``stacked``: it is called once for all tasks, which is faster; others
    are called through ``vmap``.
    """

    config: Any  # its values
    spec: Spec
    actions: ActionSpace  # the actions it can take: the family's, or a grid of them
    stochastic: bool = False  # whether sampling from its policy differs from the likeliest actions
    off_policy: ClassVar[bool] = True  # whether it learns from single transitions that any policy collected
    stacked: ClassVar[bool] = False  # whether ``prepare`` and ``loss`` take M tasks too, as the first axis of all tensors
    draws: ClassVar[int] = 0  # actions that it draws for each transition, with the noise of ``with_noise``
    layers: Layers | None = None  # of its network; None where a genome cannot vary its structure

    def rebuilt(self, spec: Spec) -> Self:
        """Return the learner of the same configuration for another spec; itself, where it is its own."""
        build: Any = type(self)
        learner: Self = self if spec == self.spec else build(self.config, spec)
        return learner

    def with_noise(self, noise: Tensor) -> Self:
        """Return the learner whose ``prepare`` draws actions with standard normal ``noise [T, N, draws, D]``."""
        return self

    @abstractmethod
    def init(self, rng: torch.Generator) -> Params:
        """Return fresh weights of one network."""

    def pack(self, params: Params) -> Params:
        """Return weights ``[M, ...]`` packed for many calls of :meth:`policy` without gradients; by default, as they are."""
        return params

    @abstractmethod
    def policy(self, params: Params, obs: Tensor) -> Distribution:
        """Return the policy in ``obs [..., O]`` of one network, or in ``obs [M, N, O]`` of M networks ``[M, ...]``."""

    @abstractmethod
    def prepare(
        self, params: Params, slow: Params, batch: Transitions, gamma: float | Tensor | None = None, lambda_: float = 0.0
    ) -> Batch:
        """Derive what ``loss`` needs from one task's experience ``[T, N]``: targets or advantages.

        It is differentiable in ``slow``, for an outer gradient that goes through the targets.

        Args:
            params: the weights that learn.
            slow: the weights that targets come from; may be ``params``.
            batch: the experience, time first.
            gamma: the discount, ``[]``, or ``[M]`` of stacked tasks; None: the learner's own.
            lambda_: the share of longer returns; above 0, T must be time.
        """

    @abstractmethod
    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Return the scalar loss of one task, or the losses ``[M]`` of stacked tasks; deterministic."""


class Policy(ABC):
    """What acts in N environments of each of M tasks, however it came about.

    Its state lasts over the episodes of a trial: nothing for a network, a memory for a recurrent one.
    """

    stochastic = False  # whether its actions can be sampled, beside taking the likeliest

    def start(self, num_envs: int, rng: torch.Generator, greedy: bool = True) -> State:
        """Return the state before the first step of M x N trials.

        Args:
            num_envs: N.
            rng: the generator of the policy's own chance; the state carries it, under ``rng``.
            greedy: take the likeliest actions, or sample.
        """
        return {"rng": None if greedy else rng}

    @abstractmethod
    def act(self, state: State, obs: Tensor) -> tuple[Tensor, State]:
        """Return the actions for ``obs [M, N, ...]``, and the state after choosing them."""

    def observe(self, state: State, obs: Tensor, action: Tensor, step: Step) -> State:
        """Return the state after seeing where the actions led."""
        return state

    def diagnostics(self) -> Diagnostics:
        """Return what is worth looking at, of the first task."""
        return Diagnostics({}, {}, {})

    def state_dict(self) -> State:
        """Everything that a policy of the same algorithm needs to act as this one."""
        return {}


class Budget(NamedTuple):
    """What adapting to a task may spend."""

    steps: int = 0  # gradient steps of an algorithm that adapts by gradient; or supports, by inference; or demonstrations
    episodes: int | None = None  # of experience: of the support, or of a trial; None: as the algorithm was configured
    demonstrations: Demonstrations | None = None  # at least ``steps`` of one's own; None: the family's


class Demonstrated(NamedTuple):
    """What was learned from demonstrations, where they took place."""

    demonstrations: Demonstrations  # so many as were used
    policy: Policy  # of their environments


class Adapted(NamedTuple):
    """The policies of M tasks after ``step`` adaptation steps, and what they have cost per task."""

    step: int
    gradient_steps: int
    env_steps: int
    policy: Policy
    episodes: int | None = None  # over which the policy's state lasts, a trial; None: every episode stands alone
    demonstrated: Demonstrated | None = None  # what was learned, where demonstrations were given; None: there are none


class Diagnostics(NamedTuple):
    """What an algorithm shows beside numbers; keys are ``group/name``."""

    histograms: dict[str, Tensor]  # [P] each
    texts: dict[str, str]  # Markdown
    figures: dict[str, Figure]


class Context(NamedTuple):
    """What an algorithm is built with beside its own configuration."""

    family: Family
    learner: Learner  # never asked for by an algorithm without ``uses_learner``
    iterations: int  # of the whole run, for the schedules
    seed: int  # of the run; every random stream derives from it by name
    device: torch.device
    processes: Processes = ALONE  # that share a ``train_step``
    compile: bool = False  # whether hot functions are compiled


class Holding(NamedTuple):
    """Memory that grows with one value of the configuration."""

    key: str  # of this value, which a user lowers where memory is short
    bytes: float


class Footprint(NamedTuple):
    """The memory of a piece of work; its peak is the sum of what stays, and the largest of what comes and goes."""

    held: Sequence[Holding] = ()  # until the end of the work, all at once
    passing: Sequence[Holding] = ()  # one after another


class Algorithm(ABC):
    """What is learned across tasks; built by ``Algo(config, context)``."""

    learns: ClassVar[bool] = True  # False for a reference, which has nothing to train
    replays: ClassVar[bool] = False  # whether its learner gets single transitions from a replay
    uses_learner: ClassVar[bool] = True  # whether the configuration's learner is a part of it
    gives_noise: ClassVar[bool] = False  # whether its learner may be one that draws actions
    adapts_by: ClassVar[Literal["gradient", "inference", "demonstrations", "memory", "nothing"]]
    own_tasks: ClassVar[bool] = False  # whether it is judged by its training tasks, each learned on its own
    trained_steps: int | None = None  # adaptation steps that it is trained for; None: any number
    saved: ClassVar[tuple[str, ...]] = ()  # attributes with a ``state_dict`` that training goes on from; some may be None
    counters: ClassVar[tuple[str, ...]] = ("iteration", "env_steps")  # numbers likewise

    task: Task  # the training tasks
    shares: int = 1  # the most processes that can share a ``train_step``
    iteration: int = 0
    env_steps: int = 0  # environment steps of meta-training so far, the x-axis of every curve

    @classmethod
    def cost_of_building(cls, config: Any, context: Context) -> Footprint:
        """Return the memory that building it takes; nothing of it is built, and what is not known counts nothing."""
        return Footprint()

    def cost_of_training(self) -> Footprint:
        """Return the memory that :meth:`train_step` and a checkpoint take, beyond what the algorithm holds already."""
        return Footprint()

    def cost_of_adapting(self, tasks: int, episodes: int) -> float:
        """Return the bytes that adapting to so many tasks takes, with so many episodes at a time by each policy."""
        return 0.0

    def numbers_of_adapting(self) -> dict[str, int]:
        """Return the numbers of the configuration, by key, which :meth:`cost_of_adapting` grows with."""
        return {}

    @abstractmethod
    def train_step(self) -> dict[str, float]:
        """Run one meta-iteration; returns metrics ``{"group/name": value}``."""

    @abstractmethod
    def adapt(self, task: Task, budget: Budget, rng: torch.Generator, family: Family | None = None) -> Iterator[Adapted]:
        """Adapt to M tasks, leaving the algorithm unchanged.

        What is yielded depends on how it adapts:

        | by | policies |
        |---|---|
        | gradient | before the first gradient step and after each |
        | inference | before the first support and after each |
        | demonstrations | before the first demonstration and after some numbers of them |
        | memory | one, whose state is the adaptation |
        | nothing | one |

        Args:
            task: the tasks.
            budget: what it may spend.
            rng: of the experience.
            family: where the tasks run; None: the family of the training tasks.
        """

    def adapt_from_scratch(self, task: Task, budget: Budget, rng: torch.Generator) -> Iterator[Adapted] | None:
        """Adapt fresh weights at the same budget: the reference; None where there are no gradient steps."""
        return None

    @abstractmethod
    def load_policy(self, state: State, task: Task) -> Policy:
        """Return the policy that :meth:`Policy.state_dict` describes; raises ValueError if it is of another algorithm."""

    def diagnostics(self) -> Diagnostics:
        """Return what is worth looking at beside metrics."""
        return Diagnostics({}, {}, {})

    @abstractmethod
    def weights(self) -> State:
        """Return what was learned, all that adaptation needs."""

    @abstractmethod
    def load_weights(self, state: State) -> None:
        """Take over what :meth:`weights` returned."""

    def drop_replay(self) -> None:  # noqa: B027 - by default, there is none
        """Forget the experience that is kept for replay; training that goes on collects it anew."""

    def state_dict(self) -> State:
        """Return everything that training goes on from; the weights under ``weights``."""
        parts = {name: getattr(self, name).state_dict() for name in self.saved if getattr(self, name) is not None}
        return {"weights": self.weights(), **parts, **{name: getattr(self, name) for name in self.counters}}

    def load_state_dict(self, state: State) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self.load_weights(state["weights"])
        for name in self.saved:
            if getattr(self, name) is not None:
                getattr(self, name).load_state_dict(state[name])
        for name in self.counters:
            setattr(self, name, state[name])
