"""Processes that step Gymnasium environments, and the cache of idle ones."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import threading
import weakref
from abc import ABC, abstractmethod
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
from typing_extensions import override

from metarl_cli.envs.gymnasium.build import simulator
from metarl_cli.envs.gymnasium.config import Config, Row
from metarl_cli.envs.simulator import together
from metarl_cli.errors import EnvironmentFault, ProcessLost
from metarl_cli.processes import end_with_owner, patience
from metarl_cli.signals import SIGNALS

TRUTHS = bool, np.bool_
ENDING = 5.0  # [s] for a process to end that was asked to, and for its exit status to be known


class Simulators:
    """K environments of one process, each with a seed; an episode depends on the seed and the episode's number alone.

    Args:
        config: the environment.
        rows: the parameters of each environment's task.
        render: whether the first environment will be drawn.
    """

    def __init__(self, config: Config, rows: list[Row], render: bool):
        self.envs = [simulator(config, row, render and i == 0) for i, row in enumerate(rows)]
        for simulated in self.envs:
            simulated.reset(0)  # the first episode of all differs from later ones in some packages, such as PyBullet's bodies
        self.seeds, self.episodes = [0] * len(rows), [0] * len(rows)

    def _reset(self, i: int) -> np.ndarray:
        seed = np.random.SeedSequence([self.seeds[i], self.episodes[i]]).generate_state(1)[0]
        return self.envs[i].reset(int(seed) // 2)  # some simulators hold a seed in 31 bits

    def begin(self, seeds: list[int], episodes: list[int], clocks: list[int], actions: np.ndarray) -> np.ndarray:
        """Play ``actions [T, K, ...]`` up to step ``clocks`` of the ``episodes``; return the last observations ``[K, ...]``."""
        self.seeds, self.episodes = list(seeds), list(episodes)
        observations = []
        for i, clock in enumerate(clocks):
            obs = self._reset(i)
            for t in range(clock):
                obs = self.envs[i].step(actions[t, i]).obs
            observations.append(obs)
        return np.stack(observations)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, ...]:
        """Take ``actions [K, ...]`` and reset what ends; return the fields of a :class:`Step`, ``[K, ...]`` each.

        The first and the last are the same array where no episode ended.
        """
        answers, begun = [], {}
        for i, (env, action) in enumerate(zip(self.envs, actions, strict=True)):
            answer = env.act(action)
            going_on = type(answer[2]) in TRUTHS and type(answer[3]) in TRUTHS and not (answer[2] or answer[3])
            if not going_on and any((answer := env.checked(*answer))[2:]):
                self.episodes[i] += 1
                answer = (answer[0].copy(), *answer[1:])
                begun[i] = self._reset(i)
            answers.append(answer)
        next_obs, reward, terminated, truncated = map(list, zip(*answers, strict=True))
        sound = together(next_obs, reward, self.envs[0])
        if sound is None:
            checked = [answer if i in begun else self.envs[i].checked(*answer) for i, answer in enumerate(answers)]
            sound = np.stack([each[0] for each in checked]), np.array([each[1] for each in checked])
        seen, gained = sound
        obs = seen.astype(np.result_type(seen.dtype, *(first.dtype for first in begun.values()))) if begun else seen  # a copy
        for i, first in begun.items():
            obs[i] = first
        return seen, gained, np.array(terminated, bool), np.array(truncated, bool), obs

    def render(self) -> np.ndarray:
        """Draw the first environment, ``[H, W, 3]``."""
        return np.asarray(self.envs[0].env.render())

    def close(self) -> None:
        """Close every environment."""
        for simulated in self.envs:
            simulated.env.close()


class Worker(ABC):
    """Runs methods of :class:`Simulators`, in this process or in another; each ``send`` is followed by one ``receive``."""

    @abstractmethod
    def send(self, method: str, *arguments: Any) -> None:
        """Start a method."""

    @abstractmethod
    def receive(self) -> Any:
        """Wait for the method and return its result; raises what the method raised."""

    @abstractmethod
    def close(self) -> None:
        """Close the environments and end the process, if it is another."""


class LocalWorker(Worker):
    """Worker in this process; takes the arguments of :class:`Simulators`."""

    def __init__(self, *arguments: Any):
        self.simulators = Simulators(*arguments)

    @override
    def send(self, method: str, *arguments: Any) -> None:
        self.result = getattr(self.simulators, method)(*arguments)

    @override
    def receive(self) -> Any:
        return self.result

    @override
    def close(self) -> None:
        self.simulators.close()


class RemoteWorker(Worker):
    """Worker in a process of its own, which ends with this one; takes the arguments of :class:`Simulators`."""

    def __init__(self, *arguments: Any):
        self.owner, self.id = os.getpid(), arguments[0].id
        self.pipe, remote_end = multiprocessing.Pipe()
        main = threading.current_thread() is threading.main_thread()
        work = (remote_end, self.pipe, arguments, main)
        self.process = multiprocessing.Process(target=_work, args=work, daemon=True)
        self.process.start()
        remote_end.close()
        self.busy = [True]  # whether it has something to answer: at first, that it could build its environments
        # before multiprocessing terminates its children at exit, by a signal that the process ignores
        dismissal = (self.pipe, self.owner, self.process, self.busy)
        self.dismiss = multiprocessing.util.Finalize(self, _dismiss, dismissal, exitpriority=10)

    @override
    def send(self, method: str, *arguments: Any) -> None:
        self.busy[0] = True
        with contextlib.suppress(BrokenPipeError):  # ``receive`` raises the reason
            self.pipe.send((method, arguments))

    @override
    def receive(self) -> Any:
        """Wait for the method and return its result; raises what the method raised.

        Raises:
            EnvironmentFault: if the process has ended.
            ProcessLost: if it does not answer within :func:`patience`.
        """
        limit = patience()
        try:
            if not self.pipe.poll(limit):
                raise ProcessLost(f"env.id={self.id}: its process has not answered for {limit:g} s (hardware.patience)")
            result = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise EnvironmentFault(f"env.id={self.id}: it ended its process ({self._how_it_ended()})") from None
        self.busy[0] = False
        if isinstance(result, Exception):
            raise result
        return result

    def _how_it_ended(self) -> str:
        self.process.join(ENDING)
        code = self.process.exitcode
        return f"exit status {code}" if code is None or code >= 0 else f"signal {signal.Signals(-code).name}"

    @override
    def close(self) -> None:
        self.dismiss()
        if os.getpid() == self.owner:
            self.process.join(ENDING)
            self.process.kill()  # it hangs while it closes its environments
            self.process.join()


def _dismiss(pipe: Connection, owner: int, process: BaseProcess, busy: list[bool]) -> None:
    """Ask a process to end, or end it where it is busy, as it may hang."""
    if os.getpid() != owner:
        return  # a forked process drops its copy of the worker, too
    if busy[0]:
        process.kill()
    else:
        with contextlib.suppress(OSError):
            pipe.send(None)
    pipe.close()


def _work(pipe: Connection, other_end: Connection, arguments: tuple[Any, ...], from_main_thread: bool) -> None:
    """Run the methods that arrive through the pipe, until it closes or None arrives; ends with its owner."""
    end_with_owner(from_main_thread)
    signal.set_wakeup_fd(-1)  # that of the main process
    other_end.close()  # a copy of it here would keep this process waiting after the other has gone
    for number in SIGNALS:  # they are for the main process, which may save first
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux" and "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")  # it draws without a screen
    with contextlib.suppress(EOFError, OSError):  # the main process has gone
        _serve(pipe, arguments)


def _serve(pipe: Connection, arguments: tuple[Any, ...]) -> None:
    try:
        simulators = Simulators(*arguments)
    except Exception as error:
        pipe.send(error)
        return
    while (message := pipe.recv()) is not None:
        method, values = message
        try:
            result = getattr(simulators, method)(*values)
        except Exception as error:
            result = error
        pipe.send(result)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # multiprocessing ends by it what hangs when the program ends
    simulators.close()


def close_all(workers: list[Worker]) -> None:
    """Close the workers and empty the list."""
    for worker in workers:
        worker.close()
    workers.clear()


class WorkerPool:
    """Cache of idle workers, keyed by task: building simulators takes longer than the short episodes of a support set.

    Reuse changes no result, as every episode starts from its own seed.

    Args:
        most: environments kept for later.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.workers: dict[Any, list[Worker]] = {}
        self.copies: dict[Any, int] = {}  # environments of each key
        weakref.finalize(self, WorkerPool._close, self.workers)

    @staticmethod
    def _close(workers: dict[Any, list[Worker]]) -> None:
        for idle in workers.values():
            close_all(idle)

    def acquire(self, key: Any) -> list[Worker]:
        """Remove the workers of this key from the pool and return them; none where there are none."""
        self.copies.pop(key, None)
        return self.workers.pop(key, [])

    def release(self, key: Any, copies: int, workers: list[Worker]) -> None:
        """Put workers with ``copies`` environments into the pool; close the longest idle ones beyond ``most``."""
        if not workers:
            return
        close_all(self.acquire(key))
        self.workers[key], self.copies[key] = workers, copies
        while sum(self.copies.values()) > self.most:
            close_all(self.acquire(next(iter(self.workers))))
