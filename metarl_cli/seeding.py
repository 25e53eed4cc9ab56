"""Random streams: each is derived from the seed by name.

A new stream, or more draws from one stream, changes no other stream.
"""

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
    """Return the numpy stream of this name (task parameters, resampling)."""
    return np.random.default_rng(_sequence(seed, *names))


def torch_rng(seed: int, *names: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return the torch stream of this name on ``device`` (environments, exploration, initialisation, minibatches)."""
    word = int(_sequence(seed, *names).generate_state(1, np.uint64)[0]) >> 1  # manual_seed takes 63 bits
    return torch.Generator(device=device).manual_seed(word)


class Streams(dict[str, torch.Generator]):
    """The named torch streams of one algorithm; saved and restored with it."""

    def __init__(self, seed: int, *names: str, device: torch.device | str = "cpu"):
        super().__init__({name: torch_rng(seed, name, device=device) for name in names})

    def state_dict(self) -> State:
        """Return the state of every stream."""
        return {name: rng.get_state() for name, rng in self.items()}

    def load_state_dict(self, state: State) -> None:
        """Restore the streams from :meth:`state_dict`."""
        for name, rng in self.items():
            rng.set_state(state[name].cpu())


class CommonRandomNumbers(TorchFunctionMode):
    """Context in which P copies of the same rows draw the same random numbers, so that chance does not differ between copies.

    Every draw has P x M rows, or P times a subset of the M rows, copies first. The numbers are drawn for one copy and repeated.
    P therefore changes neither the numbers nor the state of a generator: copies can be split over batches and processes, and
    the results are the same to the bit.

    Common random numbers reduce the variance of comparisons (Glasserman & Yao 1992).

    Args:
        copies: P.

    Raises:
        ValueError: in the context, if the rows of a draw are not a multiple of P.
        NotImplementedError: in the context, for a random function that is not supported.
    """

    within = 0  # number of active contexts, as they nest

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
            return self._repeat(draw(*bounds, self._one(size), **kwargs))
        if func in (torch.bernoulli, torch.multinomial):
            probabilities, rng = args[0], kwargs["generator"]
            size = self._one(probabilities.shape)
            if func is torch.bernoulli:
                return (self._repeat(torch.rand(size, generator=rng, device=rng.device)) < probabilities).to(probabilities)
            if args[1:] == (1,):  # one category each: the smallest of Exp(1) / p is category a with probability p_a
                clock = probabilities.new_empty(size).exponential_(generator=rng)
                return (probabilities / self._repeat(clock)).argmax(-1, keepdim=True)
        if func in (Tensor.exponential_, Tensor.uniform_):
            tensor, *bounds = args
            return tensor.copy_(self._repeat(func(tensor.new_empty(self._one(tensor.shape)), *bounds, **kwargs)))
        raise NotImplementedError(f"random numbers of {func} cannot be common to several copies: it is not supported")

    def _one(self, size: Any) -> tuple[int, ...]:
        """Return the size of one copy's part of a draw."""
        if not len(size) or size[0] % self.copies:
            raise ValueError(f"the rows of a draw of size {tuple(size)} are not a multiple of the {self.copies} copies")
        return (size[0] // self.copies, *size[1:])

    def _repeat(self, drawn: Tensor) -> Tensor:
        return drawn.repeat(self.copies, *[1] * (drawn.dim() - 1))


@contextmanager
def without_draws(rng: torch.Generator, otherwise: str) -> Iterator[None]:
    """Bypass :class:`CommonRandomNumbers` for code that draws no random numbers: its overhead equals that of a small operation.

    Raises:
        RuntimeError: with the message ``otherwise``, if the code in the context draws from ``rng`` nevertheless; checked only
            within :class:`CommonRandomNumbers`.
    """
    if not CommonRandomNumbers.within:
        yield
        return
    before = rng.get_state()
    with torch._C.DisableTorchFunction():  # the public DisableTorchFunctionSubclass leaves modes on
        yield
        if not torch.equal(before, rng.get_state()):
            raise RuntimeError(otherwise)
