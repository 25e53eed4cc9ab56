"""Draw a body, without OpenGL: its spheres and capsules, and the ground under it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from metarl_cli.envs.mujoco.bodies import View
from metarl_cli.envs.mujoco.models import simulator

SIZE = 320, 200  # [pixels]
SPOT = 5  # [pixels], half of a goal's
MARK = 1.0  # [m] between marks on the ground


def draw(model: Any, position: Tensor, view: View, goal: Sequence[float] = ()) -> Image.Image:
    """Draw a model with the positions ``[nq]``, and a goal that has a place (x, y) [m]; the view follows its first body."""
    mujoco = simulator()
    data = mujoco.MjData(model)
    data.qpos[:] = position.cpu().numpy()
    mujoco.mj_kinematics(model, data)
    centre, scale = data.xpos[1], view.scale
    ground = float(model.geom_pos[model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE, 2][0])  # [m]
    image = Image.new("RGB", SIZE, "white")
    pen = ImageDraw.Draw(image)

    def pixel(point: np.ndarray) -> tuple[float, float]:
        depth = view.tilt * (point[1] - centre[1])
        return SIZE[0] / 2 + scale * (point[0] - centre[0]), view.ground - scale * (point[2] - ground + depth)

    if view.tilt < 1:  # from above there is no horizon
        pen.line([(0, view.ground), (SIZE[0], view.ground)], fill="dimgray", width=2)
        first = np.floor(centre[0] - SIZE[0] / 2 / scale)
        for x in np.arange(first, first + SIZE[0] / scale + 2 * MARK, MARK):
            left, _ = pixel(np.array([x, centre[1], 0.0]))
            pen.line([(left, view.ground), (left - 8, SIZE[1])], fill="silver")
    capsules, spheres = (model.geom_type == kind for kind in (mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_SPHERE))
    visible = (capsules | spheres) & (model.body_rootid[model.geom_bodyid] == 1)
    for i in np.argsort(-data.geom_xpos[:, 1]):  # the farthest first
        if not visible[i]:
            continue
        radius, half = model.geom_size[i, :2]
        along = data.geom_xmat[i].reshape(3, 3)[:, 2] * (half if capsules[i] else 0.0)
        ends = [pixel(data.geom_xpos[i] - along), pixel(data.geom_xpos[i] + along)]
        colour = "royalblue" if data.geom_xpos[i, 1] <= centre[1] + radius else "cornflowerblue"
        pen.line(ends, fill=colour, width=max(round(2 * scale * radius), 1))
        for x, y in ends:
            reach = scale * radius
            pen.ellipse([x - reach, y - reach, x + reach, y + reach], fill=colour)
    if goal:
        x, y = pixel(np.array([*goal, centre[2]]))
        pen.ellipse([x - SPOT, y - SPOT, x + SPOT, y + SPOT], outline="crimson", width=2)
    return image
