"""The values that a search tries for a key: numbers between two bounds, or options."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import optuna

MARGIN = 0.05  # of a range, beside its ends
DIGITS = 4  # of a number that is tried: more say nothing, and make long names


class Numbers(NamedTuple):
    """Numbers between two bounds, which are among them."""

    low: float
    high: float
    log: bool  # whether their logarithm is drawn evenly
    whole: bool
    step: float | None = None

    def distribution(self) -> optuna.distributions.BaseDistribution:
        """Return the range as Optuna has it."""
        import optuna

        if self.whole:
            return optuna.distributions.IntDistribution(int(self.low), int(self.high), self.log, int(self.step or 1))
        return optuna.distributions.FloatDistribution(self.low, self.high, self.log, self.step)

    def suggest(self, trial: optuna.Trial, key: str) -> Any:
        """Return what a trial tries for a key; asked again, the same."""
        if self.whole:
            return trial.suggest_int(key, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(key, self.low, self.high, step=self.step, log=self.log)

    def written(self, value: Any) -> str:
        """Return a number of the range as it stands on the command line, rounded to what makes a difference."""
        if self.whole:
            return str(int(value))
        span = abs(value) if self.log else self.high - self.low
        digits = DIGITS - 1 - math.floor(math.log10(span)) if span else 0
        return repr(float(min(max(round(value, digits), self.low), self.high)))

    def has(self, value: Any) -> bool:
        """Whether the range holds a value of the configuration."""
        return type(value) in (int, float) and self.low <= value <= self.high and (not self.whole or value == int(value))

    def tries(self, value: Any) -> bool:
        """Whether a value is one that Optuna can have proposed."""
        return self.has(value)

    def start(self, value: Any) -> Any:
        """Return a value of the configuration, which the range holds, as Optuna has it."""
        return int(value) if self.whole else float(value)

    def ends(self) -> list[str]:
        """Return the values that are checked before the search."""
        return [self.written(self.low), self.written(self.high)]

    def at_end(self, text: str) -> bool:
        """Whether a value lies beside one of the bounds, so that a better one may lie beyond it."""
        low, value, high = (math.log(x) if self.log else x for x in (self.low, float(text), self.high))
        return not MARGIN < (value - low) / (high - low) < 1 - MARGIN

    def __str__(self) -> str:
        bounds = ", ".join(self.written(bound) for bound in (self.low, self.high))
        return f"[{bounds}]{' log' * self.log}{f' step {self.step:g}' if self.step else ''}"


class Options(NamedTuple):
    """Options, as they stand on the command line."""

    texts: tuple[str, ...]
    values: tuple[Any, ...]  # what they mean

    def distribution(self) -> optuna.distributions.BaseDistribution:
        """Return the range as Optuna has it."""
        import optuna

        return optuna.distributions.CategoricalDistribution(self.texts)

    def suggest(self, trial: optuna.Trial, key: str) -> Any:
        """Return what a trial tries for a key; asked again, the same."""
        return trial.suggest_categorical(key, self.texts)

    def written(self, value: Any) -> str:
        """Return an option as it stands on the command line."""
        return str(value)

    def has(self, value: Any) -> bool:
        """Whether a value of the configuration is an option."""
        return value in self.values

    def tries(self, value: Any) -> bool:
        """Whether a value is one that Optuna can have proposed."""
        return value in self.texts

    def start(self, value: Any) -> Any:
        """Return a value of the configuration, which is an option, as Optuna has it."""
        return self.texts[self.values.index(value)]

    def ends(self) -> list[str]:
        """Return the values that are checked before the search."""
        return list(self.texts)

    def at_end(self, text: str) -> bool:
        """Whether a better value may lie beyond the range; nobody knows."""
        return False

    def __str__(self) -> str:
        return ", ".join(self.texts)


Range = Numbers | Options


def numbers(low: float, high: float, log: bool, default: Any, step: float | None = None) -> Numbers:
    """Return the numbers between two bounds, whole ones where the key holds such.

    Args:
        low: the least.
        high: the greatest.
        log: whether their logarithm is drawn evenly.
        default: the value of the key, whose kind they have; where that is no number, the bounds have it.
        step: between two of them; none: any.

    Raises:
        ValueError: if there are none, or the key holds something else.
    """
    if isinstance(default, bool | str | list | dict):
        raise ValueError("the key holds no number; name its options: KEY=A,B,C")
    given: Sequence[float] = [low, high, *([] if step is None else [step])]
    if not all(math.isfinite(value) for value in given):
        raise ValueError("the bounds must be finite numbers")
    whole = isinstance(default, int) or (default is None and all(isinstance(value, int) for value in given))
    if whole and not all(value == int(value) for value in given):
        raise ValueError("the key holds whole numbers, and so must the range")
    if not low < high:
        swapped = f"; did you mean {high:g} to {low:g}?" if low > high else ""
        raise ValueError(f"the lower bound, {low:g}, must be below the upper one, {high:g}{swapped}")
    if log and not low >= (1 if whole else math.ulp(0.0)):
        raise ValueError(f"the lower bound, {low:g}, has no logarithm to draw; begin above 0")
    if log and step is not None:
        raise ValueError("a range with steps is not drawn by its logarithm")
    if step is not None and not 0 < step <= high - low:
        raise ValueError(f"the step, {step:g}, must be above 0 and within the range")
    return Numbers(float(low), float(high), log, whole, step)
