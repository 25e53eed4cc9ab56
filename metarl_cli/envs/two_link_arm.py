"""A planar two-link arm with a hidden goal and miswired motors: three hidden numbers, each of which is needed.

Two links of 0.5 m lie in a plane, with one end fixed at the shoulder. Servos turn both joints at a commanded velocity. The
hand is to reach a goal that is not observed, and the commands are rotated by a hidden angle before they reach the joints, so
that both what to do and how to do it must be found out.

Action space: the whole numbers below 9. Action ``3 (i + 1) + j + 1`` commands the velocities i and j of the first and the
second joint, each -1, 0 or 1; 4 stays. Both angles change by ``0.1 rad`` times the commands, rotated by ``twist``.

Observation, ``[..., 6]``:

| index | meaning | unit | bounds |
|---|---|---|---|
| 0, 1 | cosine and sine of the first joint's angle | - | ±1 |
| 2, 3 | cosine and sine of the second joint's angle, relative to the first link | - | ±1 |
| 4, 5 | the hand's position, from the shoulder | m | ±1 |

Reward: minus the hand's distance to the goal after the move [m]. Start: the angles -0.9 and 1.8 rad, with the hand 0.62 m along
+x from the shoulder. Ends: at the horizon (truncated).

Task parameters: goal_x, goal_y [m], and twist [rad], uniform on the whole circle. Corners of the out-of-distribution goals
are up to 0.11 m out of reach. Best possible: by dynamic programming over the angles that the moves reach, which form a lattice
(unknown beyond 100 steps).

Adapted from Reacher, a two-link arm with an observed goal (MuJoCo, Gymnasium's Reacher-v5); here without inertia, with a
hidden goal, and with rotated commands. That each parameter is needed was measured with ``benchmarks/identifiable.py``, on 100
test tasks: the rule of this family returns -1.32 (the optimum is -1.31), and -6.52, -10.30 and -15.23 on the support of a task
that has another goal_x, goal_y or twist. Without a support it stays: -9.74. Who knows the twist and goes to the one place that
is best for all goals gets -9.60.
"""

from __future__ import annotations

import math

import torch
from PIL.Image import Image
from torch import Tensor
from typing_extensions import override

from metarl_cli.envs.lattice import best_return, in_parts, places
from metarl_cli.envs.links import START, angles, draw_arm, hand
from metarl_cli.envs.native import NativeConfig, NativeFamily, columns
from metarl_cli.envs.rules import Rule, located
from metarl_cli.interfaces import Task, Transitions
from metarl_cli.spaces import Discrete, Spec, constant

STRIDE = 0.1  # [rad] of each joint in a step, at full velocity
COMMANDS = tuple((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1))  # of both joints, by action


class Config(NativeConfig):
    """Horizon and the ranges of the goal and of the twist."""


class TwoLinkArm(NativeFamily):
    """Reach a hidden goal with miswired motors; see the module's docstring."""

    differentiates = False
    parameters = {"goal_x": 0.55, "goal_y": 0.25, "twist": 0.0}

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        super().__init__(config, device)
        self.spec = Spec(obs_shape=(6,), actions=Discrete(len(COMMANDS)), horizon=config.horizon)

    @override
    def initial_state(self, shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
        return constant(START, like.dtype, like.device).repeat(*shape, 1)

    @override
    def constants(self, task: Task) -> Task:
        return task | {"straight": STRIDE * task["twist"].cos(), "across": STRIDE * task["twist"].sin()}

    @override
    def dynamics(self, state: Tensor, action: Tensor, task: Task, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        first, second = action // 3 - 1, action % 3 - 1
        moved = columns(task["straight"] * first - task["across"] * second, task["across"] * first + task["straight"] * second)
        state = state + moved
        x, y = hand(state)
        distance = torch.hypot(x - task["goal_x"], y - task["goal_y"])
        return state, -distance, torch.zeros_like(distance, dtype=torch.bool)

    @override
    def observe(self, state: Tensor) -> Tensor:
        first, second = state.unbind(-1)
        return columns(first.cos(), first.sin(), second.cos(), second.sin(), *hand(state))

    @override
    def optimum(self, task: Task) -> Tensor | None:
        return in_parts(self._optimum, task, self.spec.horizon)

    def _optimum(self, task: Task) -> Tensor:
        cells = STRIDE * places(self.spec.horizon, task["twist"])  # [S, S, 2]
        cos, sin = (f(task["twist"])[:, None, None] for f in (torch.cos, torch.sin))
        first, second = cells[..., 0], cells[..., 1]
        x, y = hand(torch.stack([cos * first - sin * second, sin * first + cos * second], -1) + cells.new_tensor(START))
        goal_x, goal_y = (task[name][:, None, None] for name in ("goal_x", "goal_y"))
        return best_return(-torch.hypot(x - goal_x, y - goal_y), COMMANDS, self.spec.horizon)

    @override
    def knowledge(self, task: Task) -> Tensor:
        """Return the goal's place in its ranges and the twist as cosine and sine, ``[M, 4]``."""
        goal = [self.distributions[name].standard(task[name]) for name in ("goal_x", "goal_y") if name in self.distributions]
        return torch.cat([*goal, task["twist"].cos()[:, None], task["twist"].sin()[:, None]], -1)

    @override
    def rule(self, support: Transitions) -> Rule:
        """Read the twist from how the joints follow commands and the goal from distances; without a support, stay."""
        command = support.reward.new_tensor(COMMANDS)[support.action]
        before, after = angles(support.obs), angles(support.next_obs)
        moved = torch.remainder(after - before + math.pi, 2 * math.pi) - math.pi
        weight = support.weight
        along = ((command * moved).sum(-1) * weight).sum((1, 2))
        across = ((command[..., 0] * moved[..., 1] - command[..., 1] * moved[..., 0]) * weight).sum((1, 2))
        start = torch.stack(hand(command.new_tensor(START)))
        goal = start + located(support.next_obs[..., 4:] - start, -support.reward, weight)
        return reach(goal, torch.atan2(across, along))

    def render(self, obs: Tensor, task: Task) -> Image:
        """Draw one environment, ``obs [6]``, 200 x 200 pixels: the arm, and the goal green."""
        return draw_arm(obs, task["goal_x"], task["goal_y"])


def reach(goal: Tensor, twist: Tensor) -> Rule:
    """Return the rule that takes the move after which the hand is nearest to ``goal [M, 2]``, given ``twist [M]``."""
    cos, sin = STRIDE * twist.cos(), STRIDE * twist.sin()
    first, second = goal.new_tensor(COMMANDS).T
    moves = torch.stack(
        [torch.outer(cos, first) - torch.outer(sin, second), torch.outer(sin, first) + torch.outer(cos, second)], -1
    )

    def choose(obs: Tensor) -> Tensor:
        x, y = hand(angles(obs)[..., None, :] + moves[:, None])  # [M, N, A]
        return torch.hypot(x - goal[:, :1, None], y - goal[:, 1:, None]).argmin(-1)

    return Rule(choose)


Family = TwoLinkArm
