"""Error lines on the terminal, a sign of life, pipes that close early, and a second signal."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator

from metarl_cli.errors import UserError, visible
from metarl_cli.runs.interrupt import TOGETHER
from metarl_cli.signals import SIGNALS

MOST_COLUMNS = 120  # of a page on a terminal: longer lines are hard to read
LAST_GRACE = 2.0  # [s] from a second signal to the end of the process, whatever it is doing


def print_error(error: UserError, where: str = "", own: bool = False) -> int:
    """Print every problem as one line, after ``where``; returns the exit code.

    Of several processes that share a run, the first prints what all of them find; each prints an error of its ``own``.
    """
    if own or os.environ.get("RANK", "0") == "0":
        for line in error_lines(error, where):
            print(line, file=sys.stderr)
    return error.exit_code


def error_lines(error: Exception, where: str = "") -> list[str]:
    """Return every problem of a user's error as one line, and any other error with its traceback."""
    if not isinstance(error, UserError):
        return [visible(line) for line in "".join(traceback.format_exception(error)).splitlines()]
    texts = (" ".join(filter(None, map(str.strip, problem.text.splitlines()))) for problem in error.problems)
    return [f"metarl: error: {visible(where + text)}" for text in texts]


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show on a terminal, while the block runs, what there is to wait for."""
    if not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":
        yield
        return
    sys.stderr.write(text)
    sys.stderr.flush()

    def erase(record: object = None) -> bool:
        sys.stderr.write("\r\x1b[2K")
        sys.stderr.flush()
        return True

    log = logging.getLogger("metarl_cli")
    log.addFilter(erase)  # before a note of progress.py is printed
    try:
        yield
    finally:
        log.removeFilter(erase)
        erase()


@contextlib.contextmanager
def closing_pipes() -> Iterator[None]:
    """Let ``| head`` end the process without a traceback while something is shown."""
    if not hasattr(signal, "SIGPIPE") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        yield
        sys.stdout.flush()
    finally:
        signal.signal(signal.SIGPIPE, before)


def write_line(text: str) -> None:
    """Write a line to the standard error from within a signal handler, which may have interrupted any other output."""
    erase = b"\r\x1b[2K" if sys.stderr.isatty() else b""
    with contextlib.suppress(OSError):
        os.write(2, erase + text.encode() + b"\n")


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Have a second signal end the process within ``LAST_GRACE``, whatever it is doing.

    The main thread handles signals between two steps of Python alone. Where it waits in foreign code, for another process or
    for a simulator that does not come back, a thread ends the process by the exit code that a shell expects.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_end_at_second, args=(reader,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)


def _leave_terminal() -> None:
    """Let what is printed go nowhere if its terminal is gone: the error would end a run that is about to save."""
    for stream in (1, 2):
        try:
            os.write(stream, b"")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def _end_at_second(reader: int) -> None:
    """Read the numbers of signals as they arrive."""
    first = None
    while numbers := os.read(reader, 64):
        for number in numbers:
            if number == signal.SIGHUP:
                _leave_terminal()
            first = first or (time.monotonic() if number in SIGNALS else None)
            if number in SIGNALS and first and time.monotonic() - first > TOGETHER:
                time.sleep(LAST_GRACE)
                if sys.stdout.isatty():
                    os.write(1, b"\x1b[?25h")  # the cursor, which a progress bar hides
                os._exit(128 + number)
    os.close(reader)
