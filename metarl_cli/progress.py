"""How far long work is, told by whoever does it to whoever shows it."""

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


def counted(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """``items``, each told of as it begins: "``what`` 3/``total``"."""
    for number, item in enumerate(items, 1):
        _listener.get()(f"{what} {number}/{total}")
        yield item


@contextmanager
def told(listener: Callable[[str], None]) -> Iterator[None]:
    """Within it the ``listener`` is told what is counted."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def working(console: Console, what: str) -> Iterator[None]:
    """Show what goes on, and how far it is: beside a spinner on a terminal, as a plain line now and then elsewhere."""
    if console.is_terminal:
        with console.status(what) as status, told(lambda text: status.update(f"{what}: {text}")):
            yield
        return
    printed = time.monotonic()

    def plain(text: str) -> None:
        nonlocal printed
        if time.monotonic() - printed >= PLAIN_EVERY:
            console.print(f"{what}: {text}", soft_wrap=True)
            printed = time.monotonic()

    with told(plain):
        yield
