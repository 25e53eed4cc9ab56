"""Signals that ask a run to stop: the first one saves, a second one stops at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from metarl_cli.signals import SIGNALS, send_again

TOGETHER = 0.5  # [s] within which several signals are one: a launcher and a terminal may each send their own


class Interrupt:
    """Within the block, notes the first signal, so that the run can save, and raises KeyboardInterrupt at the second.

    Signals that the process ignores stay ignored: SIGINT in the background of a shell, SIGHUP under ``nohup``. Outside the main
    thread, where Python has no signals, nothing is noted.

    Args:
        noted: called at the first signal, between two steps of whatever runs then.
    """

    def __init__(self, noted: Callable[[], None]):
        self.noted = noted
        self.received: int | None = None  # the first signal
        self.since = 0.0  # its moment
        self.saved = False  # whether everything is, so that the first signal stops at once
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self.since = number, time.monotonic()
            if not self.saved:
                self.noted()
                return
        elif time.monotonic() - self.since < TOGETHER:
            return
        raise KeyboardInterrupt

    def __exit__(self, *exc: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def hand_on(self) -> None:
        """Send the noted signal again, to its handler of before; call it after the block."""
        if self.received is not None:
            send_again(self.received)
