"""Shared parts of the families that trade one asset: three positions, their reward, and the picture.

Action space: 0 short, 1 flat, 2 long: the position p' of -1, 0 or 1 that is held over the next step. Reward:
``p' r' - cost |p' - p|``, with the next return r' and the position p of before, in the unit of returns.
"""

from __future__ import annotations

from PIL import Image, ImageDraw
from torch import Tensor

from metarl_cli.envs.native import NativeFamily
from metarl_cli.interfaces import Task
from metarl_cli.spaces import Discrete

POSITIONS = (-1.0, 0.0, 1.0)  # by action
ACTIONS = Discrete(len(POSITIONS))


class PositionFamily(NativeFamily):
    """A family of one asset; the first entry of an observation is the last return, the last entry the position."""

    differentiates = False

    def render(self, obs: Tensor, task: Task) -> Image.Image:
        """Draw the last return as a bar and the position as a line, 200 x 200 pixels: green where both have one sign."""
        size, unit = 200, 30  # [pixels], [pixels per unit]
        last, held = float(obs[0]), float(obs[-1])
        image = Image.new("RGB", (size, size), "white")
        draw = ImageDraw.Draw(image)
        zero, top = size / 2, size / 2 - max(min(unit * last, size / 2), -size / 2)
        draw.rectangle([60, min(zero, top), 140, max(zero, top)], fill="seagreen" if last * held > 0 else "indianred")
        draw.line([(0, zero), (size, zero)], fill="black")
        draw.line([(20, zero - unit * held), (180, zero - unit * held)], fill="royalblue", width=5)
        return image


def earned(held: Tensor, before: Tensor, gained: Tensor, cost: Tensor) -> Tensor:
    """Return the reward of ``held`` after ``before``, of a return ``gained``, at a ``cost`` per change of position."""
    return held * gained - cost * (held - before).abs()
