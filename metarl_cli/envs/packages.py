"""Packages that register environments with Gymnasium when they are imported.

A configuration or a run folder may come from somebody else. What it names is imported if the package is on the list below, or
if the user has named it: ``packages=[...]`` on the command line, or ``METARL_PACKAGES``, with commas between names. On the list
are packages that were looked through: their environments run no code that an argument names, but where ``IMPORTING`` says so.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from metarl_cli.config.messages import one_line

VARIABLE = "METARL_PACKAGES"
KNOWN = {  # module -> what pip installs
    "JSSEnv": "JSSEnv",
    "ale_py": "ale-py",
    "flappy_bird_gymnasium": "flappy-bird-gymnasium",
    "gym_anytrading": "gym-anytrading",
    "gymnasium_robotics": "gymnasium-robotics",
    "highway_env": "highway-env",
    "metaworld": "metaworld",
    "minigrid": "minigrid",
    "mo_gymnasium": "mo-gymnasium",
    "panda_gym": "panda-gym",
    "pybullet_envs_gymnasium": "pybullet-envs-gymnasium",
}
EXTRAS = {  # module -> the extra of this package that brings it, in versions that fit together
    "JSSEnv": "scheduling",
    "ale_py": "atari",
    "gym_anytrading": "trading",
    "gymnasium_robotics": "robotics",
    "highway_env": "highway",
    "metaworld": "metaworld",
    "minigrid": "minigrid",
    "panda_gym": "panda",
    "pybullet_envs_gymnasium": "pybullet",
}
# where an environment comes from -> whose classes its arguments may name: it imports a text with a dot
IMPORTING = {"highway_env": "highway_env", "mo_gymnasium": "highway_env"}
_named: set[str] = set()  # by the user of this process


def allow(values: Mapping[str, Any]) -> None:
    """Let configurations name the packages that the values of a command line name, from now on.

    Args:
        values: of the command; ``packages`` among them, if it is a list of texts.
    """
    names = values.get("packages")
    _named.update(name for name in (names if isinstance(names, list) else ()) if isinstance(name, str))


def not_installed(module: str) -> str | None:
    """Return what pip has to install for a package; None where it is installed."""
    top = module.split(".")[0]
    return None if find_spec(top) is not None else KNOWN.get(module, top)


def check(module: str) -> None:
    """Raises ValueError where a configuration may not name this package; one that is imported already it may."""
    if module in sys.modules:
        return
    named = _named | set(filter(None, os.environ.get(VARIABLE, "").replace(" ", "").split(",")))
    if module not in KNOWN and module not in named:
        raise ValueError(
            f"{module} is not imported because a configuration names it; where you trust it, name it yourself: "
            f"{VARIABLE}={module}, or packages=[{module}] of metarl train, test and adapt"
        )


def load(module: str) -> None:
    """Import a package, which registers its environments.

    Raises:
        ValueError: if a configuration may not name it, or it is not installed, or fails.
    """
    check(module)
    if package := not_installed(module):
        extra = f", or metarl's extra {EXTRAS[module]}, whose versions fit together" if module in EXTRAS else ""
        raise ValueError(f"it needs the package {module}: pip install '{package}'{extra}")
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever it does at its import
        raise ValueError(f"the package {module} cannot be imported: {type(error).__name__}: {one_line(error)}") from error


def file_of(module: str, path: str) -> str:
    """Return where a file of an installed package lies.

    Raises:
        ValueError: if the package has no such file.
    """
    spec = find_spec(module)
    for folder in (spec and spec.submodule_search_locations) or []:
        if (file := Path(folder, path)).is_file():
            return str(file)
    raise ValueError(f"the package {module} has no file {path}")


def check_arguments(package: str, arguments: object) -> None:
    """Check that an environment will not import what its arguments name.

    Args:
        package: the one that the environment comes from.
        arguments: all that it will be given, within dicts and lists.

    Raises:
        ValueError: if a text could be the name of a class of any other package.
    """
    if whose := IMPORTING.get(package):
        for text in _texts(arguments):
            if "." in text and not text.startswith(f"{whose}."):
                raise ValueError(f"{package} would import {text}, which is not of {whose}")


def _texts(value: object) -> Iterator[str]:
    """Yield the texts within dicts and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _texts(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _texts(entry)
