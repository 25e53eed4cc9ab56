"""The bodies: their models, starts, observations and when they have fallen, as in Gymnasium's v5."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

WITHIN = 100.0  # of positions and velocities of a hopper or a walker that is healthy


@dataclass(frozen=True)
class Body:
    """One body.

    Attributes:
        file: its model, among Gymnasium's.
        frame_skip: simulated steps of a control step.
        noise: of a start: half the range of positions; of velocities the deviation, or half the range.
        normal: whether the velocities of a start are drawn from a normal distribution.
        plane: whether it moves in the plane of x and z alone.
        height: the bounds of the torso's height where it is healthy; None where it cannot fall.
        angle: the bounds of the torso's angle [rad], likewise.
        fastest: the bound of the velocities that it observes.
    """

    file: str
    frame_skip: int
    noise: float
    normal: bool
    plane: bool = True
    height: tuple[float, float] | None = None
    angle: tuple[float, float] | None = None
    fastest: float = math.inf

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
        return torch.cat([position[..., self.hidden :], velocity.clamp(-self.fastest, self.fastest)], -1)

    def healthy(self, position: Tensor, velocity: Tensor) -> Tensor:
        """Return whether it has not fallen ``[...]``."""
        if self.height is None:
            return torch.ones(position.shape[:-1], dtype=torch.bool, device=position.device)
        height = position[..., self.hidden]
        low, high = self.height
        if self.angle is None:
            finite = position.isfinite().all(-1) & velocity.isfinite().all(-1)
            return finite & (low <= height) & (height <= high)
        angle, rest = position[..., 2], torch.cat([position[..., 2:], velocity], -1)
        upright = (self.angle[0] < angle) & (angle < self.angle[1])
        return (low < height) & (height < high) & upright & (rest.abs() < WITHIN).all(-1)


BODIES = {
    "half_cheetah": Body("half_cheetah.xml", 5, 0.1, normal=True),
    "ant": Body("ant.xml", 5, 0.1, normal=True, plane=False, height=(0.2, 1.0)),
    "hopper": Body("hopper.xml", 4, 0.005, normal=False, height=(0.7, math.inf), angle=(-0.2, 0.2), fastest=10.0),
    "walker2d": Body("walker2d_v5.xml", 4, 0.005, normal=False, height=(0.8, 2.0), angle=(-1.0, 1.0), fastest=10.0),
}
