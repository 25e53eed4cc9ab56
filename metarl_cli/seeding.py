"""One seed makes every random stream, each derived by name: adding a stream, or drawing more from one, moves no other."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from metarl_cli.types import State


def _sequence(seed: int, *names: str) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=tuple(zlib.crc32(name.encode()) for name in names))


def numpy_rng(seed: int, *names: str) -> np.random.Generator:
    """The numpy stream of this name (task parameters, resampling)."""
    return np.random.default_rng(_sequence(seed, *names))


def torch_rng(seed: int, *names: str, device: torch.device | str = "cpu") -> torch.Generator:
    """The torch stream of this name on ``device`` (environments, exploration, initialisation, minibatches)."""
    word = int(_sequence(seed, *names).generate_state(1, np.uint64)[0]) >> 1  # manual_seed takes 63 bits
    return torch.Generator(device=device).manual_seed(word)


class Streams(dict[str, torch.Generator]):
    """The named torch streams one algorithm draws from; saved and restored with it."""

    def __init__(self, seed: int, *names: str, device: torch.device | str = "cpu"):
        super().__init__({name: torch_rng(seed, name, device=device) for name in names})

    def state_dict(self) -> State:
        return {name: rng.get_state() for name, rng in self.items()}

    def load_state_dict(self, state: State) -> None:
        for name, rng in self.items():
            rng.set_state(state[name].cpu())


class CommonNumbers(TorchFunctionMode):
    """Within it, P copies of M rows are dealt the same random numbers: what differs between copies is not chance.

    A draw whose first axis has P x M entries, or a multiple, copies first, is made for one copy and repeated. So P moves
    neither the numbers nor the state of a generator: copies can be parted and evaluated anywhere, to the same bits.

    Common random numbers compare better than independent ones (Glasserman & Yao 1992).

    Args:
        copies: P.
        rows: M.
    """

    def __init__(self, copies: int, rows: int):
        super().__init__()
        self.copies, self.rows = copies, rows

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.copies == 1 or kwargs.get("generator") is None:
            return func(*args, **kwargs)
        if func in (torch.rand, torch.randn, torch.randint):
            *bounds, size = args if func is torch.randint or not isinstance(args[0], int) else (args,)
            if not self._shared(size):
                return func(*args, **kwargs)
            draw: Callable[..., Tensor] = func
            return self._deal(draw(*bounds, (size[0] // self.copies, *size[1:]), **kwargs))
        if func in (torch.bernoulli, torch.multinomial) and self._shared(args[0].shape):
            chance, rng = args[0], kwargs["generator"]
            if func is torch.bernoulli:
                return (self._deal(torch.rand(self._one(chance).shape, generator=rng, device=rng.device)) < chance).to(chance)
            if args[1:] == (1,):  # the race of exponential clocks
                clock = torch.empty_like(self._one(chance)).exponential_(generator=rng)
                return (chance / self._deal(clock)).argmax(-1, keepdim=True)
        if func is Tensor.exponential_ and self._shared(args[0].shape):
            return args[0].copy_(self._deal(torch.empty_like(self._one(args[0])).exponential_(generator=kwargs["generator"])))
        if self._shared(args[0].shape if args and isinstance(args[0], Tensor) else ()):
            raise NotImplementedError(f"{func} draws numbers that cannot be common")
        return func(*args, **kwargs)

    def _shared(self, size: Any) -> bool:
        return len(size) > 0 and size[0] % (self.copies * self.rows) == 0

    def _one(self, value: Tensor) -> Tensor:
        return value[: len(value) // self.copies]

    def _deal(self, drawn: Tensor) -> Tensor:
        return drawn.repeat(self.copies, *[1] * (drawn.dim() - 1))
