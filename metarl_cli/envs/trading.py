"""Trading one asset whose returns follow a hidden trend or reversal, at a hidden cost. A stylised process, and no market.

Returns are a first-order autoregression: ``r' = phi r + e`` with e normal. Above 0, phi makes a move go on (momentum), below 0
it is taken back (reversal): who does not know the sign cannot earn. Each change of position costs.

Action space: 0 short, 1 flat, 2 long: the position p' of -1, 0 or 1 that is held over the next step.

Observation, ``[..., 2]``:

| index | meaning | unit | bounds |
|---|---|---|---|
| 0 | the last return r | standard deviations of e | - |
| 1 | the position p | - | ±1 |

Reward: ``p' r' - cost |p' - p|`` [standard deviations of e]. Start: r standard normal, p = 0. Ends: at the horizon (truncated).

Task parameters: phi, the share of a return that goes on in the next, within ±0.99; cost of a change of position by 1 [standard
deviations of e], 0 or more. Best possible: by backward induction over a grid of returns and the three positions, exact to about
0.1 %. Robust: more than 0, which is not to trade. No act on r alone earns from an unknown sign, but p remembers a little: who
buys or sells after a return beyond ±2 in its direction, and gives up after one below -1 for the position, earns about 2.7 in
50 steps.

Source: stylised; autocorrelated returns with costs as in Gârleanu and Pedersen 2013 (doi:10.1111/jofi.12080), there with
quadratic costs and a closed form, here with proportional costs and three positions. Real returns have little autocorrelation,
fat tails and changing variance; none of it is here.
"""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from metarl_cli.envs.native import NativeConfig, columns
from metarl_cli.envs.positions import ACTIONS, POSITIONS, PositionFamily, earned
from metarl_cli.envs.rules import Rule, regress
from metarl_cli.interfaces import Task, Transitions
from metarl_cli.spaces import Spec

LARGEST = 0.99  # of phi in size: at 1 returns have no finite variance
POINTS = 241  # of the grid of returns, on both sides of 0
SPREAD = 6.0  # standard deviations of stationary returns that the grid reaches to
LEAST_COST = 1e-6  # that the rule reads, so that where nothing is earned it stays as it is
TOGETHER = 32  # tasks that are planned at a time, so that memory is bounded


class Config(NativeConfig):
    """Horizon and the ranges of phi and cost."""


class Trading(PositionFamily):
    """Trade with a trend or against it; see the module's docstring."""

    parameters = {"phi": 0.5, "cost": 0.1}
    stochastic = True

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        super().__init__(config, device)
        self.spec = Spec(obs_shape=(2,), actions=ACTIONS, horizon=config.horizon)

    @override
    def check(self, name: str, value: float) -> None:
        super().check(name, value)
        if name == "phi" and abs(value) > LARGEST:
            raise ValueError(f"phi must be within ±{LARGEST:g}, got {value:g}")
        if name == "cost" and value < 0:
            raise ValueError(f"cost must be 0 or more, got {value:g}")

    @override
    def initial_state(self, shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
        last = torch.randn(shape, generator=rng, dtype=like.dtype, device=like.device)
        return columns(last, torch.zeros_like(last))

    @override
    def dynamics(self, state: Tensor, action: Tensor, task: Task, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        last, before = state.unbind(-1)
        held = action.to(state.dtype) - 1
        after = task["phi"] * last + torch.randn(last.shape, generator=rng, dtype=last.dtype, device=last.device)
        reward = earned(held, before, after, task["cost"])
        return columns(after, held), reward, torch.zeros_like(reward, dtype=torch.bool)

    @override
    def optimum(self, task: Task) -> Tensor:
        parts = zip(*(torch.split(task[name], TOGETHER) for name in ("phi", "cost")), strict=True)
        best = [_started(*planned(phi, cost, self.spec.horizon)) for phi, cost in parts]
        return torch.cat(best).to(task["phi"].dtype)

    @override
    def rule(self, support: Transitions) -> Rule:
        """Read phi from how returns follow each other and cost from what changes cost; act as planned, far from the end.

        Without a support, returns have no trend: do not trade.
        """
        last, before, after, held = support.obs[..., 0], support.obs[..., 1], *support.next_obs.unbind(-1)
        phi = regress(last[..., None], after, support.weight)[:, 0].clamp(-LARGEST, LARGEST)
        changed = (held - before).abs()
        cost = regress(changed[..., None], held * after - support.reward, support.weight)[:, 0].clamp(min=LEAST_COST)
        return act_on(phi, cost, self.spec.horizon)


def planned(phi: Tensor, cost: Tensor, horizon: int) -> tuple[Tensor, Tensor]:
    """Compute the best expected return of H steps by backward induction (Bellman 1957), for each task in double precision.

    ``V[H] = 0`` and ``V[t](r, p) = max over p' of phi r p' - cost |p' - p| + E[V[t+1](phi r + e, p')]``, where the expectation
    is a sum over the grid, with the weights of the normal density.

    Args:
        phi: ``[M]``.
        cost: ``[M]``.
        horizon: H.

    Returns:
        The grid of returns ``[M, G]``, and the values ``[M, G, 3]`` of each return and position.
    """
    phi, cost = phi.double(), cost.double()
    unit = torch.linspace(-1, 1, POINTS, dtype=torch.float64, device=phi.device)
    grid = SPREAD * unit / (1 - phi.square()).sqrt()[:, None]
    to = torch.softmax(-(grid[:, None, :] - (phi[:, None] * grid)[..., None]).square() / 2, -1)  # [M, from, to]
    value = grid.new_zeros(*grid.shape, len(POSITIONS))
    for _ in range(horizon):
        value = _worth(phi[:, None] * grid, cost, to @ value).amax(-1)
    return grid, value


def _worth(mean: Tensor, cost: Tensor, after: Tensor) -> Tensor:
    """Return the worth ``[M, G, 3, 3]`` of each position and next position, at expected returns ``mean [M, G]``.

    Args:
        mean: of the next return.
        cost: ``[M]``.
        after: the expected worth ``[M, G, 3]`` of the steps after the next, by next position.
    """
    held = mean.new_tensor(POSITIONS)
    change = (held[:, None] - held).abs()
    gain = held * mean[..., None] + after
    return gain[:, :, None] - cost[:, None, None, None] * change


def _started(grid: Tensor, value: Tensor) -> Tensor:
    """Return the expected value ``[M]`` of a standard normal return, without a position."""
    start = torch.softmax(-grid.square() / 2, -1)
    return (start * value[..., 1]).sum(-1)


def act_on(phi: Tensor, cost: Tensor, horizon: int) -> Rule:
    """Return the rule that acts as if H steps were left, at ``phi [M]`` and ``cost [M]``."""
    grid, value = planned(phi, cost, horizon)
    trend, charge = phi.double()[:, None], cost.double()

    def choose(obs: Tensor) -> Tensor:
        mean = trend * obs[..., 0].double()  # [M, N]
        near = ((mean - grid[:, :1]) / (grid[:, 1] - grid[:, 0])[:, None]).round().long().clamp(0, POINTS - 1)
        after = value.gather(1, near[..., None].expand(-1, -1, len(POSITIONS)))
        worth = _worth(mean, charge, after)
        before = (obs[..., 1] + 1).long()[..., None, None].expand(*mean.shape, 1, len(POSITIONS))
        return worth.gather(2, before)[:, :, 0].argmax(-1)

    return Rule(choose)


Family = Trading
