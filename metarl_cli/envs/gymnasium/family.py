"""Families of Gymnasium environments and the environments that run their tasks."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from PIL import Image
from torch import Tensor
from typing_extensions import override

from metarl_cli.config.messages import one_line
from metarl_cli.envs.gymnasium.build import simulator
from metarl_cli.envs.gymnasium.config import Config, Row
from metarl_cli.envs.gymnasium.conventions import LARGEST_BYTE
from metarl_cli.envs.gymnasium.trial import opened, try_out
from metarl_cli.envs.gymnasium.workers import LocalWorker, RemoteWorker, Worker, WorkerPool, close_all
from metarl_cli.envs.simulator import whole
from metarl_cli.envs.tasks import ParametricFamily, in_words
from metarl_cli.errors import UserError
from metarl_cli.interfaces import Env, State, Step, Task, num_tasks
from metarl_cli.spaces import Continuous, Discrete, Spec

SIMULATOR = 50_000  # [bytes] of a simulator with its wrappers, at least
MOST_TRIED = 16  # choices of a parameter that are numbers, before training begins


class GymnasiumEnv(Env):
    """M x N environments in one or more processes; once it is garbage, its workers wait in the pool for the same tasks.

    Args:
        family: the family.
        task: M tasks.
        num_envs: N.
        rng: the generator of the episodes' seeds.
        render: whether the first environment of the first task will be drawn.
    """

    def __init__(self, family: GymnasiumFamily, task: Task, num_envs: int, rng: torch.Generator, render: bool):
        config, rows = family.config, family.rows(task)
        self.family, self.rows, self.shape = family, rows, (len(rows), num_envs)
        total = len(rows) * num_envs
        copies = [row for row in rows for _ in range(num_envs)]
        self.parts = np.array_split(np.arange(total), min(config.processes, total))
        if render:  # drawing may fail so badly that its process ends, as MuJoCo without OpenGL does
            self.workers: list[Worker] = []
            weakref.finalize(self, close_all, self.workers)
        else:
            key = (num_envs, *(tuple(row.items()) for row in rows))
            self.workers = family.pool.acquire(key)
            weakref.finalize(self, family.pool.release, key, total, self.workers)
        kind = RemoteWorker if render or len(self.parts) > 1 else LocalWorker
        for part in [] if self.workers else self.parts:
            self.workers.append(kind(config, [copies[i] for i in part], render and not self.workers))
        self.seeds = torch.randint(2**62, self.shape, generator=rng, device=rng.device).cpu()
        self.episodes = torch.zeros(self.shape, dtype=torch.long)
        self.clock = torch.zeros(self.shape, dtype=torch.long)  # [steps] since the episode began
        action = family.action
        self.history = np.zeros((config.horizon, total, *action.shape), action.dtype)  # the actions of each episode so far
        try:
            self._begin()
        except ValueError as error:
            raise self._not_drawn(error) if render else error from error

    @property
    @override
    def name(self) -> str:
        return f"env.id={self.family.config.id}"

    @override
    def details(self, row: int) -> str:
        return in_words(self.rows[row])

    def _call(self, method: str, *values: list[Any]) -> list[Any]:
        """Run a method in all workers at once and return their results; ``values`` has one entry per worker."""
        try:
            for worker, *arguments in zip(self.workers, *values, strict=True):
                worker.send(method, *arguments)
            return [worker.receive() for worker in self.workers]
        except BaseException:
            close_all(self.workers)  # the results of some may still be in their pipes
            raise

    def _begin(self) -> None:
        numbers = [x.flatten().numpy() for x in (self.seeds, self.episodes, self.clock)]
        split = [[x[part].tolist() for part in self.parts] for x in numbers]
        actions = [self.history[: numbers[2].max(), part] for part in self.parts]
        self.obs = self._tensor(np.concatenate(self._call("begin", *split, actions)))

    def _tensor(self, x: np.ndarray) -> Tensor:
        """Return observations ``[M N, ...]``, or a number or an end ``[M N]`` of each environment, as ``[M, N, ...]``."""
        spec, device = self.family.spec, self.family.device
        numbers = torch.as_tensor(x, device=device) if x.dtype == bool and x.ndim == 1 else spec.observation(x, device)
        return numbers.reshape(*self.shape, *x.shape[1:])

    @override
    def step(self, action: Tensor) -> Step:
        inside = self.family.spec.actions.clip(action)
        actions = whole(inside.detach().flatten(0, 1).cpu().numpy(), self.history.dtype)
        clock = self.clock.flatten().numpy()
        self.history[clock, np.arange(len(clock))] = actions
        results = self._call("step", [actions[part] for part in self.parts])
        *fields, begun = results[0] if len(results) == 1 else map(np.concatenate, zip(*results, strict=True))
        next_obs, reward, terminated, truncated = map(self._tensor, fields)
        self.obs = next_obs if begun is fields[0] else self._tensor(begun)
        step = Step(next_obs, reward, terminated, truncated, self.obs)
        ended = step.ended.cpu()
        self.clock = torch.where(ended, 0, self.clock + 1)
        self.episodes = self.episodes + ended
        return step

    @override
    def render(self) -> Image.Image:
        try:
            self.workers[0].send("render")
            return Image.fromarray(self.workers[0].receive())
        except Exception as error:
            raise self._not_drawn(error) from error

    def _not_drawn(self, error: Exception) -> UserError:
        return UserError(f"{self.family.config.id} cannot be drawn: {one_line(error)}")

    def state_dict(self) -> State:
        """Return the seed, the number and the actions ``[T, M, N, ...]`` of every episode, and ``obs`` to verify a replay."""
        played = np.arange(int(self.clock.max()))[:, None] < self.clock.flatten().numpy()  # [T, M * N]
        history = self.history[: len(played)]
        played = played.reshape(*played.shape, *[1] * (history.ndim - 2))
        actions = torch.as_tensor(np.where(played, history, np.zeros_like(history)))
        actions = actions.reshape(-1, *self.shape, *actions.shape[2:])
        numbers = {"seeds": self.seeds, "episodes": self.episodes, "clock": self.clock}
        return {**numbers, "actions": actions, "obs": self.obs}

    def load_state_dict(self, state: State) -> None:
        """Play the saved episodes again; where that leads elsewhere, warn and begin new episodes.

        Raises:
            ValueError: if the saved environments have another shape.
        """
        actions = state["actions"]
        fits = actions.shape[3:] == self.history.shape[2:] and len(actions) <= len(self.history)
        clock = state["clock"]
        if state["seeds"].shape != self.shape or not fits or int(clock.min()) < 0 or int(clock.max()) > len(actions):
            raise ValueError("the saved environments have another shape")
        self.seeds, self.episodes, self.clock = (state[name].cpu() for name in ("seeds", "episodes", "clock"))
        self.history[: len(actions)] = actions.flatten(1, 2).cpu().numpy()
        self._begin()
        if not torch.equal(self.obs, state["obs"].to(self.obs.device)):
            warnings.warn(f"{self.family.config.id} is not deterministic: new episodes replace the saved ones", stacklevel=2)
            self.episodes, self.clock = self.episodes + 1, torch.zeros_like(self.clock)
            self._begin()


class GymnasiumFamily(ParametricFamily):
    """A distribution of tasks over a Gymnasium environment; see the package's docstring.

    Raises:
        ValueError: if the environment is unknown, not installed, rejects a value, or has spaces that no learner here takes.
    """

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        self.parameters = {name: config.number(name, p.nominal) for name, p in config.parameters.items()} or {"task": 0.0}
        scaled = {name for name, p in config.parameters.items() for address in p.addresses if address.how == "scale"}
        self.positive = frozenset(scaled)
        super().__init__(config, device)
        self.config, self.pool = config, WorkerPool(config.idle)
        nominal = simulator(config, self._row(self.parameters))
        with contextlib.closing(nominal.env):
            self.spec, self.action = _spec(nominal.env, config), _action(nominal.env)
            self.first_action = nominal.first_action
            self.threshold = _threshold(config)
            self.simulator_bytes = SIMULATOR + config.horizon * self.action.nbytes
            try_out(config, nominal, list(self._extremes()))

    def _extremes(self) -> Iterator[Row]:
        """Tasks with the extreme values of every parameter: what the simulator rejects, it rejects before training."""
        distributions = self.distributions | self.ood_distributions
        values = {name: distribution.extremes for name, distribution in distributions.items()}
        values |= {name: (*values[name], *tested.extremes) for name, tested in self.config.tested().items()}
        values |= {name: self._tried(name) for name in self.config.choices}
        for number in range(max(map(len, values.values()), default=0)):
            yield self._row({**self.parameters, **{name: float(v[min(number, len(v) - 1)]) for name, v in values.items()}})

    def _tried(self, name: str) -> tuple[float, ...]:
        """Return the choices of a parameter that are tried: of many numbers the first, the last and some between."""
        every = self.config.every_choice(name)
        numbers = [self.config.number(name, value) for value in every]
        few = len(every) <= MOST_TRIED or isinstance(every[0], str)
        which = range(len(every)) if few else np.linspace(0, len(every) - 1, MOST_TRIED).round().astype(int)
        return tuple(numbers[number] for number in which)

    @override
    def number(self, name: str, value: float | str) -> float:
        own = self.config.parameters.get(name)
        meant = name in self.config.choices or (own is not None and isinstance(own.nominal, bool))
        return self.config.number(name, value) if meant else super().number(name, value)

    @override
    def named_task(self, values: dict[str, float]) -> Task:
        task = super().named_task(values)
        with opened(self.config, self.rows(task)[0]):  # the simulator may reject a value, or overwrite it
            return task

    @override
    def solved(self, task: Task) -> Tensor | None:
        return None if self.threshold is None else torch.full((num_tasks(task),), self.threshold, device=self.device)

    def rows(self, task: Task) -> list[Row]:
        """Return the parameters of each task."""
        columns = [value.tolist() for value in task.values()]
        return [self._row(dict(zip(task, row, strict=True))) for row in zip(*columns, strict=True)]

    def _row(self, values: Mapping[str, float]) -> Row:
        return {name: self.config.value(name, values[name]) for name in self.config.parameters}

    def make(self, task: Task, num_envs: int, rng: torch.Generator, render: bool = False) -> GymnasiumEnv:
        """Start ``num_envs`` environments of each task.

        Raises:
            ValueError: if the simulator rejects a value of a task.
        """
        return GymnasiumEnv(self, task, num_envs, rng, render)


def _threshold(config: Config) -> float | None:
    """Return the registered ``reward_threshold``, where episodes are as long as registered and no wrapper changes them."""
    registered = gymnasium.registry[config.id]
    if config.wrappers or config.horizon != registered.max_episode_steps:
        return None
    return registered.reward_threshold


def _action(env: gymnasium.Env[Any, Any]) -> np.ndarray:
    """Return an array with an action's shape and type."""
    return np.zeros(env.action_space.shape or (), env.action_space.dtype)


def _spec(env: gymnasium.Env[Any, Any], config: Config) -> Spec:
    observations, actions, horizon = env.observation_space, env.action_space, config.horizon
    shape = observations.shape or ()
    if len(shape) == 3 and shape[-1] < min(shape[:2]):
        raise ValueError(f"images of {list(shape)} have their channels last: add the wrapper ChannelsFirst")
    pixels, scale = len(shape) == 3 and observations.dtype in (bool, np.uint8), _scale(observations)
    if isinstance(actions, spaces.Discrete):
        return Spec(shape, Discrete(int(actions.n), config.action_mask is not None), horizon, scale, pixels)
    if not isinstance(actions, spaces.Box) or len(actions.shape) != 1 or not actions.is_bounded():
        raise ValueError(f"actions are {actions}: only discrete ones and bounded vectors can be learned here")
    return Spec(shape, Continuous(tuple(actions.low.tolist()), tuple(actions.high.tolist())), horizon, scale, pixels)


def _scale(observations: gymnasium.Space[Any]) -> tuple[float, ...]:
    """Return by what a network divides the entries of a row of numbers: bytes by 255; nothing where there are none."""
    if not isinstance(observations, spaces.Box) or len(observations.shape) != 1:
        return ()
    in_bytes = (observations.low == 0) & (observations.high == LARGEST_BYTE)
    return tuple(np.where(in_bytes, float(LARGEST_BYTE), 1.0).tolist()) if in_bytes.any() else ()
