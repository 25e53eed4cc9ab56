"""Models of MuJoCo: the nominal one of a body, and copies of it with other physics."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from metarl_cli.config.messages import one_line

MOST = 4096  # models that a family keeps for later
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


def _warn(text: str) -> None:
    """Turn a warning of MuJoCo into one of Python."""
    if "deprecated" not in text:  # in the simulator's own models
        warnings.warn(f"MuJoCo: {one_line(text)}", RuntimeWarning, stacklevel=2)


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
        factor, _, entry = name.partition("_")
        if factor not in PHYSICS:
            raise ValueError(
                f"no such task parameter: {name}; factors of physics: {', '.join(PHYSICS)}, or with a number: mass_2"
            )
        count = len(_array(self.nominal, PHYSICS[factor][0]))
        if entry and not (entry.isdigit() and int(entry) < count):
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
        return self.kept[key]


def _array(model: Any, name: str) -> np.ndarray:
    for part in name.split("."):
        model = getattr(model, part)
    array: np.ndarray = model
    return array
