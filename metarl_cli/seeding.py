"""One seed makes every random stream, each derived by name: adding a stream, or drawing more from one, moves no other."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

State = dict[str, Any]


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


class CommonRandomNumbers(TorchFunctionMode):
    """Within it, P copies of the same rows are dealt the same random numbers: what differs between copies is not chance.

    Every draw is for rows, P x M of them or a part of each copy's, copies first. It is made for one copy and repeated. So P
    moves neither the numbers nor the state of a generator: copies can be parted and evaluated anywhere, to the same bits.

    Common random numbers compare better than independent ones (Glasserman & Yao 1992).

    Args:
        copies: P.

    Raises:
        ValueError: within it, at a draw that cannot be for P copies.
        NotImplementedError: within it, at a draw of a kind that is not known here.
    """

    within = 0  # how many there are around what runs now

    def __init__(self, copies: int):
        super().__init__()
        self.copies = copies

    def __enter__(self) -> CommonRandomNumbers:
        CommonRandomNumbers.within += 1
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        CommonRandomNumbers.within -= 1
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.copies == 1 or kwargs.get("generator") is None:
            return func(*args, **kwargs)
        if func in (torch.rand, torch.randn, torch.randint):
            *bounds, size = args if func is torch.randint or not isinstance(args[0], int) else (args,)
            draw: Callable[..., Tensor] = func
            return self._deal(draw(*bounds, self._one(size), **kwargs))
        if func in (torch.bernoulli, torch.multinomial):
            chance, rng = args[0], kwargs["generator"]
            size = self._one(chance.shape)
            if func is torch.bernoulli:
                return (self._deal(torch.rand(size, generator=rng, device=rng.device)) < chance).to(chance)
            if args[1:] == (1,):  # the race of exponential clocks
                clock = chance.new_empty(size).exponential_(generator=rng)
                return (chance / self._deal(clock)).argmax(-1, keepdim=True)
        if func is Tensor.exponential_:
            drawn = args[0].new_empty(self._one(args[0].shape)).exponential_(generator=kwargs["generator"])
            return args[0].copy_(self._deal(drawn))
        raise NotImplementedError(f"{func} draws numbers that cannot be common")

    def _one(self, size: Any) -> tuple[int, ...]:
        """The size of one copy's part."""
        if not len(size) or size[0] % self.copies:
            raise ValueError(f"a draw of size {tuple(size)} is not one for {self.copies} copies")
        return (size[0] // self.copies, *size[1:])

    def _deal(self, drawn: Tensor) -> Tensor:
        return drawn.repeat(self.copies, *[1] * (drawn.dim() - 1))


@contextmanager
def drawing_nothing(rng: torch.Generator, otherwise: str) -> Iterator[None]:
    """Bypass :class:`CommonRandomNumbers` for code that draws no random numbers: its overhead per operation equals a small one.

    Raises:
        RuntimeError: ``otherwise``, if ``rng`` was drawn from after all within :class:`CommonRandomNumbers`.
    """
    if not CommonRandomNumbers.within:
        yield
        return
    before = rng.get_state()
    with torch._C.DisableTorchFunction():  # the public DisableTorchFunctionSubclass leaves modes on
        yield
        if not torch.equal(before, rng.get_state()):
            raise RuntimeError(otherwise)
