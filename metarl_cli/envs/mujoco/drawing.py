"""Draw a body from the side, without OpenGL: its spheres and capsules, and the ground under it."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from metarl_cli.envs.mujoco.models import simulator

SIZE = 320, 200  # [pixels]
SCALE = 60.0  # [pixels/m]
GROUND = 170  # [pixels] from above
TILT = 0.35  # how much of the depth of a body that turns is seen from above
MARK = 1.0  # [m] between marks on the ground


def draw(model: Any, position: Tensor) -> Image.Image:
    """Draw a model with the positions ``[nq]``; the view follows its first body."""
    mujoco = simulator()
    data = mujoco.MjData(model)
    data.qpos[:] = position.cpu().numpy()
    mujoco.mj_kinematics(model, data)
    centre = data.xpos[1]
    image = Image.new("RGB", SIZE, "white")
    pen = ImageDraw.Draw(image)

    def pixel(point: np.ndarray) -> tuple[float, float]:
        depth = TILT * (point[1] - centre[1])
        return SIZE[0] / 2 + SCALE * (point[0] - centre[0]), GROUND - SCALE * (point[2] + depth)

    pen.line([(0, GROUND), (SIZE[0], GROUND)], fill="dimgray", width=2)
    first = np.floor(centre[0] - SIZE[0] / 2 / SCALE)
    for x in np.arange(first, first + SIZE[0] / SCALE + 2 * MARK, MARK):
        left, _ = pixel(np.array([x, centre[1], 0.0]))
        pen.line([(left, GROUND), (left - 8, SIZE[1])], fill="silver")
    capsule, sphere = mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_SPHERE
    for i in np.argsort(-data.geom_xpos[:, 1]):  # the farthest first
        if model.geom_type[i] not in (capsule, sphere):
            continue
        radius, half = model.geom_size[i, :2]
        along = data.geom_xmat[i].reshape(3, 3)[:, 2] * (half if model.geom_type[i] == capsule else 0.0)
        ends = [pixel(data.geom_xpos[i] - along), pixel(data.geom_xpos[i] + along)]
        colour = "royalblue" if data.geom_xpos[i, 1] <= centre[1] + radius else "cornflowerblue"
        pen.line(ends, fill=colour, width=max(round(2 * SCALE * radius), 1))
        for x, y in ends:
            reach = SCALE * radius
            pen.ellipse([x - reach, y - reach, x + reach, y + reach], fill=colour)
    return image
