"""Build one Gymnasium environment of one task: constructor, attributes, derived attributes, wrappers, time limit."""

from __future__ import annotations

import importlib
import math
import sys
import warnings
from importlib.util import find_spec
from typing import Any

import gymnasium
import numpy as np

from metarl_cli.config.messages import did_you_mean, one_line
from metarl_cli.envs.gymnasium.config import Config, Row
from metarl_cli.envs.gymnasium.wrappers import OWN, WRAPPERS
from metarl_cli.envs.simulator import Simulator
from metarl_cli.envs.tasks import in_words

# what pip installs -> the module it brings, its name, and how the ids or entry points of its environments begin
SIMULATORS = {
    "gymnasium[mujoco]": ("mujoco", "MuJoCo", ("gymnasium.envs.mujoco",)),
    "gymnasium[box2d]": ("Box2D", "Box2D", ("gymnasium.envs.box2d",)),
    "minigrid": ("minigrid", "MiniGrid", ("MiniGrid-", "BabyAI-", "minigrid")),
    "ale-py": ("ale_py", "the Arcade Learning Environment", ("ALE/", "ale_py")),
    "opencv-python-headless": ("cv2", "OpenCV", ()),
}


def missing(config: Config) -> str | None:
    """Return what pip has to install before the environment can be built; None where nothing is missing."""
    registered = gymnasium.registry.get(config.id)
    names = (config.id, str(registered.entry_point) if registered else "")
    for package, (module, _, beginnings) in SIMULATORS.items():
        if any(name.startswith(beginnings) for name in names) and find_spec(module) is None:
            return package
    if any(w.name in ("AtariPreprocessing", "ResizeObservation") for w in config.wrappers) and find_spec("cv2") is None:
        return "opencv-python-headless"
    return None


def register(config: Config) -> None:
    """Register the environment with Gymnasium.

    Raises:
        ValueError: if there is no such environment, or the package it needs is not installed.
    """
    if package := missing(config):
        raise ValueError(f"{config.id} needs {SIMULATORS[package][1]}: pip install '{package}'")
    if config.id not in gymnasium.registry:
        for package in ("minigrid", "ale_py"):
            if find_spec(package) is not None:
                importlib.import_module(package)
    if config.id not in gymnasium.registry:
        raise ValueError(f"no such Gymnasium environment: {config.id}{did_you_mean(config.id, gymnasium.registry)}")
    if config.id.startswith("ALE/"):  # it prints a banner for every environment
        ale = importlib.import_module("ale_py")
        ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)
    if find_spec("mujoco") is not None:  # by default it writes warnings to a file in the current folder
        importlib.import_module("mujoco").set_mju_user_warning(_warn)


def _warn(text: str) -> None:
    """Turn a warning of MuJoCo into one of Python."""
    if "deprecated" not in text:  # in the simulator's own models
        warnings.warn(f"MuJoCo: {one_line(text)}", RuntimeWarning, stacklevel=2)


def build(config: Config, row: Row, render: bool = False) -> gymnasium.Env[Any, Any]:
    """Build one environment of one task, with its wrappers.

    Args:
        config: the environment.
        row: the parameters of the task.
        render: whether it will be drawn.

    Raises:
        ValueError: if the simulator, a wrapper or an attribute rejects a value.
    """
    if config.id.startswith("GymV"):
        raise ValueError(f"{config.id} is refused: it imports the code that its arguments name")
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
    if render:
        constructor["render_mode"] = "rgb_array"
    try:
        # the time limit comes last, as it counts the steps of the outermost wrapper
        env = gymnasium.make(config.id, max_episode_steps=-1, disable_env_checker=True, **constructor)
    except (Exception, SystemExit) as error:  # a simulator may raise anything for a wrong configuration, or exit
        raise ValueError(f"{config.id} cannot be built from {constructor}: {one_line(error)}") from error
    _set_attributes(env.unwrapped, config, row)
    for name, arguments in wrappers:
        library = WRAPPERS[name]
        try:
            env = (getattr(importlib.import_module(library), name) if library else OWN[name])(env, **arguments)
        except (Exception, SystemExit) as error:
            raise ValueError(f"wrapper {name} cannot be built from {arguments}: {one_line(error)}") from error
    return gymnasium.wrappers.TimeLimit(env, config.horizon)


def simulator(config: Config, row: Row, render: bool = False) -> Simulator:
    """Build one environment of one task, as :func:`build` does, whose answers are checked."""
    return Simulator(build(config, row, render), f"env.id={config.id}", in_words(row))


def held(config: Config, env: gymnasium.Env[Any, Any]) -> dict[str, Any]:
    """Return the values of all attributes that the configuration sets."""
    targets = [parameter.set.split(".", 1) for parameter in config.parameters.values()]
    paths = [path for how, path in targets if how in ("attribute", "scale")]
    return {path: read(env.unwrapped, path) for path in [*paths, *config.derived]}


def _set_attributes(env: Any, config: Config, row: Row) -> None:
    """Write the parameters into the attributes they address, then the derived attributes."""
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
        mujoco.mj_setConst(env.model, env.data)  # recomputes what MuJoCo derives from masses and lengths


def read(env: Any, path: str) -> Any:
    """Return a copy of the number, or the array of numbers, at ``path`` of an environment; digits in the path are indices.

    Raises:
        ValueError: if the path does not exist, is not public or is not a number.
    """
    value = _follow(env, path.split("."), path)
    is_array = isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.number)
    if not is_array and (isinstance(value, bool) or not isinstance(value, (int, float, np.number))):
        raise ValueError(f"attribute {path} is not a number: {type(value).__name__}")
    return value.copy() if is_array else value


def write(env: Any, path: str, value: Any) -> None:
    """Set the number, or the array of numbers, at ``path`` to a value of the same shape.

    Raises:
        ValueError: if it cannot be written, or is not there afterwards.
    """
    if np.shape(read(env, path)) != np.shape(value):
        raise ValueError(f"attribute {path} is an array: name one entry, as in {path}.0")
    *parts, last = path.split(".")
    holder = _follow(env, parts, path)
    try:
        if last.isdigit():
            holder[int(last)] = value
        elif np.shape(value):
            getattr(holder, last)[:] = value
        else:
            setattr(holder, last, value)
    except Exception as error:  # a property may refuse in its own way
        raise ValueError(f"attribute {path} cannot be set: {one_line(error)}") from error
    if not np.allclose(kept := read(env, path), value, rtol=1e-6, atol=1e-12):
        raise ValueError(f"attribute {path} has no effect: {value} was set, and it is {kept} all the same")


def _follow(env: Any, parts: list[str], path: str) -> Any:
    """Return the object at the end of ``parts``."""
    for part in parts:
        if part.startswith("_"):
            raise ValueError(f"attribute {path} is not public")
        try:
            env = env[int(part)] if part.isdigit() else getattr(env, part)
        except (AttributeError, IndexError, TypeError) as error:
            hint = did_you_mean(part, [name for name in dir(env) if not name.startswith("_")])
            raise ValueError(f"the environment has no attribute {path}{hint}") from error
    return env
