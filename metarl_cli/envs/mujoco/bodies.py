"""The bodies: their models, starts, observations, places and when they have fallen, as in Gymnasium's v5."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from metarl_cli.envs.mujoco.angles import turned
from metarl_cli.envs.mujoco.models import mass_centres

WITHIN = 100.0  # of positions and velocities of a hopper or a walker that is healthy
FAST = 5.0  # the usual size of a velocity [m/s, rad/s], by which networks divide


@dataclass(frozen=True)
class View:
    """How a body is drawn.

    Attributes:
        scale: pixels of a metre.
        tilt: how much of the depth of what turns is seen: 0 from the side, 1 from above.
        ground: where the ground is [pixels] from above.
    """

    scale: float = 60.0
    tilt: float = 0.35
    ground: int = 170


@dataclass(frozen=True)
class Body:
    """One body, which is where its first coordinates are.

    Attributes:
        file: its model, among Gymnasium's.
        frame_skip: simulated steps of a control step.
        noise: of a start: half the range of positions; of velocities the deviation, or half the range.
        normal: whether the velocities of a start are drawn from a normal distribution.
        plane: whether it moves in the plane of x and z alone.
        height: the bounds of the torso's height where it is healthy; None where it cannot fall.
        angle: the bounds of the torso's angle [rad], likewise.
        fastest: the bound of the velocities that it observes.
        view: how it is drawn.
    """

    file: str
    frame_skip: int
    noise: float
    normal: bool
    plane: bool = True
    height: tuple[float, float] | None = None
    angle: tuple[float, float] | None = None
    fastest: float = math.inf
    view: View = View()

    @property
    def hidden(self) -> int:
        """The coordinates of its place in the world, which it does not observe."""
        return 1 if self.plane else 2

    def start(self, nominal: Tensor, velocities: int, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """Draw positions and velocities ``[*shape, nq + nv]`` around the nominal positions ``[nq]``."""
        unit = torch.rand(*shape, len(nominal), generator=rng, dtype=nominal.dtype, device=nominal.device)
        draw = torch.randn if self.normal else torch.rand
        drawn = draw(*shape, velocities, generator=rng, dtype=nominal.dtype, device=nominal.device)
        return torch.cat([nominal + self.noise * (2 * unit - 1), self.noise * (drawn if self.normal else 2 * drawn - 1)], -1)

    def observe(self, position: Tensor, velocity: Tensor) -> Tensor:
        """Return what it observes."""
        seen = velocity if self.fastest == math.inf else velocity.clamp(-self.fastest, self.fastest)
        return torch.cat([position[..., self.hidden :], seen], -1)

    def sizes(self, positions: int, velocities: int) -> tuple[float, ...]:
        """Return the usual size of each number that it observes, of so many positions and velocities."""
        return (1.0,) * (positions - self.hidden) + (FAST,) * velocities

    def place(self, models: Sequence[Any], position: Tensor, data: Any) -> Tensor:
        """Return where it is.

        Args:
            models: the models of M tasks.
            position: the positions ``[M, N, nq]``.
            data: MuJoCo's, to compute in.

        Returns:
            x and y ``[M, N, 2]``, of a body in the plane of x and z only x ``[M, N, 1]`` [m].
        """
        return position[..., : self.hidden]

    def healthy(self, position: Tensor, velocity: Tensor) -> Tensor:
        """Return whether a body that can fall has not fallen ``[...]``."""
        assert self.height is not None
        height = position[..., self.hidden]
        low, high = self.height
        if self.angle is None:
            finite = position.isfinite().all(-1) & velocity.isfinite().all(-1)
            return finite & (low <= height) & (height <= high)
        angle, rest = position[..., 2], torch.cat([position[..., 2:], velocity], -1)
        upright = (self.angle[0] < angle) & (angle < self.angle[1])
        return (low < height) & (height < high) & upright & (rest.abs() < WITHIN).all(-1)


@dataclass(frozen=True)
class Weighted(Body):
    """A body that is where its centre of mass is, as Gymnasium's humanoid."""

    @override
    def place(self, models: Sequence[Any], position: Tensor, data: Any) -> Tensor:
        return mass_centres(models, position, data)[..., :2]


@dataclass(frozen=True)
class Arm(Body):
    """A planar arm of two links, which is where its fingertip is; the model's other coordinates are its target's.

    Attributes:
        spin: half the range of the velocities of a start [rad/s].
    """

    spin: float = 0.0

    @override
    def start(self, nominal: Tensor, velocities: int, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        unit = 2 * torch.rand(*shape, 4, generator=rng, dtype=nominal.dtype, device=nominal.device) - 1
        joints, rest = nominal[:2] + self.noise * unit[..., :2], nominal[2:].expand(*shape, -1)
        turning = self.spin * unit[..., 2:]
        return torch.cat([joints, rest, turning, turning.new_zeros(*shape, velocities - 2)], -1)

    @override
    def observe(self, position: Tensor, velocity: Tensor) -> Tensor:
        return torch.cat([*turned(position[..., :2]), velocity[..., :2]], -1)

    @override
    def sizes(self, positions: int, velocities: int) -> tuple[float, ...]:
        return (1.0,) * 4 + (2 * FAST,) * 2

    @override
    def place(self, models: Sequence[Any], position: Tensor, data: Any) -> Tensor:
        length = position.new_tensor([[model.body_pos[2, 0], model.body_pos[3, 0]] for model in models])[:, None]  # [M, 1, 2]
        return torch.stack([(length * part).sum(-1) for part in turned(position[..., :2].cumsum(-1))], -1)


BODIES = {
    "half_cheetah": Body("half_cheetah.xml", 5, 0.1, normal=True),
    "ant": Body("ant.xml", 5, 0.1, normal=True, plane=False, height=(0.2, 1.0)),
    "hopper": Body("hopper.xml", 4, 0.005, normal=False, height=(0.7, math.inf), angle=(-0.2, 0.2), fastest=10.0),
    "walker2d": Body("walker2d_v5.xml", 4, 0.005, normal=False, height=(0.8, 2.0), angle=(-1.0, 1.0), fastest=10.0),
    "humanoid": Weighted("humanoid.xml", 5, 0.01, normal=False, plane=False, height=(1.0, 2.0)),
    "reacher": Arm("reacher.xml", 2, 0.1, normal=False, plane=False, spin=0.005, view=View(400.0, 1.0, 100)),
}
