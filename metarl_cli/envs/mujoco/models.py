"""Models of MuJoCo: the nominal one of a body, and copies of it with other physics."""

from __future__ import annotations

import copy
import importlib
import os
import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from metarl_cli.config.messages import one_line

MOST = 512  # models of about 0.6 MB that a family keeps for later
PHYSICS = {  # factor -> the arrays that it multiplies, by the entries that it names
    "gravity": ("opt.gravity",),
    "mass": ("body_mass", "body_inertia"),
    "friction": ("geom_friction",),
    "damping": ("dof_damping",),
    "strength": ("actuator_gear",),
}


def simulator() -> Any:
    """Import MuJoCo.

    Raises:
        ValueError: if it is not installed.
    """
    if find_spec("mujoco") is None:
        raise ValueError("module mujoco needs MuJoCo: pip install 'gymnasium[mujoco]'")
    mujoco = importlib.import_module("mujoco")
    mujoco.set_mju_user_warning(_warn)  # by default it writes warnings to a file in the current folder
    return mujoco


def stepper(threads: int) -> Any:
    """Return what steps many copies at once, in so many threads; one for each process, as threads do not outlast a fork."""
    key = os.getpid(), threads
    if key not in _steppers:
        _steppers[key] = importlib.import_module("mujoco.rollout").Rollout(nthread=threads if threads > 1 else 0)
    return _steppers[key]


def _warn(text: str) -> None:
    """Keep a warning of MuJoCo, which may come from a thread of its own."""
    if "deprecated" not in text:  # in the simulator's own models
        _warned.add(re.sub(r" Time = .*", "", one_line(text)))
        if threading.current_thread() is threading.main_thread():
            warn()


def warn() -> None:
    """Turn the warnings of MuJoCo so far into Python's."""
    while _warned:
        warnings.warn(f"MuJoCo: {_warned.pop()}", RuntimeWarning, stacklevel=3)


_warned: set[str] = set()
_steppers: dict[tuple[int, int], Any] = {}  # never freed: in a forked process, that of its parent would wait for threads


class Models:
    """The models of a body, by the factors of their physics.

    Args:
        file: the body's model, among Gymnasium's.
    """

    def __init__(self, file: str):
        self.mujoco = simulator()
        self.nominal = self.mujoco.MjModel.from_xml_path(str(Path(gymnasium.__file__).parent / "envs/mujoco/assets" / file))
        self.nominal.opt.disableflags |= self.mujoco.mjtDisableBit.mjDSBL_WARMSTART  # a state says all of a copy
        self.kept: OrderedDict[tuple[tuple[str, float], ...], Any] = OrderedDict()

    def check(self, name: str) -> None:
        """Raises ValueError if no factor of physics has this name."""
        factor, mark, entry = name.partition("_")
        if factor not in PHYSICS or (mark and not re.fullmatch("0|[1-9][0-9]*", entry, re.ASCII)):
            raise ValueError(
                f"no such task parameter: {name}; factors of physics: {', '.join(PHYSICS)}, or with a number: mass_2"
            )
        count = len(_array(self.nominal, PHYSICS[factor][0]))
        if entry and int(entry) >= count:
            raise ValueError(f"no such task parameter: {name}; {factor} has the entries 0 to {count - 1}")

    def of(self, factors: Mapping[str, float]) -> Any:
        """Return the model whose physics are the nominal ones times ``factors``."""
        key = tuple((name, factor) for name, factor in factors.items() if factor != 1)
        if not key:
            return self.nominal
        if key not in self.kept:
            model = copy.deepcopy(self.nominal)
            for name, factor in key:
                kind, _, entry = name.partition("_")
                for array in PHYSICS[kind]:
                    _array(model, array)[int(entry) if entry else slice(None)] *= factor
            self.mujoco.mj_setConst(model, self.mujoco.MjData(model))  # what it derives from masses and lengths
            self.kept[key] = model
            if len(self.kept) > MOST:
                self.kept.popitem(last=False)
        self.kept.move_to_end(key)
        return self.kept[key]


def _array(model: Any, name: str) -> np.ndarray:
    for part in name.split("."):
        model = getattr(model, part)
    array: np.ndarray = model
    return array
