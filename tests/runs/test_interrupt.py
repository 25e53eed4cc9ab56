"""The first signal is noted, a second one stops at once; what the process ignores stays ignored."""

import os
import signal
import threading

import pytest

from metarl_cli.runs import interrupt as module
from metarl_cli.runs.interrupt import Interrupt
from metarl_cli.signals import SIGNALS

SELF = os.getpid()


@pytest.fixture
def moments(monkeypatch):
    """A clock that stands still until it is set."""
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    return clock


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_a_later_one_raises(number, moments):
    noted = []
    with Interrupt(lambda: noted.append(number)) as interrupt:
        os.kill(SELF, number)
        os.kill(SELF, number)  # a terminal and a launcher may both send one
        assert (noted, interrupt.received) == ([number], number)
        moments[0] += module.TOGETHER
        with pytest.raises(KeyboardInterrupt):
            os.kill(SELF, signal.SIGTERM)
    assert signal.getsignal(number) is interrupt.before[number]


@pytest.mark.parametrize("number", SIGNALS)
def test_where_everything_is_saved_the_first_signal_stops(number):
    with Interrupt(pytest.fail) as interrupt:
        interrupt.saved = True
        with pytest.raises(KeyboardInterrupt):
            os.kill(SELF, number)


@pytest.mark.parametrize("number", SIGNALS)
def test_what_is_ignored_stays_ignored(number):
    """A shell has what it starts in the background ignore SIGINT, and nohup SIGHUP."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Interrupt(pytest.fail) as interrupt:
            os.kill(SELF, number)
            assert interrupt.received is None
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_signal_goes_to_its_owner_in_the_end():
    """A job scheduler's, say, which queues the job anew; whoever counts what the user sends counts one."""
    owned = []
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    counting = signal.set_wakeup_fd(writer)
    before = signal.signal(signal.SIGUSR2, lambda number, frame: owned.append(number))
    try:
        with Interrupt(lambda: None) as interrupt:
            os.kill(SELF, signal.SIGUSR2)
            assert not owned
        interrupt.hand_on()
        assert owned == [signal.SIGUSR2]
        assert os.read(reader, 9) == bytes([signal.SIGUSR2])
        assert signal.set_wakeup_fd(counting) == writer
    finally:
        signal.set_wakeup_fd(counting)
        os.close(reader)
        os.close(writer)
        signal.signal(signal.SIGUSR2, before)


def test_a_scheduler_has_time_for_its_second_signal(monkeypatch):
    """Slurm's and submitit's: SIGTERM is let pass, SIGUSR2 has the job queued again, be the run saved by then or not."""
    monkeypatch.setattr(module, "SCHEDULER_GRACE", 5.0)
    queued = []

    def queue(number, frame):
        queued.append(number)
        raise SystemExit

    before = signal.signal(signal.SIGTERM, lambda number, frame: None), signal.signal(signal.SIGUSR2, queue)
    try:
        for early in (True, False):
            with Interrupt(lambda: None) as interrupt:
                os.kill(SELF, signal.SIGTERM)
                if early:
                    os.kill(SELF, signal.SIGUSR2)
            later = threading.Timer(0.05, os.kill, (SELF, 0 if early else signal.SIGUSR2))  # 0 is no signal
            later.start()
            with pytest.raises(SystemExit):
                interrupt.hand_on()
            later.join()
        assert queued == [signal.SIGUSR2] * 2
        monkeypatch.setattr(module, "SCHEDULER_GRACE", 0.0)
        with Interrupt(lambda: None) as interrupt:
            os.kill(SELF, signal.SIGTERM)
        assert interrupt.hand_on() is None, "nothing came: the command ends by itself"
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGUSR2, before[1])


def test_another_thread_has_no_signals():
    found = []

    def enter():
        with Interrupt(pytest.fail) as interrupt:
            found.append(interrupt.before)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [{}]
