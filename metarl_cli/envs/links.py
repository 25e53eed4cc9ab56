"""Shared parts of the arms of two equal links in a plane: where the hand is, what observations show, and the picture."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw
from torch import Tensor

LINK = 0.5  # [m] of each link
START = (-0.9, 1.8)  # [rad] of the first joint, and of the second relative to the first link


def hand(state: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hand's position, x and y ``[...]`` each [m], at the joint angles ``state [..., 2]``."""
    first, second = state.unbind(-1)
    both = first + second
    return LINK * (first.cos() + both.cos()), LINK * (first.sin() + both.sin())


def angles(obs: Tensor) -> Tensor:
    """Return the joint angles ``[..., 2]``, within ±π, of which ``obs [..., 4:]`` begins with the cosines and sines."""
    return torch.stack([torch.atan2(obs[..., 1], obs[..., 0]), torch.atan2(obs[..., 3], obs[..., 2])], -1)


def draw_arm(obs: Tensor, goal_x: Tensor, goal_y: Tensor) -> Image.Image:
    """Draw one arm, 200 x 200 pixels, and its goal green.

    Args:
        obs: begins with the cosines and sines of both angles, and the hand's position: ``[6:]``.
        goal_x: one number [m].
        goal_y: one number [m].
    """
    cos, sin, _, _, x, y = obs[:6].tolist()
    size, scale = 200, 90  # [pixels], [pixels/m]
    image = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(image)

    def pixel(x: float, y: float) -> tuple[float, float]:
        return size / 2 + scale * x, size / 2 - scale * y

    def disc(centre: tuple[float, float], colour: str, radius: int) -> None:
        draw.ellipse([centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius], fill=colour)

    shoulder, elbow, tip = pixel(0, 0), pixel(LINK * cos, LINK * sin), pixel(x, y)
    disc(pixel(float(goal_x), float(goal_y)), "seagreen", 7)
    draw.line([shoulder, elbow, tip], fill="steelblue", width=6)
    for centre, colour in ((shoulder, "black"), (elbow, "black"), (tip, "royalblue")):
        disc(centre, colour, 4)
    return image
