"""Progress reporting: long loops announce how far they are; the active display shows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console

Item = TypeVar("Item")
PLAIN_EVERY = 10.0  # [s] between progress lines where there is no terminal

_listener: ContextVar[Callable[[str], None]] = ContextVar("listener", default=lambda text: None)


def track(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Iterate over items, reporting "``what`` 3/``total``" before each."""
    for number, item in enumerate(items, 1):
        _listener.get()(f"{what} {number}/{total}")
        yield item


@contextmanager
def listening(listener: Callable[[str], None]) -> Iterator[None]:
    """Have ``listener`` receive what is reported within the block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def status(console: Console, what: str) -> Iterator[None]:
    """Show ``what`` is running and its progress: beside a spinner on a terminal, as a plain line now and then elsewhere."""
    if console.is_terminal:
        with console.status(what) as spinner, listening(lambda text: spinner.update(f"{what}: {text}")):
            yield
        return
    printed = time.monotonic()

    def plain(text: str) -> None:
        nonlocal printed
        if time.monotonic() - printed >= PLAIN_EVERY:
            console.print(f"{what}: {text}", soft_wrap=True)
            printed = time.monotonic()

    with listening(plain):
        yield


PLAIN_WIDTH = 120  # [characters] of what is printed where there is no terminal to fit


def wide_console() -> Console:
    """Where a command prints; wide enough for every table also in a file or a pipe."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)
