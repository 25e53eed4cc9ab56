"""The command in a process of its own, forked from one that has imported what it needs: no new interpreter for each."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from unittest import mock

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["metarl_cli.cli.train", "metarl_cli.cli.test", "metarl_cli.cli.adapt", "torch._dynamo", "matplotlib.backends.backend_agg"]
)


def _child(arguments: tuple[str, ...], cwd: str, environment: dict[str, str], out: str, err: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    from metarl_cli.cli.main import main

    sys.argv = ["metarl", *arguments]
    sys.exit(main())


def start(*arguments: str, cwd: Path, out: str = os.devnull, err: str = os.devnull) -> BaseProcess:
    """``metarl ARGUMENTS``, begun; ``kill``, ``is_alive``, ``join`` and ``exitcode`` are those of ``multiprocessing``."""
    with mock.patch.dict(os.environ, ONE_THREAD):
        forkserver.ensure_running()  # which imports torch
        process = FORKS.Process(target=_child, args=(arguments, str(cwd), dict(os.environ), out, err), daemon=True)
    process.start()
    return process


def metarl(*arguments: str, cwd: Path, timeout: float = 120) -> CompletedProcess[str]:
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
