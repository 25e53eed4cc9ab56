"""One server and several classes of jobs that wait: whom to serve next, where costs and speeds are hidden. A stylised queue.

In each slot the server works on one class. A job that is served leaves with the chance of its class, then a job of each class
may arrive. What waits costs, each class at its own rate. To find out are the costs, from rewards, and the chances, from
departures.

Action space: the class to serve, 0 to K - 1; to serve an empty class is to idle. Observation, ``[..., K]``: the jobs that wait
in each class, / ``capacity``. Reward: minus the costs of all jobs that wait after the slot. Start: 2 to 6 jobs of each class,
all equally likely. A job that arrives where ``capacity`` jobs of its class wait is lost, at no cost. Ends: at the horizon
(truncated).

Task parameters: cost_0 to cost_{K-1} of a waiting job [1 / slot]; serve_0 to serve_{K-1}, the chance that a job in service
leaves in a slot, and arrive, the chance that a job of a class arrives in one, the same for all classes. Best possible: by
backward induction over all lengths of queues, exact (unknown beyond 16,384 states). The cμ-rule serves the greatest product
of cost and chance among the classes that wait. It is optimal where jobs are never lost; here it is worth -28.74 on 100
validation tasks, and the best is -28.76 (simulated, within 0.1).

Source: stylised; competing queues with geometric service, where the cμ-rule is optimal for arrivals of any kind (Buyukkoc,
Varaiya and Walrand 1985, Advances in Applied Probability 17; Baras, Ma and Makowski 1985, doi:10.1016/0167-6911(85)90037-4).
Jobs that cannot be interrupted, due dates and several servers are not here.
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image, ImageDraw
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import override

from metarl_cli.config.base import StrictModel
from metarl_cli.envs.native import NativeFamily
from metarl_cli.envs.rules import Rule, regress
from metarl_cli.envs.tasks import Range, TasksConfig
from metarl_cli.interfaces import Task, Transitions
from metarl_cli.spaces import Discrete, Spec

FEWEST, MOST = 2, 6  # jobs of a class at the start
STATES = 2**14  # of queues that are planned
TOGETHER = 2**20  # states of all tasks that are planned at a time, so that memory is bounded
LEAST_CHANCE = 0.01  # of a class that was never served with success, as the rule reads it


class Config(StrictModel):
    """The classes and the ranges of their costs, chances and arrivals."""

    horizon: int = Field(gt=0, description="time limit of an episode [slots]")
    classes: int = Field(gt=1, le=10_000, description="K, the number of classes of jobs")
    capacity: int = Field(ge=MOST, description="jobs of a class that can wait; later ones are lost")
    cost: Range = Field(description="[low, high] of the cost of a waiting job of each class [1 / slot]")
    serve: Range = Field(description="[low, high] of the chance that a job in service leaves in a slot, of each class")
    arrive: Range = Field(description="[low, high] of the chance that a job of a class arrives in a slot")
    ood_cost: Range = Field(description="the wider range of cost in out-of-distribution tasks")
    ood_serve: Range = Field(description="the wider range of serve")
    ood_arrive: Range = Field(description="the wider range of arrive")

    @model_validator(mode="after")
    def _ranges_are_nested(self) -> Config:
        self.tasks()
        return self

    def tasks(self) -> TasksConfig:
        """Return the ranges of cost_0 to cost_{K-1}, serve_0 to serve_{K-1} and arrive."""
        inside = _named(self.classes, self.cost, self.serve) | {"arrive": self.arrive}
        wider = _named(self.classes, self.ood_cost, self.ood_serve) | {"arrive": self.ood_arrive}
        return TasksConfig(ranges=inside, ood_ranges=wider)


class Queues(NativeFamily):
    """Serve one class of jobs at a time; see the module's docstring."""

    differentiates = False
    stochastic = True

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        self.parameters = _named(config.classes, 0.1, 0.6) | {"arrive": 0.1}
        super().__init__(config.tasks(), device)
        self.classes, self.capacity = config.classes, config.capacity
        self.spec = Spec(obs_shape=(config.classes,), actions=Discrete(config.classes), horizon=config.horizon)

    @override
    def check(self, name: str, value: float) -> None:
        super().check(name, value)
        if value < 0:
            raise ValueError(f"{name} must be 0 or more, got {value:g}")
        if value > 1 and not name.startswith("cost"):
            raise ValueError(f"{name} is a probability, got {value:g}")

    def of_classes(self, name: str, task: Task) -> Tensor:
        """Return ``cost`` or ``serve`` of all classes, ``[..., K]``."""
        return torch.stack([task[f"{name}_{k}"] for k in range(self.classes)], -1)

    @override
    def constants(self, task: Task) -> Task:
        return {"cost": self.of_classes("cost", task), "serve": self.of_classes("serve", task), "arrive": task["arrive"]}

    @override
    def initial_state(self, shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
        jobs = torch.randint(FEWEST, MOST + 1, (*shape, self.classes), generator=rng, device=like.device)
        return jobs.to(like.dtype)

    @override
    def dynamics(self, state: Tensor, action: Tensor, task: Task, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        chance = torch.rand((*action.shape, self.classes + 1), generator=rng, dtype=state.dtype, device=state.device)
        chosen = action[..., None]
        leaves = chance[..., -1:] < task["serve"].expand_as(state).gather(-1, chosen)
        waiting = state.scatter_add(-1, chosen, -leaves.to(state.dtype)).clamp(min=0)
        arrived = (chance[..., :-1] < task["arrive"][..., None]).to(state.dtype)
        state = (waiting + arrived).clamp(max=self.capacity)
        reward = -(state * task["cost"]).sum(-1)
        return state, reward, torch.zeros_like(reward, dtype=torch.bool)

    @override
    def observe(self, state: Tensor) -> Tensor:
        return state / self.capacity

    @override
    def optimum(self, task: Task) -> Tensor | None:
        states = (self.capacity + 1) ** self.classes
        if states > STATES:
            return None
        num = TOGETHER // states
        values = (self.of_classes("cost", task), self.of_classes("serve", task), task["arrive"])
        parts = zip(*(torch.split(value.double(), num) for value in values), strict=True)
        return torch.cat([self._planned(*part) for part in parts]).to(task["arrive"].dtype)

    def _planned(self, cost: Tensor, serve: Tensor, arrive: Tensor) -> Tensor:
        """Compute the best expected return ``[M]`` by backward induction over all lengths of queues.

        ``V[H] = 0`` and ``V[t](x) = max over k of serve_k W(x - e_k) + (1 - serve_k) W(x)``, with
        ``W(x) = E[V[t+1](x') - cost · x']`` over the arrivals, which are taken one class after the other; an empty class is
        served without effect.
        """
        charge = cost.new_zeros(len(cost), *[self.capacity + 1] * self.classes)  # [M, L, L, ...]
        for k in range(self.classes):
            charge = charge - self._along(k, torch.arange(self.capacity + 1, device=cost.device)) * _broad(cost[:, k], charge)
        value, chance = torch.zeros_like(charge), _broad(arrive, charge)
        for _ in range(self.spec.horizon):
            ahead = value + charge
            for k in range(1, self.classes + 1):
                ahead = ahead + chance * (_shifted(ahead, k, 1) - ahead)
            served = (ahead + _broad(serve[:, k], ahead) * (_shifted(ahead, k + 1, -1) - ahead) for k in range(self.classes))
            value = torch.stack(list(served)).amax(0)
        start = value[(slice(None), *[slice(FEWEST, MOST + 1)] * self.classes)]
        return start.flatten(1).mean(1)

    def _along(self, k: int, lengths: Tensor) -> Tensor:
        """Return the lengths ``[L]`` of class k's queue, to be broadcast over all states ``[M, L, L, ...]``."""
        return lengths.view([1] * (k + 1) + [-1] + [1] * (self.classes - 1 - k))

    @override
    def rule(self, support: Transitions) -> Rule:
        """Read costs from rewards and chances from departures, by least squares, and serve by the cμ-rule.

        A queue changes by an arrival, and by minus its chance where it was served and not empty. Without a support, all classes
        are alike: serve the first that waits.
        """
        before, after = self.capacity * support.obs, self.capacity * support.next_obs
        cost = regress(after, -support.reward, support.weight)
        busy = (before > 0) & (support.action[..., None] == torch.arange(self.classes, device=before.device))
        always = torch.ones_like(support.reward)
        rows = [torch.stack([-busy[..., k].to(before.dtype), always], -1) for k in range(self.classes)]
        changed = [regress(row, (after - before)[..., k], support.weight)[:, 0] for k, row in enumerate(rows)]
        return serve_by(cost * torch.stack(changed, -1).clamp(LEAST_CHANCE, 1))

    def render(self, obs: Tensor, task: Task) -> Image.Image:
        """Draw the queues as bars, 60 x 200 pixels each; the darker, the more a served job is worth (cμ)."""
        width, height = 60, 200
        image = Image.new("RGB", (width * self.classes, height), "white")
        draw = ImageDraw.Draw(image)
        worth = (self.of_classes("cost", task) * self.of_classes("serve", task)).flatten()
        for k, (share, dark) in enumerate(zip(obs.tolist(), (worth / worth.max().clamp(min=1e-9)).tolist(), strict=True)):
            shade = round(220 * (1 - dark))
            top = (height - 1) * (1 - share)
            draw.rectangle([k * width + 8, top, (k + 1) * width - 8, height], fill=(shade, shade, 255))
        draw.line([(0, height - 1), (width * self.classes, height - 1)], fill="black")
        return image


def serve_by(index: Tensor) -> Rule:
    """Return the rule that serves the class of the greatest ``index [M, K]`` among those with waiting jobs."""
    return Rule(lambda obs: index[:, None].expand_as(obs).masked_fill(obs <= 0, -torch.inf).argmax(-1))


def _named(classes: int, cost: Any, serve: Any) -> dict[str, Any]:
    """Return the same cost and the same chance for every class, by name."""
    return {f"cost_{k}": cost for k in range(classes)} | {f"serve_{k}": serve for k in range(classes)}


def _broad(values: Tensor, like: Tensor) -> Tensor:
    """Return ``values [M]`` with as many axes as ``like``."""
    return values.view(-1, *[1] * (like.dim() - 1))


def _shifted(values: Tensor, axis: int, by: int) -> Tensor:
    """Return the values of queues that are longer by ``by`` along an axis; at an end, those of the end."""
    size = values.shape[axis]
    index = (torch.arange(size, device=values.device) + by).clamp(0, size - 1)
    return values.index_select(axis, index)


Family = Queues
