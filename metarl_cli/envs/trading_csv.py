"""Trading one asset along prices of one's own, from a CSV file: each task is a window of time. A replay, and no market.

The prices' logarithmic returns are cut by time: the windows of training tasks come before those of validation tasks, and these
before those of test tasks, so that no return is in two splits. What returns are measured in, their standard deviation, is that
of the training split. The replay answers no order: who trades much would move real prices.

Action space: 0 short, 1 flat, 2 long: the position p' of -1, 0 or 1 that is held over the next step.

Observation, ``[..., lookback + 1]``: the last returns of the window, the latest first, 0 where the window has not yet begun
[standard deviations]; and the position p.

Reward: ``p' r' - cost |p' - p|`` [standard deviations]. Start: before the window's first return, p = 0. Ends: at the horizon,
with the window (truncated).

Task parameters: returns, ``[M, H]``, those of the window, named by the row ``start`` of the file's returns at which it begins;
cost of a change of position by 1 [standard deviations], 0 or more. Best possible: of who knows the returns to come, by dynamic
programming: nobody gets near it.

An episode replays its window, so that a policy that adapts on a support or in an earlier episode has seen what comes. What a
trader would get is the return of the first episode: before any gradient step, or of ``algo=rl2 algo.episodes=1``, whose memory
adapts while time goes on.

Without a file, prices are made up: returns whose trend, as that of ``trading``, turns every 250 steps.
"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import override

from metarl_cli.config.base import StrictModel
from metarl_cli.envs.csv_file import read_column
from metarl_cli.envs.positions import ACTIONS, POSITIONS, PositionFamily, earned
from metarl_cli.envs.tasks import Columns, Range, TasksConfig
from metarl_cli.interfaces import Task
from metarl_cli.spaces import Spec

SPLITS = ("train", "validation", "test")  # in the order of time
MADE_UP, TURNS, TREND, MOVES = 6000, 250, 0.6, 0.01  # prices without a file, steps between turns, their phi and their size


class Config(StrictModel):
    """The prices, how they are cut, and the range of costs."""

    horizon: int = Field(gt=0, description="H, the returns of a window [rows of the file]")
    file: str | None = Field(description="CSV file of prices, in the order of time; none: made-up prices")
    column: str = Field(description="the column of the prices")
    lookback: int = Field(gt=0, description="returns that are observed")
    train: float = Field(gt=0, lt=1, description="share of the returns, from the first on, that training windows come from")
    validation: float = Field(gt=0, lt=1, description="share of the returns after these, for validation; the rest is for test")
    cost: Range = Field(description="[low, high] of the cost of a change of position [standard deviations of a return]")

    @model_validator(mode="after")
    def _something_is_left_for_test(self) -> Config:
        if self.train + self.validation >= 1:
            raise ValueError(f"train and validation must leave a share for test, got {self.train:g} + {self.validation:g}")
        self.tasks()
        return self

    def tasks(self) -> TasksConfig:
        """Return the range of cost."""
        return TasksConfig(ranges={"cost": self.cost}, ood_ranges={})


class TradingCsv(PositionFamily):
    """Trade along a window of prices; see the module's docstring."""

    parameters = {"start": 0.0, "cost": 0.0}
    in_time = True

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        prices = made_up() if config.file is None else read_column(config.file, config.column)
        returns = np.diff(np.log(prices))
        self.horizon, self.lookback = config.horizon, config.lookback
        self.rows = cut(len(returns), config.train, config.validation)
        for split, (low, high) in self.rows.items():
            if high - low < config.horizon:
                of = f"{high - low} of the {len(returns)} returns of the prices"
                text = f"the {split} split has {of}, and a window {config.horizon}"
                raise ValueError(f"{text}: lower env.horizon, or take a longer file")
        unit = returns[slice(*self.rows["train"])].std()
        if not unit > 0:
            raise ValueError("the prices of the training split never change")
        self.returns = returns / unit  # [R]
        super().__init__(config.tasks(), device)
        self.finite = False  # also with one cost: windows of the splits share nothing
        self.spec = Spec(obs_shape=(config.lookback + 1,), actions=ACTIONS, horizon=config.horizon)

    @override
    def check(self, name: str, value: float) -> None:
        super().check(name, value)
        last = len(self.returns) - self.horizon
        if name == "start" and not (0 <= value <= last and value == int(value)):
            raise ValueError(f"start must be a whole number from 0 to {last}, a return of the file, got {value:g}")
        if name == "cost" and value < 0:
            raise ValueError(f"cost must be 0 or more, got {value:g}")

    @override
    def draw(self, num: int, split: str, rng: np.random.Generator) -> Columns:
        unit = rng.random((num, 2))
        low, high = self.rows[split]
        start = low + (unit[:, 0] * (high - low - self.horizon + 1)).astype(int)
        return {"returns": self.windows(start), "cost": self.distributions["cost"].sample(unit[:, 1])}

    def windows(self, start: np.ndarray) -> np.ndarray:
        """Return the returns ``[num, H]`` of the windows that begin at ``start [num]``."""
        return np.asarray(self.returns[start[:, None] + np.arange(self.horizon)])

    @override
    def named_task(self, values: dict[str, float]) -> Task:
        task = super().named_task(values)
        window = self.windows(task["start"].long().cpu().numpy())
        return {"returns": torch.as_tensor(window, dtype=task["cost"].dtype, device=self.device), "cost": task["cost"]}

    @override
    def knowledge(self, task: Task) -> Tensor:
        """Return the returns to come and the cost's place in its range, ``[M, H + 1]``."""
        return torch.cat([task["returns"], self.distributions["cost"].standard(task["cost"])], -1)

    @override
    def untrained(self, values: dict[str, float]) -> list[str]:
        low, high = self.rows["train"]
        inside = low <= values.get("start", low) <= high - self.horizon
        late = [] if inside else [f"start={values['start']:g} is a window outside the returns {low} to {high - 1} of training"]
        return late + super().untrained({name: value for name, value in values.items() if name != "start"})

    @override
    def initial_state(self, shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
        return torch.zeros(*shape, self.lookback + 2, dtype=like.dtype, device=like.device)  # returns, position, steps so far

    @override
    def dynamics(self, state: Tensor, action: Tensor, task: Task, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        seen, before, steps = state[..., : self.lookback], state[..., -2], state[..., -1]
        window = task["returns"].expand(*steps.shape, -1)
        after = window.gather(-1, steps.long()[..., None])
        held = action.to(state.dtype) - 1
        reward = earned(held, before, after[..., 0], task["cost"])
        state = torch.cat([after, seen[..., :-1], held[..., None], steps[..., None] + 1], -1)
        return state, reward, torch.zeros_like(reward, dtype=torch.bool)

    @override
    def observe(self, state: Tensor) -> Tensor:
        return state[..., :-1]

    @override
    def optimum(self, task: Task) -> Tensor:
        held = task["returns"].new_tensor(POSITIONS).double()
        change = task["cost"].double()[:, None, None] * (held[:, None] - held).abs()  # [M, before, after]
        value = change.new_zeros(len(change), len(POSITIONS))
        for gained in task["returns"].double().flip(1).unbind(1):
            value = ((gained[:, None] * held + value)[:, None] - change).amax(-1)
        return value[:, 1].to(task["cost"].dtype)


def cut(num: int, train: float, validation: float) -> dict[str, tuple[int, int]]:
    """Return the first row, and the one after the last, of each split of ``num`` rows in the order of time."""
    first, second = int(num * train), int(num * (train + validation))
    return dict(zip(SPLITS, ((0, first), (first, second), (second, num)), strict=True))


def made_up() -> np.ndarray:
    """Return prices whose returns go on for a time, and are taken back for a time, the same for all runs."""
    rng = np.random.default_rng(0)
    returns = np.zeros(MADE_UP)
    for t in range(1, MADE_UP):
        trend = TREND if t // TURNS % 2 else -TREND
        returns[t] = trend * returns[t - 1] + MOVES * rng.standard_normal()
    return np.asarray(100 * np.exp(np.cumsum(returns)))


Family = TradingCsv
