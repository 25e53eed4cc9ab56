"""The command in a process of its own, forked from one that has imported what it needs: no new interpreter for each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from unittest import mock

PATIENCE = 300  # [s] until a test gives up waiting: only a failure takes so long, however busy the machine
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["metarl_cli.cli.train", "metarl_cli.cli.test", "metarl_cli.cli.adapt", "torch._dynamo", "matplotlib.backends.backend_agg"]
)


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition.

    Raises:
        AssertionError: if it does not come true, with ``what`` was waited for.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE} seconds"
        time.sleep(0.005)


def _kill_after(checkpoints: int, share: float) -> None:
    """Have this process end by SIGKILL after a number of checkpoints and a share of the time between the last two."""
    from metarl_cli.runs import checkpoint

    save, times = checkpoint.save, [time.perf_counter()]

    def saving(path, *more):
        save(path, *more)
        if Path(path).name == "last.pt":
            times.append(time.perf_counter())
        if len(times) == checkpoints + 1:
            delay = share * (times[-1] - times[-2])
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

    checkpoint.save = saving


def _hang_after(steps: int) -> None:
    """Have this process compute for ever after a number of training steps."""
    from metarl_cli.algos import maml

    train_step, done = maml.Algo.train_step, iter(range(steps))

    def hanging(self):
        while next(done, None) is None:
            time.sleep(0.01)
        return train_step(self)

    maml.Algo.train_step = hanging


def _child(
    arguments: tuple[str, ...],
    cwd: str,
    environment: dict[str, str],
    out: str,
    err: str,
    kill: tuple[int, float] | None,
    hang: bool,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    from metarl_cli.cli.main import main

    if kill:
        _kill_after(*kill)
    if hang:
        _hang_after(5)
    sys.argv = ["metarl", *arguments]
    sys.exit(main())


def start(
    *arguments: str,
    cwd: Path,
    out: str = os.devnull,
    err: str = os.devnull,
    kill: tuple[int, float] | None = None,
    hang: bool = False,
) -> BaseProcess:
    """``metarl ARGUMENTS``, begun; ``kill``, ``is_alive``, ``join`` and ``exitcode`` are those of ``multiprocessing``.

    With ``kill=(checkpoints, share)`` it is killed after so many checkpoints, and a share of the time from one to the next.
    With ``hang`` it computes for ever after a few training steps.
    """
    with mock.patch.dict(os.environ, ONE_THREAD):
        forkserver.ensure_running()  # which imports torch
        process = FORKS.Process(target=_child, args=(arguments, str(cwd), dict(os.environ), out, err, kill, hang), daemon=True)
    process.start()
    return process


def metarl(*arguments: str, cwd: Path, timeout: float = PATIENCE) -> CompletedProcess[str]:
    """``metarl ARGUMENTS`` from its beginning to its end."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = start(*arguments, cwd=cwd, out=str(out), err=str(err))
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutExpired(["metarl", *arguments], timeout, out.read_text(), err.read_text())
        return CompletedProcess(["metarl", *arguments], process.exitcode, out.read_text(), err.read_text())
