"""2D navigation to a hidden goal (Finn, Abbeel and Levine 2017, arXiv:1703.03400, section 5.3).

A point robot starts at the origin; the goal is in the unit square around it and is not observed, so that only the
rewards reveal the task.

Action space, discrete: 0 stays; 1, 2, 3, 4 move 0.1 along +x, -x, +y, -y. Continuous: a vector ``[2]``, the move along x
and y [m], clipped to ±0.1 each. Observation, ``[..., 2]``: the position [m]. Reward: minus the Euclidean distance to the goal
after the move. Start: the origin. Ends: at the horizon (truncated); with continuous moves also within 0.01 of the goal in x and
in y (terminated).

With ``reward_within`` set, the reward is 1 after a move to within this distance of the goal and else 0 (sparse rewards, Gupta
2018, arXiv:1802.07245, section 5): nothing shows the way to the goal, and exploration itself must be learned. Single places
say little: with 0.1, each place of the lattice is near enough to 3 % of the goals.

Task parameters: goal_x, goal_y [m]. Best possible: with discrete moves by dynamic programming over the lattice of places
(unknown beyond 100 steps); with continuous moves both coordinates straight to the goal at full speed.

Differs from the paper: the distance is not squared, as in its published code. The discrete moves, for learners that
choose among actions, are of fixed length; their horizon is 20 instead of 100, as a step is 0.1 long either way, and an episode
does not end at the goal.
"""

from __future__ import annotations

from typing import Literal

import torch
from PIL import Image, ImageDraw
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import override

from metarl_cli.envs.lattice import best_return, in_parts, places
from metarl_cli.envs.native import NativeConfig
from metarl_cli.envs.plane import PlaneFamily
from metarl_cli.envs.rules import Rule, Walk, located
from metarl_cli.interfaces import Task, Transitions
from metarl_cli.spaces import Continuous, Discrete, Spec

STRIDE = 0.1  # [m] per move; along each axis where moves are continuous
NEAR = 0.01  # [m] from the goal along each axis, where continuous episodes end
MOVES = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))


class Config(NativeConfig):
    """Horizon, moves and the ranges of the goal."""

    moves: Literal["discrete", "continuous"] = Field(description="five moves to choose from, or a vector")
    reward_within: float | None = Field(
        gt=0, description="rewards are 1 within this distance of the goal [m] and 0 elsewhere; none: minus the distance"
    )

    @model_validator(mode="after")
    def _sparse_episodes_do_not_end_at_the_goal(self) -> Config:
        if self.reward_within is not None and self.moves == "continuous":
            raise ValueError("reward_within needs discrete moves: with continuous ones an episode ends at the goal")
        return self


class Navigation2D(PlaneFamily):
    """Reach a hidden goal; see the module's docstring."""

    parameters = {"goal_x": 0.25, "goal_y": 0.25}
    half = 1.0  # [m]

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        super().__init__(config, device)
        self.continuous, self.within = config.moves == "continuous", config.reward_within
        actions = Continuous((-STRIDE, -STRIDE), (STRIDE, STRIDE)) if self.continuous else Discrete(len(MOVES))
        self.spec = Spec(obs_shape=(2,), actions=actions, horizon=config.horizon)

    @override
    def initial_state(self, shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
        return torch.zeros(*shape, 2, dtype=like.dtype, device=like.device)

    @override
    def constants(self, task: Task) -> Task:
        goal = torch.stack([task["goal_x"], task["goal_y"]], -1)
        return task | {"goal": goal, "moves": STRIDE * goal.new_tensor(MOVES)}

    @override
    def dynamics(self, state: Tensor, action: Tensor, task: Task, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        if self.continuous:
            state = state + action.clamp(-STRIDE, STRIDE)
            terminated = ((state - task["goal"]).abs() < NEAR).all(-1)
        else:
            state = state + task["moves"][action]
            terminated = torch.zeros(state.shape[:-1], dtype=torch.bool, device=state.device)
        return state, self.reward(state, task["goal"]), terminated

    def reward(self, place: Tensor, goal: Tensor) -> Tensor:
        """Return the reward ``[...]`` of a move to ``place [..., 2]``."""
        distance: Tensor = (place - goal).norm(dim=-1)
        return -distance if self.within is None else (distance <= self.within).to(distance.dtype)

    @override
    def optimum(self, task: Task) -> Tensor | None:
        if not self.continuous:
            return in_parts(self._planned, task, self.spec.horizon)
        goal = torch.stack([task["goal_x"], task["goal_y"]], -1).abs()  # [M, 2]
        walked = STRIDE * torch.arange(1, self.spec.horizon + 1, device=goal.device)
        left = (goal - walked[:, None, None]).clamp(min=0)  # [T, M, 2]
        over = (left < NEAR).all(-1).cumsum(0) > 1  # the episode ended before this step
        distance: Tensor = left.norm(dim=-1)
        return -distance.where(~over, 0).sum(0)

    def _planned(self, task: Task) -> Tensor:
        goal = torch.stack([task["goal_x"], task["goal_y"]], -1)  # [M, 2]
        reward = self.reward(STRIDE * places(self.spec.horizon, goal), goal[:, None, None])
        return best_return(reward, MOVES, self.spec.horizon)

    @override
    def rule(self, support: Transitions) -> Rule:
        """Find the goal by least squares, or where rewards were seen if they are sparse, and walk there; else stay."""
        place, weight = support.next_obs, support.weight
        if self.within is None:
            goal = located(place, -support.reward, weight)
        else:
            seen = (support.reward * weight)[..., None]
            goal = (place * seen).sum((1, 2)) / seen.sum((1, 2)).clamp(min=1)
        moves = STRIDE * goal.new_tensor(MOVES)

        def choose(obs: Tensor) -> Tensor:
            way = goal[:, None] - obs  # [M, N, 2]
            if self.continuous:
                return way.clamp(-STRIDE, STRIDE)
            left: Tensor = (way[..., None, :] - moves).norm(dim=-1)
            return left.argmin(-1)

        return Rule(choose)

    @override
    def worth(self, place: Tensor, task: Task) -> Tensor:
        return self.reward(place, torch.stack([task["goal_x"], task["goal_y"]], -1)[:, None])

    @override
    def expert(self, task: Task) -> Walk | None:
        """Return the straight walk to each goal where moves are continuous; None where they are discrete."""
        return Walk(torch.stack([task["goal_x"], task["goal_y"]], -1), STRIDE) if self.continuous else None

    def render(self, obs: Tensor, task: Task) -> Image.Image:
        """Draw one environment, ``obs [2]``, 200 x 200 pixels: the robot blue, the goal green."""
        size, half = 200, 1.0  # [pixels], [m] shown on each side of the origin
        image = Image.new("RGB", (size, size), "white")
        draw = ImageDraw.Draw(image)
        points = ((float(task["goal_x"]), float(task["goal_y"]), "seagreen", 7), (*obs.tolist(), "royalblue", 5))
        for x, y, colour, radius in points:
            centre = (size / 2 * (1 + x / half), size / 2 * (1 - y / half))
            draw.ellipse([centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius], fill=colour)
        return image


Family = Navigation2D
