"""What tasks may multiply of a model: masses, inertias, friction, damping, gravity, strength, and the size of links."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from typing_extensions import override


class Factor(ABC):
    """One quantity of a model, with entries that can be multiplied one by one."""

    @abstractmethod
    def count(self, model: Any) -> int:
        """Return how many entries there are."""

    @abstractmethod
    def entries(self, model: Any) -> list[int]:
        """Return the entries that make a difference."""

    @abstractmethod
    def apply(self, model: Any, factors: np.ndarray) -> None:
        """Multiply each entry by its factor, ``factors [count]``."""


@dataclass(frozen=True)
class Product(Factor):
    """Arrays of a model, multiplied row by row.

    Attributes:
        arrays: their names, of equally many rows.
    """

    arrays: tuple[str, ...]

    @override
    def count(self, model: Any) -> int:
        return len(_array(model, self.arrays[0]))

    @override
    def entries(self, model: Any) -> list[int]:
        return [i for i in range(self.count(model)) if any(_array(model, name)[i].any() for name in self.arrays)]

    @override
    def apply(self, model: Any, factors: np.ndarray) -> None:
        for name in self.arrays:
            array = _array(model, name)
            array *= factors.reshape(-1, *(1,) * (array.ndim - 1))


class Size(Factor):
    """The lengths and radii of links, whose masses stay; a link hangs where that which carries it has its joint."""

    @override
    def count(self, model: Any) -> int:
        return int(model.nbody)

    @override
    def entries(self, model: Any) -> list[int]:
        return list(range(1, model.nbody))  # 0 is the world

    @override
    def apply(self, model: Any, factors: np.ndarray) -> None:
        own = np.array([1.0, *factors[1:]])
        for body in np.flatnonzero(model.body_parentid):  # the others stand in the world
            anchor = _turned(model.jnt_pos[model.body_jntadr[body]], model.body_quat[body]) if model.body_jntnum[body] else 0.0
            place = model.body_pos[body]
            place[:] = own[model.body_parentid[body]] * (place + anchor) - own[body] * anchor
        boxes = np.repeat(own, model.body_bvhnum)  # a body's bounding boxes stand together
        for array, times in (
            *((getattr(model, name), own[model.geom_bodyid]) for name in ("geom_pos", "geom_size", "geom_rbound", "geom_aabb")),
            *((model.jnt_pos, own[model.jnt_bodyid]), (model.bvh_aabb, boxes)),
            *((model.body_ipos, own), (model.body_inertia, own**2)),
        ):
            array *= times.reshape(-1, *(1,) * (array.ndim - 1))


PHYSICS: dict[str, Factor] = {
    "gravity": Product(("opt.gravity",)),
    "mass": Product(("body_mass", "body_inertia")),
    "friction": Product(("geom_friction",)),
    "damping": Product(("dof_damping",)),
    "strength": Product(("actuator_gear",)),
    "inertia": Product(("body_inertia",)),
    "size": Size(),
}


def _array(model: Any, name: str) -> np.ndarray:
    for part in name.split("."):
        model = getattr(model, part)
    array: np.ndarray = model
    return array


def _turned(vector: np.ndarray, quaternion: np.ndarray) -> np.ndarray:
    """Return a vector turned by a unit quaternion (w, x, y, z)."""
    real, imaginary = quaternion[0], quaternion[1:]
    turned: np.ndarray = vector + 2 * np.cross(imaginary, np.cross(imaginary, vector) + real * vector)
    return turned
