"""Recommending items of a catalogue to a user whose taste is hidden, and who is sated by what was shown. A stylised user.

Each item has features that are the same for all users; a user has a taste for features. An item is clicked the more likely,
the better it fits the taste, and the less likely, the more of the last three recommendations it was.

Action space: the item to show, 0 to N - 1. Observation, ``[..., N]``: the satiation of each item, 1 if it was shown in the last
step, 0.6 if in the one before, 0.36 if two before, summed. Reward: 1 for a click, else 0, with the chance
``sigmoid(4 u·x - 2 satiation - 1)``, u the user's taste and x the item's features, of length 1 both. Start: nothing was shown.
Ends: at the horizon (truncated).

Task parameters: user, ``[M, d]``, the taste, uniform on the unit sphere; named user_0 to user_{d-1}. Best possible: by backward
induction over all triples of last items, exact.

Source: stylised; interest that changes by what is shown as in RecSim (Ie 2019, arXiv:1909.04847), here with three steps of
memory, so that it can be planned exactly; linear tastes as in LinUCB (Li 2010, arXiv:1003.0146). Slates, a changing catalogue
and users that leave are not here.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageDraw
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from metarl_cli.config.base import StrictModel
from metarl_cli.envs.native import NativeFamily
from metarl_cli.envs.rules import Rule
from metarl_cli.envs.tasks import Columns, TasksConfig
from metarl_cli.interfaces import Task, Transitions
from metarl_cli.spaces import Discrete, Spec, constant

APPEAL, BORE, OFFSET = 4.0, 2.0, 1.0  # of the logarithm of the odds of a click
MEMORY = (1.0, 0.6, 0.36)  # satiation by an item that was shown so many steps before; all sums differ
TOGETHER = 2**21  # histories and items of all tasks that are planned at a time, so that memory is bounded
NEWTON = 8  # steps of the rule's regression


class Config(StrictModel):
    """Horizon, catalogue and features."""

    horizon: int = Field(gt=0, description="time limit of an episode [recommendations]")
    items: int = Field(gt=1, le=20, description="N, the number of items")
    features: int = Field(gt=0, le=10_000, description="d, the number of features of an item")
    catalogue: int = Field(ge=0, description="seed of the items' features, which are the same for all users")


class Recommendation(NativeFamily):
    """Show what a user clicks; see the module's docstring."""

    differentiates = False
    stochastic = True

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        self.parameters = {f"user_{i}": float(i == 0) for i in range(config.features)}
        super().__init__(TasksConfig(ranges={}, ood_ranges={}), device)  # ``draw`` has the distribution
        self.finite = False
        drawn = _on_the_sphere(np.random.default_rng(config.catalogue), (config.items, config.features))
        self.items = torch.as_tensor(drawn, dtype=torch.get_default_dtype(), device=device)  # [N, d]
        self.spec = Spec(obs_shape=(config.items,), actions=Discrete(config.items), horizon=config.horizon)

    @override
    def draw(self, num: int, split: str, rng: np.random.Generator) -> Columns:
        return {"user": _on_the_sphere(rng, (num, len(self.parameters)))}

    @override
    def named_task(self, values: dict[str, float]) -> Task:
        return {"user": torch.stack(list(super().named_task(values).values()), -1)}

    @override
    def knowledge(self, task: Task) -> Tensor:
        """Return the taste ``[M, d]``, scaled to numbers of about 1."""
        return task["user"] * math.sqrt(len(self.parameters))

    def appeal(self, user: Tensor) -> Tensor:
        """Return the logarithms of the odds ``[..., N]`` that fresh items are clicked, for ``user [..., d]``."""
        return APPEAL * (user @ self.items.to(user.dtype).T) - OFFSET

    @override
    def constants(self, task: Task) -> Task:
        return {"appeal": self.appeal(task["user"])}

    @override
    def initial_state(self, shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
        return torch.full((*shape, len(MEMORY)), -1.0, dtype=like.dtype, device=like.device)  # the last items, -1 for none

    @override
    def dynamics(self, state: Tensor, action: Tensor, task: Task, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        chosen = action[..., None]
        bored = BORE * self.observe(state).gather(-1, chosen)[..., 0]
        odds = task["appeal"].expand(*action.shape, -1).gather(-1, chosen)[..., 0] - bored
        click = torch.rand(odds.shape, generator=rng, dtype=odds.dtype, device=odds.device) < torch.sigmoid(odds)
        state = torch.cat([chosen.to(state.dtype), state[..., :-1]], -1)
        return state, click.to(odds.dtype), torch.zeros_like(click)

    @override
    def observe(self, state: Tensor) -> Tensor:
        shown = state[..., None] == torch.arange(len(self.items), device=state.device)  # [..., 3, N]
        return (shown * constant(MEMORY, state.dtype, state.device)[:, None]).sum(-2)

    @override
    def optimum(self, task: Task) -> Tensor:
        num = max(TOGETHER // (len(self.items) + 1) ** (len(MEMORY) + 1), 1)
        parts = torch.split(task["user"], num)
        return torch.cat([self.planned(part, self.spec.horizon)[:, -1, -1, -1] for part in parts]).to(task["user"].dtype)

    def planned(self, user: Tensor, horizon: int) -> Tensor:
        """Compute the best expected clicks of H steps, by backward induction over the last three items i, j, k.

        ``V[H] = 0`` and ``V[t](i, j, k) = max over a of click(a, i, j, k) + V[t+1](a, i, j)``.

        Args:
            user: ``[M, d]``.
            horizon: H.

        Returns:
            The values ``[M, N+1, N+1, N+1]`` in double precision, of the last item first; the last index stands for none.
        """
        click = self._clicks(user.double())
        num = len(self.items) + 1
        value = click.new_zeros(len(user), num, num, num)
        for _ in range(horizon):
            value = (click + value[:, :-1, :, :, None]).amax(1)
        return value

    def _clicks(self, user: Tensor) -> Tensor:
        """Return the chance ``[M, N, N+1, N+1, N+1]`` of a click at each item after each three items, the last first."""
        num = len(self.items)
        same = BORE * torch.eye(num, num + 1, dtype=user.dtype, device=user.device)
        bored = [weight * same.view(num, *[num + 1 if i == j else 1 for j in range(3)]) for i, weight in enumerate(MEMORY)]
        return torch.sigmoid(self.appeal(user)[..., None, None, None] - sum(bored))

    @override
    def rule(self, support: Transitions) -> Rule:
        """Find the taste by logistic regression on the clicks, with a normal prior of its size, and show items as planned.

        Without a support, the user has no taste: all items are alike, and show them in turn.
        """
        size = len(self.parameters)
        feature = APPEAL * self.items[support.action].double().flatten(1, 2)  # [M, T N, d]
        bored = support.obs.gather(-1, support.action[..., None])[..., 0].double().flatten(1)
        clicked, weight = support.reward.double().flatten(1), support.weight.double().flatten(1)
        user, prior = feature.new_zeros(len(feature), size), size * torch.eye(size, dtype=feature.dtype, device=feature.device)
        for _ in range(NEWTON):
            chance = torch.sigmoid((feature @ user[..., None])[..., 0] - BORE * bored - OFFSET)
            slope = (feature.mT @ (weight * (clicked - chance))[..., None])[..., 0] - size * user
            curve = feature.mT @ (feature * (weight * chance * (1 - chance))[..., None]) + prior
            user = user + torch.linalg.solve(curve, slope)
        return self.show(user)

    def show(self, user: Tensor) -> Rule:
        """Return the rule that shows items as planned for ``user [M, d]``, as if an episode was at its start."""
        click, value = self._clicks(user.double()), self.planned(user, self.spec.horizon)
        best = (click + value[:, :-1, :, :, None]).argmax(1).flatten(1)  # [M, (N+1)^3]

        def choose(obs: Tensor) -> Tensor:
            return best.gather(1, self._history(obs))

        return Rule(choose)

    def _history(self, obs: Tensor) -> Tensor:
        """Return the number ``[M, N]`` of the last three items, in the order of ``planned``, that ``obs`` shows."""
        num, number = len(self.items), torch.zeros(obs.shape[:-1], dtype=torch.long, device=obs.device)
        for weight in MEMORY:
            there = obs > weight - 0.01
            last = torch.where(there.any(-1), there.long().argmax(-1), num)
            obs = obs - weight * there
            number = number * (num + 1) + last
        return number

    def render(self, obs: Tensor, task: Task) -> Image.Image:
        """Draw the chance of a click at each item as a bar, 300 x 100 pixels; what was shown lately is grey."""
        width, height = 300, 100
        image = Image.new("RGB", (width, height), "white")
        draw = ImageDraw.Draw(image)
        chance = torch.sigmoid(self.appeal(task["user"]).flatten() - BORE * obs).tolist()
        step = width / len(chance)
        for item, (share, sated) in enumerate(zip(chance, obs.tolist(), strict=True)):
            colour = "gray" if sated else "royalblue"
            draw.rectangle([item * step, (height - 1) * (1 - share), (item + 0.8) * step, height], fill=colour)
        draw.line([(0, height - 1), (width, height - 1)], fill="black")
        return image


def _on_the_sphere(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Draw points ``shape`` uniformly on the unit sphere."""
    drawn = rng.standard_normal(shape)
    return np.asarray(drawn / np.linalg.norm(drawn, axis=-1, keepdims=True))


Family = Recommendation
