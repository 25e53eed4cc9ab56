"""Progress reporting: long loops announce their progress, which the active display shows; the parts of work can be timed."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar, cast

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderHook
from rich.segment import Segment
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from metarl_cli.errors import visible

Item = TypeVar("Item")
Arguments = ParamSpec("Arguments")
Timer = Callable[[str], AbstractContextManager[object]]
PLAIN_EVERY = 10.0  # [s] between progress lines where there is no terminal

_listener: ContextVar[Callable[[str], None]] = ContextVar("listener", default=lambda text: None)
_notes: ContextVar[Callable[[str], None]] = ContextVar("notes", default=logging.getLogger("metarl_cli").warning)
_timer: ContextVar[Timer | None] = ContextVar("timer", default=None)


def report(text: str) -> None:
    """Say what is going on, until something else does."""
    _listener.get()(text)


def note(text: str) -> None:
    """Say something that the user should know afterwards, too: a line that stays, or a warning in the log of Python."""
    _notes.get()(visible(text))


def track(items: Iterable[Item], total: int, label: str) -> Iterator[Item]:
    """Iterate over items, reporting ``label 3/total`` before each."""
    for number, item in enumerate(items, 1):
        report(f"{label} {number}/{total}")
        yield item


@contextmanager
def listening(listener: Callable[[str], None], notes: Callable[[str], None] | None = None) -> Iterator[None]:
    """Send what is reported within the block to ``listener``, and its notes to ``notes``, if given."""
    token, token_of_notes = _listener.set(listener), _notes.set(notes or _notes.get())
    try:
        yield
    finally:
        _listener.reset(token)
        _notes.reset(token_of_notes)


def timed(name: str) -> Callable[[Callable[Arguments, Item]], Callable[Arguments, Item]]:
    """Decorate a function that is the part ``name`` of an iteration, for :func:`timing`; without one a call costs 0.2 us."""

    def decorate(function: Callable[Arguments, Item]) -> Callable[Arguments, Item]:
        @functools.wraps(function)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Item:
            timer = _timer.get()
            if timer is None:
                return function(*args, **kwargs)
            with timer(name):
                return function(*args, **kwargs)

        return call

    return decorate


@contextmanager
def timing(timer: Timer | None) -> Iterator[None]:
    """Run each call of a :func:`timed` function within the block in ``timer(name)``; none: as it is."""
    token = _timer.set(timer)
    try:
        yield
    finally:
        _timer.reset(token)


def _shown(text: str) -> Text:
    return Text(visible(text))


@contextmanager
def status(console: Console, label: str) -> Iterator[None]:
    """Show ``label`` and its progress: a spinner on a terminal, elsewhere a line at most every ``PLAIN_EVERY`` seconds."""

    def note(text: str) -> None:
        console.print(text, soft_wrap=True)

    if console.is_terminal:
        with console.status(_shown(label)) as spinner, listening(lambda text: spinner.update(_shown(f"{label}: {text}")), note):
            yield
        return
    printed = time.monotonic()

    def plain(text: str) -> None:
        nonlocal printed
        if time.monotonic() - printed >= PLAIN_EVERY:
            console.print(f"{label}: {text}", soft_wrap=True)
            printed = time.monotonic()

    with listening(plain, note):
        yield


class Appended(io.TextIOBase):
    """A text file that is open only while something is written to it; a full disk loses what was to be written.

    Args:
        path: the file.
    """

    def __init__(self, path: Path):
        self.path = path

    @override
    def write(self, text: str) -> int:
        with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        return len(text)


def log_console(path: Path) -> Console:
    """Return a console that writes to the end of a file."""
    return Plain(file=cast(IO[str], Appended(path)), width=PLAIN_WIDTH)


class LogCopy(RenderHook):
    """A hook of a console that prints on ``log``, too: texts and tables, but no display that moves.

    Args:
        log: the console of a file.
    """

    def __init__(self, log: Console):
        self.log = log

    @override
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        for renderable in renderables:
            if isinstance(renderable, Text | Table):
                self.log.print(renderable, soft_wrap=isinstance(renderable, Text))
        return renderables


PLAIN_WIDTH = 120  # [characters] of output where there is no terminal


class Plain(Console):
    """A console on which text is data: no markup, no emoji names, no colours of numbers, and nothing a terminal would obey."""

    def __init__(self, **arguments: Any):
        super().__init__(**arguments, markup=False, emoji=False, highlight=False)

    @override
    def render_str(self, text: str, **arguments: Any) -> Text:
        return super().render_str(visible(text), **arguments)

    @override
    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment("\n".join(map(visible, segment.text.split("\n"))), segment.style)


def wide_console() -> Plain:
    """Return the console of a command; its width fits every table, in a file or a pipe too."""
    console = Plain()
    return console if console.is_terminal else Plain(width=PLAIN_WIDTH)
