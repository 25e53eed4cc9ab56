"""Build one Gymnasium environment of one task: constructor, attributes, derived attributes, wrappers, time limit."""

from __future__ import annotations

import copy
import importlib
import math
import sys
from importlib.util import find_spec
from typing import Any

import gymnasium

from metarl_cli.config.messages import did_you_mean, one_line
from metarl_cli.envs import packages
from metarl_cli.envs.gymnasium import benchmarks
from metarl_cli.envs.gymnasium.addresses import LASTING, place, read, write
from metarl_cli.envs.gymnasium.config import Config, Row
from metarl_cli.envs.gymnasium.conventions import OldInterface, in_numbers, takes_seed
from metarl_cli.envs.gymnasium.wrappers import OWN, WRAPPERS, Episodes
from metarl_cli.envs.mujoco.models import simulator as mujoco
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
    if config.package and (needed := packages.not_installed(config.package)):
        return needed
    if any(w.name in ("AtariPreprocessing", "ResizeObservation") for w in config.wrappers) and find_spec("cv2") is None:
        return "opencv-python-headless"
    return None


def register(config: Config) -> None:
    """Register the environment with Gymnasium.

    Raises:
        ValueError: if there is no such environment, or the package it needs is not installed.
    """
    if (package := missing(config)) in SIMULATORS:
        raise ValueError(f"{config.id} needs {SIMULATORS[package][1]}: pip install '{package}'")
    if config.package:
        packages.load(config.package)
    benchmarks.register(config.id)
    for module in ("minigrid", "ale_py"):
        if config.id not in gymnasium.registry and find_spec(module) is not None:
            packages.load(module)
    if config.id not in gymnasium.registry:
        hint = did_you_mean(config.id, gymnasium.registry) or (
            "" if config.package else "; where another package has it, name that: env.package=NAME"
        )
        raise ValueError(f"no such Gymnasium environment: {config.id}{hint}")
    entry = gymnasium.registry[config.id].entry_point
    home = entry if isinstance(entry, str) else getattr(entry, "__module__", "")
    packages.check_arguments(home.split(":")[0].split(".")[0], _given(config))
    if config.id.startswith("ALE/"):  # it prints a banner for every environment
        ale = importlib.import_module("ale_py")
        ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)
    if "mujoco" in home or "mujoco" in sys.modules:
        try:
            mujoco()
        except Exception as error:  # where its parts are of different versions
            raise ValueError(f"{config.id}: MuJoCo cannot be imported: {one_line(error)}") from error


def _given(config: Config) -> list[object]:
    """Return all values that an environment may be given."""
    nominal = [parameter.nominal for parameter in config.parameters.values()]
    return [config.constructor, nominal, *(config.every_choice(name) for name in config.parameters)]


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
    constructor: dict[str, Any] = copy.deepcopy(config.constructor)
    wrappers: list[tuple[str, dict[str, Any]]] = [(w.name, copy.deepcopy(w.arguments)) for w in config.wrappers]
    options: dict[str, Any] = {}
    for (how, path), value in config.placed(row):
        if how in ("constructor", "options"):
            place(constructor if how == "constructor" else options, path, value)
        elif how == "wrapper":
            wrapped, argument = path.split(".", 1)
            place(next(arguments for other, arguments in wrappers if other == wrapped), argument, value, f"wrapper.{wrapped}")
    if render:
        constructor["render_mode"] = "rgb_array"
    try:
        # the time limit comes last, as it counts the steps of the outermost wrapper
        env = gymnasium.make(config.id, max_episode_steps=-1, disable_env_checker=True, **constructor)
    except (Exception, SystemExit) as error:  # a simulator may raise anything for a wrong configuration, or exit
        reason = one_line(error) or type(error).__name__
        raise ValueError(f"{config.id} cannot be built from {constructor}: {reason}") from error
    if not takes_seed(env.unwrapped):
        env = OldInterface(env.unwrapped)
    _set_attributes(env.unwrapped, config, row)
    env = _episodes(env, config, row, options)
    for name, values in wrappers:
        library = WRAPPERS[name]
        # yaml has no tuples, which some of them demand
        arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        try:
            env = (getattr(importlib.import_module(library), name) if library else OWN[name])(env, **arguments)
        except (Exception, SystemExit) as error:
            raise ValueError(f"wrapper {name} cannot be built from {arguments}: {one_line(error)}") from error
    return gymnasium.wrappers.TimeLimit(in_numbers(env, config.action_mask), config.horizon)


def _episodes(env: gymnasium.Env[Any, Any], config: Config, row: Row, options: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    """Begin every episode as the task says, where it says anything of that."""
    placed = list(config.placed(row))
    seeds = [round(float(value)) for (how, _), value in placed if how == "seed"]
    written = {path: value for (how, path), value in placed if how == "reset"}
    return Episodes(env, seeds[0] if seeds else None, options, written) if seeds or written or options else env


def simulator(config: Config, row: Row, render: bool = False) -> Simulator:
    """Build one environment of one task, as :func:`build` does, whose answers are checked."""
    return Simulator(build(config, row, render), f"env.id={config.id}", in_words(row))


def held(config: Config, env: gymnasium.Env[Any, Any]) -> dict[str, Any]:
    """Return the values of all attributes that the configuration sets."""
    paths = [a.path for parameter in config.parameters.values() for a in parameter.addresses if a.how in LASTING]
    return {path: read(env.unwrapped, path) for path in [*paths, *config.derived]}


def _set_attributes(env: Any, config: Config, row: Row) -> None:
    """Write the parameters into the attributes they address, then the derived attributes."""
    for (how, path), value in config.placed(row):
        if how == "attribute":
            write(env, path, value)
        elif how == "scale":
            write(env, path, read(env, path) * value)
    for path, derived in config.derived.items():
        values = [read(env, other) for other in derived.of]
        read(env, path)
        write(env, path, sum(values) if derived.operation == "sum" else math.prod(values))
    library = sys.modules.get("mujoco")
    if library and isinstance(getattr(env, "model", None), library.MjModel):
        library.mj_setConst(env.model, env.data)  # recomputes what MuJoCo derives from masses and lengths
