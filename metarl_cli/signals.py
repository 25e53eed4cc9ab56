"""The signals that ask a run to stop."""

from __future__ import annotations

import signal

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)


def send_again(number: int) -> None:
    """Send the process a signal that it has received before, to another handler now; call it in the main thread.

    Whoever counts signals as they arrive (``signal.set_wakeup_fd``) does not see it: the user has sent one alone.
    """
    before = signal.set_wakeup_fd(-1)
    try:
        signal.raise_signal(number)
    finally:
        signal.set_wakeup_fd(before, warn_on_full_buffer=False)
