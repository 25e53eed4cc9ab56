"""Error lines on the terminal, a sign of life, and pipes that close early."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

from metarl_cli.errors import UserError


def print_error(error: UserError, where: str = "", own: bool = False) -> int:
    """Print every problem as one line, after ``where``; returns the exit code.

    Of several processes that share a run, the first prints what all of them find; each prints an error of its ``own``.
    """
    if own or os.environ.get("RANK", "0") == "0":
        for problem in error.problems:
            print(f"metarl: error: {where}{' '.join(problem.text.split())}", file=sys.stderr)
    return error.exit_code


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show on a terminal, while the block runs, what there is to wait for."""
    if not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":
        yield
        return
    sys.stderr.write(text)
    sys.stderr.flush()
    try:
        yield
    finally:
        sys.stderr.write("\r\x1b[2K")
        sys.stderr.flush()


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
