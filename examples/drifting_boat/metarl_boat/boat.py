"""A boat in a current, its rudder mounted askew: reach the harbour.

The helm says where to go and the boat goes elsewhere, by an angle that differs between tasks and is not observed; no single
policy can do for all of them.

Action space: 0 lets the boat drift; 1 to 8 move it 0.1 m towards east, north-east, north, ..., turned by ``askew``; the
current is added to each move. Observation, ``[..., 2]``: the boat's position seen from the harbour [m]. Reward: minus the
distance to the harbour after the move [m]. Start: 1 m from the harbour, in any direction. Ends: at the horizon only
(truncated).

Task parameters: askew [rad], current_x, current_y [m per step].
"""

from __future__ import annotations

import math

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from metarl_cli.envs.native import NativeConfig, NativeFamily
from metarl_cli.interfaces import Task
from metarl_cli.spaces import Discrete, Spec

STRIDE = 0.1  # [m] per move
DIRECTIONS = 8


class Config(NativeConfig):
    """Horizon and the ranges of rudder and current."""


class Boat(NativeFamily):
    """Steer to the harbour with a rudder that is askew; see the module's docstring."""

    parameters = {"askew": 0.0, "current_x": 0.0, "current_y": 0.0}

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        super().__init__(config, device)
        self.spec = Spec(obs_shape=(2,), actions=Discrete(1 + DIRECTIONS), horizon=config.horizon)

    def initial_state(self, shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
        angle = 2 * math.pi * torch.rand(*shape, generator=rng, dtype=like.dtype, device=like.device)
        return torch.stack([angle.cos(), angle.sin()], -1)

    def dynamics(self, state: Tensor, action: Tensor, task: Task, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        angle = 2 * math.pi * (action - 1) / DIRECTIONS + task["askew"]
        stride = torch.where(action > 0, STRIDE, 0.0)[..., None]
        current = torch.stack([task["current_x"], task["current_y"]], -1)
        state = state + stride * torch.stack([angle.cos(), angle.sin()], -1) + current
        distance = state.norm(dim=-1)
        return state, -distance, torch.zeros_like(distance, dtype=torch.bool)

    def render(self, obs: Tensor, task: Task) -> Image.Image:
        """One frame of one environment, ``obs [2]``, 200 x 200 pixels, 2 m to each side: the harbour green, the boat blue."""
        size, half = 200, 2.0  # [pixels], [m]
        image = Image.new("RGB", (size, size), "aliceblue")
        draw = ImageDraw.Draw(image)
        for (x, y), colour in (((0.0, 0.0), "seagreen"), (obs.tolist(), "royalblue")):
            centre = (size / 2 * (1 + x / half), size / 2 * (1 - y / half))
            draw.ellipse([centre[0] - 6, centre[1] - 6, centre[0] + 6, centre[1] + 6], fill=colour)
        return image


Family = Boat
