"""Models of MuJoCo: the nominal one of a body, and copies of it with other physics."""

from __future__ import annotations

import copy
import importlib
import os
import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from metarl_cli.config.messages import one_line
from metarl_cli.envs.mujoco.physics import PHYSICS

MOST = 512  # models of about 0.6 MB that a family keeps for later
EVERY = "*"  # in the place of an entry's number


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
        entries = PHYSICS[factor].entries(self.nominal)
        if entry and int(entry) not in entries:
            raise ValueError(f"no such task parameter: {name}; {factor} has the entries {', '.join(map(str, entries))}")

    def each(self, name: str) -> list[str]:
        """Return the names of all entries of a factor for ``mass_*``, and any other name as it is."""
        factor, mark, entry = name.partition("_")
        if factor not in PHYSICS or entry != EVERY:
            return [name]
        return [f"{factor}{mark}{i}" for i in PHYSICS[factor].entries(self.nominal)]

    def of(self, factors: Mapping[str, float]) -> Any:
        """Return the model whose physics are the nominal ones times ``factors``."""
        key = tuple((name, factor) for name, factor in factors.items() if factor != 1)
        if not key:
            return self.nominal
        if key not in self.kept:
            self.kept[key] = self._made(key)
            if len(self.kept) > MOST:
                self.kept.popitem(last=False)
        self.kept.move_to_end(key)
        return self.kept[key]

    def _made(self, factors: tuple[tuple[str, float], ...]) -> Any:
        """Return a new model; the ground is as far below the body's first pose as it is below the nominal one."""
        model, products = copy.deepcopy(self.nominal), dict[str, np.ndarray]()
        for name, factor in factors:
            kind, _, entry = name.partition("_")
            product = products.setdefault(kind, np.ones(PHYSICS[kind].count(model)))
            product[int(entry) if entry else slice(None)] *= factor
        for kind, product in products.items():
            PHYSICS[kind].apply(model, product)
        self.mujoco.mj_setConst(model, self.mujoco.MjData(model))  # what it derives from masses and lengths
        ground = model.geom_type == self.mujoco.mjtGeom.mjGEOM_PLANE
        model.geom_pos[ground, 2] += self._lowest(model) - self._lowest(self.nominal)
        model.geom_sameframe[ground] = self.mujoco.mjtSameFrame.mjSAMEFRAME_NONE  # else its place would be the world's origin
        return model

    def _lowest(self, model: Any) -> float:
        """Return the height of the lowest point of a body's spheres and capsules in its first pose [m]."""
        data, capsule = self.mujoco.MjData(model), self.mujoco.mjtGeom.mjGEOM_CAPSULE
        self.mujoco.mj_kinematics(model, data)
        half = np.where(model.geom_type == capsule, model.geom_size[:, 1], 0.0)
        below = data.geom_xpos[:, 2] - abs(data.geom_xmat[:, 8]) * half - model.geom_size[:, 0]
        return float(below[model.body_rootid[model.geom_bodyid] == 1].min())


def mass_centres(models: Sequence[Any], position: Tensor, data: Any) -> Tensor:
    """Return the centres of mass ``[M, N, 3]`` [m] of M models with the positions ``[M, N, nq]``, computed in ``data``."""
    kinematics, coordinates, centres = simulator().mj_kinematics, data.qpos, data.xipos
    of_bodies = np.empty((*position.shape[:2], *centres.shape))
    for model, rows, bodies in zip(models, position.cpu().numpy(), of_bodies, strict=True):
        for row, out in zip(rows, bodies, strict=True):
            coordinates[:] = row
            kinematics(model, data)
            out[:] = centres
    masses = np.stack([model.body_mass for model in models])
    weighted = np.einsum("mb,mnbx->mnx", masses / masses.sum(1, keepdims=True), of_bodies)
    return torch.from_numpy(weighted).to(position.device)
