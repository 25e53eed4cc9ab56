"""A planar two-link arm driven by torques, with a hidden goal and a hidden payload. A stylised robot.

The links of ``two_link_arm``, here with inertia: two uniform rods of 0.5 m and 1 kg in a horizontal plane, one end fixed at
the shoulder, and a payload at the hand. The hand is to reach a goal that is not observed and stay there, and how strongly
torques act depends on the payload, which is not observed either.

Action space: a vector of two numbers, the torques of shoulder and elbow within ±6 and ±3 N m.

Observation, ``[..., 8]``:

| index | meaning | unit | bounds |
|---|---|---|---|
| 0, 1 | cosine and sine of the shoulder's angle | - | ±1 |
| 2, 3 | cosine and sine of the elbow's angle, relative to the first link | - | ±1 |
| 4, 5 | the hand's position, from the shoulder | m | ±1 |
| 6, 7 | the angular velocities of shoulder and elbow | rad/s | - |

Reward: minus the hand's distance to the goal after the step [m]. Start: the angles -0.9 and 1.8 rad, at rest, with the hand
0.62 m along +x from the shoulder. Steps of 0.05 s, by the Runge-Kutta method: in an
episode of free motion without friction, energy changes by 2 %. Ends: at the horizon (truncated).

Task parameters: goal_x, goal_y [m]; payload [kg], 0 or more; friction of both joints [N m s], 0 or more. The best possible is
not known. Near to it is computed torque (``computed_torque``), which knows goal and payload, cancels the arm's own dynamics,
and brakes as late as the torques allow.

Source: stylised; the equations of motion and the computed-torque law are those of Spong, Hutchinson and Vidyasagar 2006 (Robot
Modeling and Control, chapters 7 and 8), the reaching task that of Gymnasium's Reacher-v5 with a hidden goal. Gravity, elastic
joints, sensors' noise and obstacles are not here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL.Image import Image
from torch import Tensor
from typing_extensions import override

from metarl_cli.envs.links import LINK, START, angles, draw_arm, hand
from metarl_cli.envs.native import NativeConfig, NativeFamily, columns
from metarl_cli.envs.rules import Rule, located, regress
from metarl_cli.interfaces import Task, Transitions
from metarl_cli.spaces import Continuous, Spec, constant

TAU = 0.05  # [s] between states
MASS = 1.0  # [kg] of each link
TORQUES = (6.0, 3.0)  # [N m] of shoulder and elbow
FRICTION = 0.5  # [N m s]
HEAVIEST = 5.0  # [kg], as the rule reads it
# of computed torque, chosen on validation tasks
STIFFNESS, DAMPING = 60.0, 12.4  # [1/s²], [1/s]

Load = tuple[Tensor, Tensor, Tensor]  # of an arm with its payload, ``[...]`` each


class Config(NativeConfig):
    """Horizon and the ranges of the goal and the payload."""


class Arm(NativeFamily):
    """Reach a hidden goal with a hidden payload; see the module's docstring."""

    differentiates = False
    parameters = {"goal_x": 0.55, "goal_y": 0.25, "payload": 1.0, "friction": FRICTION}

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        super().__init__(config, device)
        self.spec = Spec(
            obs_shape=(8,),
            actions=Continuous(tuple(-torque for torque in TORQUES), TORQUES),
            horizon=config.horizon,
            obs_scale=(*[1.0] * 6, 4.0, 4.0),
        )

    @override
    def check(self, name: str, value: float) -> None:
        super().check(name, value)
        if name in ("payload", "friction") and value < 0:
            raise ValueError(f"{name} must be 0 or more, got {value:g}")

    @override
    def initial_state(self, shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
        return constant((*START, 0.0, 0.0), like.dtype, like.device).repeat(*shape, 1)

    @override
    def constants(self, task: Task) -> Task:
        a, d, coupling = inertia(task["payload"])
        return task | {"a": a, "d": d, "coupling": coupling}

    @override
    def dynamics(self, state: Tensor, action: Tensor, task: Task, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        limit = constant(TORQUES, action.dtype, action.device)
        torque = action.clamp(-limit, limit).movedim(-1, 0)  # [2, M, N]
        load, friction = (task["a"], task["d"], task["coupling"]), task["friction"]

        def change(entries: Tensor) -> Tensor:
            return torch.cat([entries[2:], accelerations(entries, torque - friction * entries[2:], load)])

        entries = state.movedim(-1, 0)  # [4, M, N]
        state = runge_kutta(change, entries, TAU).movedim(0, -1)
        x, y = hand(state[..., :2])
        distance = torch.hypot(x - task["goal_x"], y - task["goal_y"])
        return state, -distance, torch.zeros_like(distance, dtype=torch.bool)

    @override
    def observe(self, state: Tensor) -> Tensor:
        first, second, *velocity = state.unbind(-1)
        return columns(first.cos(), first.sin(), second.cos(), second.sin(), *hand(state[..., :2]), *velocity)

    @override
    def rule(self, support: Transitions) -> Rule:
        """Read the goal from distances and the payload from how torques accelerate, by least squares; computed torque.

        The equation of motion is linear in the payload; velocities and angles are those in the middle of a step. Without a
        support, hold the hand where episodes begin.
        """
        start = torch.stack(hand(support.obs.new_tensor(START)))
        goal = start + located(support.next_obs[..., 4:6] - start, -support.reward, support.weight)
        before, after = support.obs[..., 6:].double(), support.next_obs[..., 6:].double()
        velocity = (before + after) / 2
        middle = torch.cat([angles(support.obs).double() + TAU / 2 * (before + velocity) / 2, velocity], -1).movedim(-1, 0)
        gained = ((after - before) / TAU).movedim(-1, 0)
        bare, loaded = (torques(middle, gained, inertia(middle.new_tensor(kg))) for kg in (0.0, 1.0))  # [2, M, T, N]
        missing = (support.action.double() - FRICTION * velocity).movedim(-1, 0) - bare
        both = (torch.cat(tuple(loaded - bare), 1), torch.cat(tuple(missing), 1))  # [M, 2 T, N]
        payload = regress(both[0][..., None], both[1], support.weight.double().repeat(1, 2, 1))[:, 0]
        return computed_torque(goal, payload.clamp(0, HEAVIEST))

    def render(self, obs: Tensor, task: Task) -> Image:
        """Draw one environment, ``obs [8]``, 200 x 200 pixels: the arm, and the goal green."""
        return draw_arm(obs, task["goal_x"], task["goal_y"])


def inertia(payload: Tensor) -> Load:
    """Return what the mass matrix ``[[a + 2 c, d + c], [d + c, d]]`` is made of: a, d, and c over the elbow's cosine.

    Args:
        payload: ``[...]`` [kg].
    """
    rod = MASS * LINK**2 / 3  # about its end
    d = rod + payload * LINK**2
    return rod + (MASS + payload) * LINK**2 + d, d, (MASS / 2 + payload) * LINK**2


def torques(entries: Tensor, gained: Tensor, load: Load) -> Tensor:
    """Return the torques ``[2, ...]`` that cause the accelerations ``gained [2, ...]``, without friction: inverse dynamics.

    ``M(q) q'' + C(q, q') q'``, with ``C q' = (-h q2' (2 q1' + q2'), h q1'²)`` and h the coupling times the elbow's sine.

    Args:
        entries: angles and velocities ``[4, ...]``.
        gained: in rad/s².
        load: what :func:`inertia` returns.
    """
    a, d, coupling = load
    c, h = coupling * entries[1].cos(), coupling * entries[1].sin()
    first = (a + 2 * c) * gained[0] + (d + c) * gained[1] - h * entries[3] * (2 * entries[2] + entries[3])
    return torch.stack([first, (d + c) * gained[0] + d * gained[1] + h * entries[2].square()])


def accelerations(entries: Tensor, torque: Tensor, load: Load) -> Tensor:
    """Return the accelerations ``[2, ...]`` under ``torque [2, ...]``: forward dynamics, the inverse of :func:`torques`."""
    a, d, coupling = load
    c, h = coupling * entries[1].cos(), coupling * entries[1].sin()
    first = torque[0] + h * entries[3] * (2 * entries[2] + entries[3])
    second = torque[1] - h * entries[2].square()
    across, along = d + c, a + 2 * c
    return torch.stack([d * first - across * second, along * second - across * first]) / (along * d - across.square())


def runge_kutta(change: Callable[[Tensor], Tensor], entries: Tensor, tau: float) -> Tensor:
    """Return the entries after ``tau`` seconds, by one step of the method of the fourth order."""
    one = change(entries)
    two = change(entries + tau / 2 * one)
    three = change(entries + tau / 2 * two)
    return entries + tau / 6 * (one + 2 * two + 2 * three + change(entries + tau * three))


def joints(goal: Tensor) -> Tensor:
    """Return the angles ``[M, 2]``, the elbow bent as in START, at which the hand is at ``goal [M, 2]`` or nearest to it."""
    distance = goal.norm(dim=-1)
    elbow = 2 * (distance / (2 * LINK)).clamp(max=1).acos()
    return torch.stack([torch.atan2(goal[:, 1], goal[:, 0]) - elbow / 2, elbow], -1)


def computed_torque(goal: Tensor, payload: Tensor) -> Rule:
    """Return the rule that knows ``goal [M, 2]`` and ``payload [M]``: ``M(q) (k (q* - q) - d q') + C q' + friction q'``.

    In these accelerations the arm is a damped spring in each joint, whatever its inertia. Torques that are too large are
    scaled down together, so that the direction of the push remains.
    """
    wanted = joints(goal.double())[:, None]
    load = inertia(payload.double()[:, None])

    def choose(obs: Tensor) -> Tensor:
        here, velocity = angles(obs).double(), obs[..., 6:].double()
        push = STIFFNESS * (wanted - here) - DAMPING * velocity
        entries = torch.cat([here, velocity], -1).movedim(-1, 0)
        torque = torques(entries, push.movedim(-1, 0), load).movedim(0, -1) + FRICTION * velocity
        excess = (torque.abs() / torque.new_tensor(TORQUES)).amax(-1, keepdim=True).clamp(min=1)
        return (torque / excess).to(obs.dtype)

    return Rule(choose)


Family = Arm
