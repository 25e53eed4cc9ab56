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
SCHEDULER_GRACE = 30.0  # [s] after SIGTERM for a job scheduler to end the process, or to send the signal to queue again


class Interrupt:
    """Within the block, notes the first signal, so that the run can save, and raises KeyboardInterrupt at the second.

    Signals that the process ignores stay ignored: SIGINT in the background of a shell, SIGHUP under ``nohup``. Outside the main
    thread, where Python has no signals, nothing is noted.

    Args:
        noted: called at the first signal, between two steps of whatever runs then.
    """

    def __init__(self, noted: Callable[[], None]):
        self.noted = noted
        self.signals: list[int] = []  # in the order of their arrival, each once
        self.since = 0.0  # its moment
        self.saved = False  # whether everything is, so that the first signal stops at once
        self.before: dict[int, Any] = {}

    @property
    def received(self) -> int | None:
        """The first signal, if there was one."""
        return self.signals[0] if self.signals else None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        first = not self.signals
        if number not in self.signals:
            self.signals.append(number)
        if first:
            self.since = time.monotonic()
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
        """Send the noted signals again, to their handlers of before; call it after the block.

        A handler that returns is a job scheduler's. Slurm announces a preemption by SIGTERM, which submitit lets pass, and by
        SIGUSR2, at which it has the job queued again: where that has a handler, there is ``SCHEDULER_GRACE`` for it to come.
        """
        for number in self.signals:
            send_again(number)
        if signal.SIGTERM in self.signals and callable(self.before.get(signal.SIGUSR2)):
            time.sleep(SCHEDULER_GRACE)
