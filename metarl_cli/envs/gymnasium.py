"""Any Gymnasium environment as a family of tasks, by configuration alone (Towers and others 2024, arXiv:2407.17032).

A task parameter reaches the simulator in one of four ways, its address ``set``:

| address | sets |
|---|---|
| ``constructor.KEYWORD`` | an argument of the environment, e.g. ``constructor.wind_power`` |
| ``attribute.PATH`` | a number of the unwrapped environment, e.g. ``attribute.gravity`` or ``attribute.model.opt.gravity.2`` |
| ``scale.PATH`` | the same times the parameter; a whole array at once too, e.g. ``scale.model.body_mass`` |
| ``wrapper.NAME.ARGUMENT`` | an argument of one of ``wrappers``, e.g. ``wrapper.Direction.angle`` |

Parameters vary within ``ranges``, or over a few ``choices``; where all are choices, the splits share the tasks.

Action and observation space, reward and ends: the environment's own, as its wrappers leave them; discrete actions or bounded
vectors; observations are tensors, images ``[C, H, W]`` in bytes. Start: the environment's, each episode from a seed of its own.

An episode is its seed and its actions, so a checkpoint holds these and loading plays them again: deterministic simulators go
on with the same bits. No name in a configuration is ever imported: environments are found in Gymnasium's registry, wrappers in
the lists below, and attributes must be there, be numbers and be public.

The rewards of the literature's locomotion tasks are wrappers here:

* :class:`Direction`: forward or backward (Finn, Abbeel and Levine 2017, arXiv:1703.03400), or any direction on the plane.
* :class:`Velocity`: a hidden speed (the same; range and horizon as in Rakelly and others 2019, arXiv:1903.08254).

Differs from the papers: the bodies are Gymnasium's v5, with its observations and, for the ant, its contact forces.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import math
import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import warnings
import weakref
from collections.abc import Iterator
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Annotated, Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from metarl_cli.config.base import Operational, StrictModel
from metarl_cli.config.messages import did_you_mean, known_options, one_line
from metarl_cli.envs.tasks import Columns, Range, Tasks, TasksConfig
from metarl_cli.interfaces import Env, State, Step, Task
from metarl_cli.spaces import Box, Spec

Number = int | float
Plain = bool | int | float | str | list[bool | int | float | str]
Row = dict[str, Number]  # the parameters of one task
MOST_IDLE = 256  # environments kept for later


class Direction(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Run along ``angle`` [rad] from the x-axis: the reward's forward part is the velocity in that direction [m/s].

    Costs and the reward for survival stay the environment's; pi is MAML's backward for bodies that move along x alone.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], angle: float):
        super().__init__(env)
        self.x, self.y = math.cos(angle), math.sin(angle)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        along = self.x * info["x_velocity"] + self.y * info.get("y_velocity", 0.0)
        return obs, float(reward) - info["reward_forward"] + along, terminated, truncated, info


class Velocity(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Run forward at ``velocity`` [m/s]: the reward's forward part is minus the distance from it; costs stay."""

    def __init__(self, env: gymnasium.Env[Any, Any], velocity: float):
        super().__init__(env)
        self.velocity = velocity

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        off = abs(info["x_velocity"] - self.velocity)
        return obs, float(reward) - info["reward_forward"] - off, terminated, truncated, info


class PermutedActions(gymnasium.ActionWrapper[Any, Any, Any]):
    """Only the first ``actions`` actions, wired in permutation number ``order`` (in lexicographic order; 0 leaves them)."""

    def __init__(self, env: gymnasium.Env[Any, Any], actions: int, order: int):
        super().__init__(env)
        self.action_space = spaces.Discrete(actions)
        if not 0 <= order < math.factorial(actions):
            raise ValueError(f"order must be from 0 to {math.factorial(actions) - 1}, got {order}")
        self.wires = next(itertools.islice(itertools.permutations(range(actions)), order, None))

    def action(self, action: int) -> int:
        return self.wires[action]


class ChannelsFirst(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Images ``[H, W, C]`` as ``[C, H, W]``."""

    def __init__(self, env: gymnasium.Env[Any, Any]):
        super().__init__(env)
        space: Any = env.observation_space
        low, high = np.moveaxis(space.low, -1, 0), np.moveaxis(space.high, -1, 0)
        self.observation_space = spaces.Box(low, high, dtype=space.dtype)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return np.moveaxis(observation, -1, 0)


class OneHotView(gymnasium.ObservationWrapper[Any, Any, Any]):
    """MiniGrid's partial view without the mission, one plane per kind, colour and state of things: ``[20, 7, 7]``, 0 or 1."""

    def __init__(self, env: gymnasium.Env[Any, Any]):
        super().__init__(env)
        constants = importlib.import_module("minigrid.core.constants")
        tables = (constants.OBJECT_TO_IDX, constants.COLOR_TO_IDX, constants.STATE_TO_IDX)
        self.planes = [np.eye(len(table), dtype=np.float32) for table in tables]
        space: Any = env.observation_space
        shape = (sum(map(len, tables)), *space["image"].shape[:2])
        self.observation_space = spaces.Box(0, 1, shape, np.float32)

    def observation(self, observation: dict[str, Any]) -> np.ndarray:
        view = observation["image"]
        hot = [plane[view[..., i]] for i, plane in enumerate(self.planes)]
        return np.ascontiguousarray(np.moveaxis(np.concatenate(hot, -1), -1, 0))


class HiddenGoal(gymnasium.Wrapper[Any, Any, Any, Any]):
    """MiniGrid's FourRooms with the goal always at column ``x`` and row ``y``; start and doors stay random."""

    def __init__(self, env: gymnasium.Env[Any, Any], x: int, y: int):
        super().__init__(env)
        inner: Any = env.unwrapped
        if not hasattr(inner, "_goal_default_pos"):
            raise ValueError("HiddenGoal is for MiniGrid-FourRooms-v0")
        inner._goal_default_pos = (x, y)


OWN: dict[str, Any] = {c.__name__: c for c in (Direction, Velocity, PermutedActions, ChannelsFirst, OneHotView, HiddenGoal)}
# Without what Python code alone can configure, and without memory across episodes, which no replay of one would restore.
LIBRARIES = {
    "gymnasium.wrappers": (
        *("AtariPreprocessing", "ClipAction", "ClipReward", "DiscretizeAction", "DiscretizeObservation", "FilterObservation"),
        *("FlattenObservation", "FrameStackObservation", "GrayscaleObservation", "MaxAndSkipObservation", "RepeatAction"),
        *("RescaleAction", "RescaleObservation", "ReshapeObservation", "ResizeObservation", "StickyAction"),
        "TimeAwareObservation",
    ),
    "minigrid.wrappers": (
        *("FlatObsWrapper", "FullyObsWrapper", "ImgObsWrapper", "RGBImgObsWrapper", "RGBImgPartialObsWrapper"),
        "ViewSizeWrapper",
    ),
}
WRAPPERS = {**dict.fromkeys(OWN, ""), **{name: library for library, names in LIBRARIES.items() for name in names}}

# extra -> what it installs, its name, and how the ids or entry points of its environments begin
EXTRAS = {
    "mujoco": ("mujoco", "MuJoCo", ("gymnasium.envs.mujoco",)),
    "box2d": ("Box2D", "Box2D", ("gymnasium.envs.box2d",)),
    "minigrid": ("minigrid", "MiniGrid", ("MiniGrid-", "BabyAI-", "minigrid")),
    "atari": ("ale_py", "the Arcade Learning Environment", ("ALE/", "ale_py")),
}
RESERVED = ("id", "render_mode", "max_episode_steps", "disable_env_checker")  # arguments of gymnasium.make itself


class Parameter(StrictModel):
    """A number that tasks vary."""

    nominal: Number = Field(description="its value in the environment as it is")
    set: str = Field(
        pattern=r"^(constructor\.\w+|(attribute|scale)\.[\w.]+|wrapper\.\w+\.\w+)$",
        description="where it goes: constructor.KEYWORD, attribute.PATH, scale.PATH or wrapper.NAME.ARGUMENT",
    )


class Derived(StrictModel):
    """An attribute that the simulator computed from others when it was built, and would otherwise be stale."""

    operation: Literal["sum", "product"] = Field(description="how the others make it")
    of: list[str] = Field(min_length=1, description="the attributes it derives from")


class WrapperConfig(StrictModel):
    """A wrapper of the safe list."""

    name: str = Field(description="the wrapper, as Gymnasium, MiniGrid or this module calls it")
    arguments: dict[str, Plain] = Field(description="its keyword arguments")


class Config(TasksConfig):
    """An environment, and what its tasks vary."""

    id: str = Field(pattern=r"^[\w/.-]+$", description="the environment's name in Gymnasium")
    horizon: int = Field(gt=0, description="time limit of an episode [steps]")
    constructor: dict[str, Plain] = Field(description="keyword arguments of the environment, the same for all tasks")
    parameters: dict[str, Parameter] = Field(min_length=1, description="what tasks may vary")
    choices: dict[str, list[Number]] = Field(description="the values of parameters that have only a few")
    ood_choices: dict[str, list[Number]] = Field(description="further values, of out-of-distribution tasks alone")
    derived: dict[str, Derived] = Field(description="attributes to compute again once the parameters are set")
    wrappers: list[WrapperConfig] = Field(description="around the environment, the innermost first")
    processes: Annotated[int, Operational()] = Field(gt=0, description="processes that share the environments; 1 is this one")

    @model_validator(mode="after")
    def _names_are_known(self) -> Config:
        for name in self.choices:
            if name not in self.parameters:
                raise ValueError(f"choices of {name}: no such task parameter{known_options(name, self.parameters)}")
            if name in self.ranges:
                raise ValueError(f"{name} has both a range and choices")
            if not self.choices[name]:
                raise ValueError(f"choices of {name} must not be empty")
        for name, values in self.ood_choices.items():
            if not values or name not in self.choices or set(values) & set(self.choices[name]):
                raise ValueError(f"ood_choices of {name} must be values beside its choices")
        for wrapper in self.wrappers:
            if wrapper.name not in WRAPPERS:
                raise ValueError(f"no such wrapper: {wrapper.name}{known_options(wrapper.name, WRAPPERS)}")
        for keyword in [*self.constructor, *self._targets("constructor")]:
            if keyword in RESERVED:
                raise ValueError(f"constructor.{keyword} is not the configuration's to set")
        used = [wrapper.name for wrapper in self.wrappers]
        for target in self._targets("wrapper"):
            name = target.split(".")[0]
            if used.count(name) != 1:
                raise ValueError(f"set: wrapper.{target}: {name} must be one of wrappers, once; it has {', '.join(used)}")
        paths = [*self._targets("attribute"), *self._targets("scale"), *self.derived]
        for path in [*paths, *(p for d in self.derived.values() for p in d.of)]:
            if any(not part or part.startswith("_") for part in path.split(".")):
                raise ValueError(f"attribute {path} is not public")
        return self

    def _targets(self, kind: str) -> list[str]:
        addresses = [p.set.split(".", 1) for p in self.parameters.values()]
        return [target for how, target in addresses if how == kind]


# -- one environment


def missing(config: Config) -> str | None:
    """The extra of this package that the environment needs and that is not installed; None where nothing lacks."""
    registered = gymnasium.registry.get(config.id)
    names = (config.id, str(registered.entry_point) if registered else "")
    for extra, (package, _, beginnings) in EXTRAS.items():
        if any(name.startswith(beginnings) for name in names) and find_spec(package) is None:
            return extra
    if any(w.name in ("AtariPreprocessing", "ResizeObservation") for w in config.wrappers) and find_spec("cv2") is None:
        return "atari"
    return None


def register(config: Config) -> None:
    """Make the environment known to Gymnasium.

    Raises:
        ValueError: if there is no such environment, or the package it needs is not installed.
    """
    if extra := missing(config):
        needed = EXTRAS[extra][1]
        raise ValueError(f'{config.id} needs {needed}: pip install "metarl-cli[{extra}]"')
    if config.id not in gymnasium.registry:
        for package in ("minigrid", "ale_py"):
            if find_spec(package) is not None:
                importlib.import_module(package)
    if config.id not in gymnasium.registry:
        raise ValueError(f"no such Gymnasium environment: {config.id}{did_you_mean(config.id, gymnasium.registry)}")
    if config.id.startswith("ALE/"):  # it greets on the terminal, once per environment
        ale = importlib.import_module("ale_py")
        ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)
    if find_spec("mujoco") is not None:  # it would write its warnings to a file in the current folder
        importlib.import_module("mujoco").set_mju_user_warning(_warn)


def _warn(text: str) -> None:
    if "deprecated" not in text:  # in the simulator's own models
        warnings.warn(f"MuJoCo: {one_line(text)}", RuntimeWarning, stacklevel=2)


def build(config: Config, row: Row, drawing: bool = False) -> gymnasium.Env[Any, Any]:
    """One environment of one task, wrapped.

    Raises:
        ValueError: if the simulator, a wrapper or an attribute refuses a value.
    """
    if config.id.startswith("GymV"):
        raise ValueError(f"{config.id} imports what its arguments name; it is refused")
    register(config)
    constructor: dict[str, Any] = dict(config.constructor)
    wrappers = [(w.name, dict(w.arguments)) for w in config.wrappers]
    for name, parameter in config.parameters.items():
        how, target = parameter.set.split(".", 1)
        if how == "constructor":
            constructor[target] = row[name]
        elif how == "wrapper":
            wrapped, argument = target.split(".")
            next(arguments for other, arguments in wrappers if other == wrapped)[argument] = row[name]
    if drawing:
        constructor["render_mode"] = "rgb_array"
    try:
        # the time limit comes last, as it counts the steps of the outermost wrapper
        env = gymnasium.make(config.id, max_episode_steps=-1, disable_env_checker=True, **constructor)
    except Exception as error:  # whatever a simulator raises, the configuration asked for it
        raise ValueError(f"{config.id} cannot be built from {constructor}: {one_line(error)}") from error
    _set_attributes(env.unwrapped, config, row)
    for name, arguments in wrappers:
        library = WRAPPERS[name]
        try:
            env = (getattr(importlib.import_module(library), name) if library else OWN[name])(env, **arguments)
        except Exception as error:
            raise ValueError(f"wrapper {name} cannot be built from {arguments}: {one_line(error)}") from error
    return gymnasium.wrappers.TimeLimit(env, config.horizon)


def _set_attributes(env: Any, config: Config, row: Row) -> None:
    for name, parameter in config.parameters.items():
        how, path = parameter.set.split(".", 1)
        if how == "attribute":
            write(env, path, row[name])
        elif how == "scale":
            write(env, path, read(env, path) * row[name])
    for path, derived in config.derived.items():
        values = [read(env, other) for other in derived.of]
        read(env, path)
        write(env, path, sum(values) if derived.operation == "sum" else math.prod(values))
    mujoco = sys.modules.get("mujoco")
    if mujoco and isinstance(getattr(env, "model", None), mujoco.MjModel):
        mujoco.mj_setConst(env.model, env.data)  # what MuJoCo computes from masses and such


def read(env: Any, path: str) -> Any:
    """A copy of the number, or the array of numbers, at ``path`` of an environment; a whole number is an index.

    Raises:
        ValueError: if it does not exist, is not public or is no number.
    """
    value = _follow(env, path.split("."), path)
    is_array = isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.number)
    if not is_array and (isinstance(value, bool) or not isinstance(value, (int, float, np.number))):
        raise ValueError(f"attribute {path} is no number: {type(value).__name__}")
    return value.copy() if is_array else value


def write(env: Any, path: str, value: Any) -> None:
    """Set what :func:`read` reads, to a value of the same shape."""
    if np.shape(read(env, path)) != np.shape(value):
        raise ValueError(f"attribute {path} is an array: name one entry, as in {path}.0")
    *parts, last = path.split(".")
    holder = _follow(env, parts, path)
    if last.isdigit():
        holder[int(last)] = value
    elif np.shape(value):
        getattr(holder, last)[:] = value
    else:
        setattr(holder, last, value)


def _follow(env: Any, parts: list[str], path: str) -> Any:
    for part in parts:
        if part.startswith("_"):
            raise ValueError(f"attribute {path} is not public")
        try:
            env = env[int(part)] if part.isdigit() else getattr(env, part)
        except (AttributeError, IndexError, TypeError) as error:
            hint = did_you_mean(part, [name for name in dir(env) if not name.startswith("_")])
            raise ValueError(f"the environment has no attribute {path}{hint}") from error
    return env


# -- many environments


class Crew:
    """K environments of one process, each with a seed; episode e of an environment depends on its seed and e alone."""

    def __init__(self, config: Config, rows: list[Row], drawing: bool):
        self.envs = [build(config, row, drawing and i == 0) for i, row in enumerate(rows)]
        self.first_action = int(getattr(self.envs[0].action_space, "start", 0))
        self.seeds, self.episodes = [0] * len(rows), [0] * len(rows)

    def _reset(self, i: int) -> Any:
        seed = np.random.SeedSequence([self.seeds[i], self.episodes[i]]).generate_state(1)[0]
        return self.envs[i].reset(seed=int(seed) // 2)[0]  # some simulators hold a seed in 31 bits

    def _act(self, i: int, action: Any) -> Any:
        return self.envs[i].step(action if action.ndim else int(action) + self.first_action)

    def begin(self, seeds: list[int], episodes: list[int], clocks: list[int], actions: np.ndarray) -> np.ndarray:
        """Play ``actions [T, K, ...]`` up to step ``clocks`` of the ``episodes``; returns what is seen there, ``[K, ...]``."""
        self.seeds, self.episodes = list(seeds), list(episodes)
        seen = []
        for i, clock in enumerate(clocks):
            obs = self._reset(i)
            for t in range(clock):
                obs = self._act(i, actions[t, i])[0]
            seen.append(np.asarray(obs))
        return np.stack(seen)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, ...]:
        """Act, ``[K, ...]``; episodes that end start anew. Returns the fields of a :class:`Step`, each ``[K, ...]``."""
        steps = []
        for i, action in enumerate(actions):
            next_obs, reward, terminated, truncated, _ = self._act(i, action)
            next_obs = obs = np.asarray(next_obs)
            if terminated or truncated:
                self.episodes[i] += 1
                next_obs, obs = next_obs.copy(), np.asarray(self._reset(i))
            steps.append((next_obs, float(reward), bool(terminated), bool(truncated), obs))
        return tuple(np.stack(field) for field in zip(*steps, strict=True))

    def draw(self) -> np.ndarray:
        return np.asarray(self.envs[0].render())

    def close(self) -> None:
        for env in self.envs:
            env.close()


class Here:
    """A crew in this process; asked and answered as one elsewhere is."""

    def __init__(self, *arguments: Any):
        self.crew = Crew(*arguments)

    def ask(self, method: str, *arguments: Any) -> None:
        self.result = getattr(self.crew, method)(*arguments)

    def answer(self) -> Any:
        return self.result

    def close(self) -> None:
        self.crew.close()


class Elsewhere:
    """A crew in a process of its own, which ends with this one."""

    def __init__(self, *arguments: Any):
        self.owner = os.getpid()
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=_work, args=(theirs, self.pipe, arguments), daemon=True)
        self.process.start()
        theirs.close()
        # before multiprocessing, at the end of the program, asks by a signal that the process ignores
        self.dismiss = multiprocessing.util.Finalize(self, _dismiss, (self.pipe, self.owner), exitpriority=10)

    def ask(self, method: str, *arguments: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # the answer tells why
            self.pipe.send((method, arguments))

    def answer(self) -> Any:
        try:
            result = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise RuntimeError("the simulator ended its process") from None
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        self.dismiss()
        if os.getpid() == self.owner:
            self.process.join()


def _dismiss(pipe: Connection, owner: int) -> None:
    if os.getpid() != owner:
        return  # a forked process drops its copy of this, too
    with contextlib.suppress(OSError):
        pipe.send(None)
    pipe.close()


def _work(pipe: Connection, other_end: Connection, arguments: tuple[Any, ...]) -> None:
    other_end.close()  # a copy of it here would keep this process waiting after the other has gone
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):  # they are for the process that asks, which may save first
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux" and "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")  # it draws without a screen
    try:
        crew = Crew(*arguments)
    except Exception as error:
        pipe.send(error)
        return
    while True:
        try:
            question = pipe.recv()
        except EOFError:
            break
        if question is None:
            break
        method, values = question
        try:
            pipe.send(getattr(crew, method)(*values))
        except Exception as error:
            pipe.send(error)
    crew.close()


def _close(crews: list[Here | Elsewhere]) -> None:
    for crew in crews:
        crew.close()
    crews.clear()


class Idle:
    """Crews that nobody uses now, by what they simulate: building simulators costs more than the short episodes of a support.

    Nothing of what they did before remains in what they do next: every episode starts from its own seed.
    """

    def __init__(self) -> None:
        self.crews: dict[Any, list[Here | Elsewhere]] = {}
        self.copies: dict[Any, int] = {}
        weakref.finalize(self, Idle._close_all, self.crews)

    @staticmethod
    def _close_all(crews: dict[Any, list[Here | Elsewhere]]) -> None:
        for idle in crews.values():
            _close(idle)

    def take(self, key: Any) -> list[Here | Elsewhere]:
        """The crews of this key, or none."""
        self.copies.pop(key, None)
        return self.crews.pop(key, [])

    def give(self, key: Any, copies: int, crews: list[Here | Elsewhere]) -> None:
        """Keep crews for later; those idle for longest end where there are too many."""
        if not crews:
            return
        _close(self.take(key))
        self.crews[key], self.copies[key] = crews, copies
        while sum(self.copies.values()) > MOST_IDLE:
            _close(self.take(next(iter(self.crews))))


class GymnasiumEnv(Env):
    can_select_rows = False
    """M x N environments in one or more processes; when this is dropped they wait for the next one of the same tasks."""

    def __init__(self, family: GymnasiumFamily, task: Task, num_envs: int, rng: torch.Generator, drawing: bool):
        config, rows = family.config, family.rows(task)
        self.family, self.shape = family, (len(rows), num_envs)
        total = len(rows) * num_envs
        copies = [row for row in rows for _ in range(num_envs)]
        self.parts = np.array_split(np.arange(total), min(config.processes, total))
        if drawing:  # who draws may fail so badly that its process ends, as MuJoCo without OpenGL does
            self.crews: list[Here | Elsewhere] = []
            weakref.finalize(self, _close, self.crews)
        else:
            key = (num_envs, *(tuple(row.items()) for row in rows))
            self.crews = family.idle.take(key)
            weakref.finalize(self, family.idle.give, key, total, self.crews)
        place = Elsewhere if drawing or len(self.parts) > 1 else Here
        for part in [] if self.crews else self.parts:
            self.crews.append(place(config, [copies[i] for i in part], drawing and not self.crews))
        self.seeds = torch.randint(2**62, self.shape, generator=rng, device=rng.device).cpu()
        self.episodes = torch.zeros(self.shape, dtype=torch.long)
        self.clock = torch.zeros(self.shape, dtype=torch.long)  # [steps] since the episode began
        action = family.action
        self.history = np.zeros((config.horizon, total, *action.shape), action.dtype)  # the actions of each episode so far
        self._begin()

    def _ask(self, method: str, *values: list[Any]) -> list[Any]:
        """What each crew answers, asked all at once; ``values`` are one per crew."""
        try:
            for crew, *arguments in zip(self.crews, *values, strict=True):
                crew.ask(method, *arguments)
            return [crew.answer() for crew in self.crews]
        except BaseException:
            _close(self.crews)  # some may have answers that nobody will fetch
            raise

    def _begin(self) -> None:
        numbers = [x.flatten().numpy() for x in (self.seeds, self.episodes, self.clock)]
        split = [[x[part].tolist() for part in self.parts] for x in numbers]
        actions = [self.history[: numbers[2].max(), part] for part in self.parts]
        self.obs = self._tensor(np.concatenate(self._ask("begin", *split, actions)))

    def _tensor(self, x: np.ndarray) -> Tensor:
        """``[M, N, ...]`` of an array of all environments: images as bytes, truth as it is, numbers in the default type."""
        pixels = x.dtype == np.uint8 and len(self.family.spec.obs_shape) == 3
        kind = None if pixels or x.dtype == bool else torch.get_default_dtype()
        return torch.as_tensor(x, dtype=kind, device=self.family.device).reshape(*self.shape, *x.shape[1:])

    def step(self, action: Tensor) -> Step:
        """Act in every environment; ``action [M, N]``, or ``[M, N, D]``. Episodes that end start anew within the same step."""
        actions = action.detach().flatten(0, 1).cpu().numpy().astype(self.history.dtype)
        clock = self.clock.flatten().numpy()
        self.history[clock, np.arange(len(clock))] = actions
        answers = self._ask("step", [actions[part] for part in self.parts])
        step = Step(*(self._tensor(np.concatenate(field)) for field in zip(*answers, strict=True)))
        ended = (step.terminated | step.truncated).cpu()
        self.clock = torch.where(ended, 0, self.clock + 1)
        self.episodes = self.episodes + ended
        self.obs = step.obs
        return step

    def render(self) -> Image.Image:
        """Draw the first environment of the first task, which ``make`` was asked for.

        Raises:
            ValueError: if the simulator cannot draw.
        """
        try:
            self.crews[0].ask("draw")
            return Image.fromarray(self.crews[0].answer())
        except Exception as error:
            raise ValueError(f"{self.family.config.id} cannot be drawn: {one_line(error)}") from error

    def state_dict(self) -> State:
        """Every episode as its seed, number and actions ``[T, M, N, ...]``; ``obs`` tells whether they lead there again."""
        played = np.arange(int(self.clock.max()))[:, None] < self.clock.flatten().numpy()  # [T, M * N]
        history = self.history[: len(played)]
        played = played.reshape(*played.shape, *[1] * (history.ndim - 2))
        actions = torch.as_tensor(np.where(played, history, np.zeros_like(history)))
        actions = actions.reshape(-1, *self.shape, *actions.shape[2:])
        numbers = {"seeds": self.seeds, "episodes": self.episodes, "clock": self.clock}
        return {**numbers, "actions": actions, "obs": self.obs}

    def load_state_dict(self, state: State) -> None:
        """Play the saved episodes again; a simulator that ends up elsewhere is told of, and begins fresh episodes.

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
            warnings.warn(f"{self.family.config.id} does not repeat itself: its episodes begin anew", stacklevel=2)
            self.episodes, self.clock = self.episodes + 1, torch.zeros_like(self.clock)
            self._begin()


# -- tasks


class GymnasiumFamily(Tasks):
    """A distribution of tasks over a Gymnasium environment; see the module's docstring.

    Raises:
        ValueError: if the environment is unknown, not installed, refuses a value, or has spaces that no learner here takes.
    """

    spec: Spec

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        self.parameters = {name: float(p.nominal) for name, p in config.parameters.items()}
        self.positive = frozenset(name for name, p in config.parameters.items() if p.set.startswith("scale."))
        super().__init__(config, device)
        self.config, self.choices, self.ood_choices = config, config.choices, config.ood_choices
        self.idle = Idle()
        everything = {name: [*self.choices[name], *more] for name, more in self.ood_choices.items()}
        # so the ood split exists, and its tasks are the ones drawn with a "range" of these parameters
        self.ood_ranges: dict[str, Range] = {
            **config.ood_ranges,
            **{name: [float(min(values)), float(max(values))] for name, values in everything.items()},
        }
        env = build(config, self._row(self.parameters))
        self.spec, self.action = _spec(env, config.horizon), _action(env)
        self._try(env)
        env.close()
        for row in self._extremes():
            build(config, row).close()

    def _try(self, env: gymnasium.Env[Any, Any]) -> None:
        """One step, so that a wrapper that misses something says so now.

        Raises:
            ValueError: if there is no such step.
        """
        env.action_space.seed(0)
        env.reset(seed=0)
        try:
            env.step(env.action_space.sample())
        except KeyError as error:
            names = ", ".join(wrapper.name for wrapper in self.config.wrappers)
            raise ValueError(f"{self.config.id} does not tell {error}, which a wrapper needs (of {names})") from error

    def _extremes(self) -> Iterator[Row]:
        """Tasks at the ends of the ranges, and of each choice: what the simulator refuses, it refuses before training."""
        ends = {name: [low, high] for name, (low, high) in {**self.config.ranges, **self.config.ood_ranges}.items()}
        some = {**ends, **{name: [*self.choices[name], *self.ood_choices.get(name, [])] for name in self.choices}}
        for number in range(max(map(len, some.values()), default=0)):
            yield self._row({**self.parameters, **{name: float(v[min(number, len(v) - 1)]) for name, v in some.items()}})

    def draw(self, num: int, ranges: dict[str, Range], rng: np.random.Generator) -> Columns:
        """``num`` tasks; where they are few, all of them come up before one comes again."""
        few = list(itertools.product(*self.choices.values()))
        if not self.finite or ranges is not self.ranges or not self.choices:
            return super().draw(num, ranges, rng)
        order = np.concatenate([rng.permutation(len(few)) for _ in range(-(-num // len(few)))])[:num]
        drawn = dict(zip(self.choices, np.asarray(few, float)[order].T, strict=True))
        return {name: drawn.get(name, np.full(num, value)) for name, value in self.parameters.items()}

    def place(self, unit: Columns, ranges: dict[str, Range]) -> Columns:
        rows = super().place(unit, ranges)
        for name, choices in self.choices.items():
            values = np.asarray([*choices, *(self.ood_choices.get(name, []) if name in ranges else [])], float)
            rows[name] = values[(unit[name] * len(values)).astype(int)]
        return rows

    def outside(self, rows: Columns) -> np.ndarray:
        among = [np.isclose(rows[name][:, None], values).any(-1) for name, values in self.choices.items()]
        beyond = [(rows[name] < low) | (rows[name] > high) for name, (low, high) in self.ranges.items()]
        return np.asarray(np.any([*beyond, *(~inside for inside in among)], axis=0))

    def named_task(self, values: dict[str, float]) -> Task:
        task = super().named_task(values)
        for name in values.keys() & self.choices.keys():
            known = [*self.choices[name], *self.ood_choices.get(name, [])]
            if not any(math.isclose(values[name], value, rel_tol=1e-6) for value in known):
                raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, got {values[name]:g}")
        build(self.config, self.rows(task)[0]).close()  # the simulator may refuse a value
        return task

    def rows(self, task: Task) -> list[Row]:
        """One task a row."""
        columns = [value.tolist() for value in task.values()]
        return [self._row(dict(zip(task, row, strict=True))) for row in zip(*columns, strict=True)]

    def _row(self, values: dict[str, float]) -> Row:
        """Whole numbers where a parameter's choices are."""
        whole = {name for name, choices in self.config.choices.items() if all(isinstance(c, int) for c in choices)}
        return {name: round(value) if name in whole else value for name, value in values.items()}

    def optimum(self, task: Task) -> Tensor | None:
        """Unknown."""
        return None

    def make(self, task: Task, num_envs: int, rng: torch.Generator, render: bool = False) -> GymnasiumEnv:
        """Start ``num_envs`` environments of each task; ``drawing`` for one whose first environment can be drawn.

        Raises:
            ValueError: if the simulator refuses a value of a task.
        """
        return GymnasiumEnv(self, task, num_envs, rng, render)


def _action(env: gymnasium.Env[Any, Any]) -> np.ndarray:
    """An action's shape and type."""
    return np.zeros(env.action_space.shape or (), env.action_space.dtype)


def _spec(env: gymnasium.Env[Any, Any], horizon: int) -> Spec:
    seen, actions = env.observation_space, env.action_space
    if not isinstance(seen, spaces.Box):
        raise ValueError(f"observations are {seen}: choose a wrapper that makes numbers of them, e.g. FlattenObservation")
    if len(seen.shape) == 3 and seen.shape[-1] < min(seen.shape[:2]):
        raise ValueError(f"images of {list(seen.shape)} have their channels last: add the wrapper ChannelsFirst")
    if isinstance(actions, spaces.Discrete):
        return Spec(seen.shape, int(actions.n), horizon)
    if not isinstance(actions, spaces.Box) or len(actions.shape) != 1 or not actions.is_bounded():
        raise ValueError(f"actions are {actions}: only discrete ones and bounded vectors can be learned here")
    return Spec(seen.shape, 0, horizon, Box(tuple(actions.low.tolist()), tuple(actions.high.tolist())))


Family = GymnasiumFamily
