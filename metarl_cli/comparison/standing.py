"""How runs stand while a sweep goes on: done, running, failed, how long they will take."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from metarl_cli.comparison.saved import AXES, LARGEST_LOG, entry, folders, last_clock
from metarl_cli.errors import UserError
from metarl_cli.runs.files import read
from metarl_cli.runs.folder import RunFolder
from metarl_cli.runs.naming import leaves

LOCKS = Path("/proc/locks")  # of Linux: the files that processes of this machine hold
SILENT_AFTER = 600.0  # [s] without a word, after which a run that nobody here holds is thought to have been killed
ORDER = ("running", "silent", "failed", "interrupted", "created", "finished", "unreadable")
SCORE = "eval/score"  # what the best checkpoint is chosen by


class Standing(NamedTuple):
    """A run: where it is, and how far."""

    path: Path
    status: str  # one of ORDER
    iteration: int
    iterations: int | None  # None: unknown
    seconds: float  # of training so far
    best: float | None  # score on validation tasks so far
    score: float | None  # on the test tasks, of a finished run
    error: str | None  # why it failed, or cannot be read

    @property
    def left(self) -> float | None:
        """The seconds that training will go on, at its mean speed so far; None where that is unknown, or it has ended."""
        if self.status not in ("running", "silent", "interrupted") or not self.iteration or self.iterations is None:
            return None
        return self.seconds / self.iteration * max(self.iterations - self.iteration, 0)


def standings(paths: Sequence[str | Path]) -> list[Standing]:
    """Return how the runs in some folders stand, those that need attention first.

    Args:
        paths: run folders, or folders that hold them.

    Raises:
        UserError: if a folder does not exist.
    """
    return sorted(map(_standing, folders(paths)), key=lambda each: (ORDER.index(each.status), each.path))


def _standing(path: Path) -> Standing:
    try:
        folder = RunFolder(path)
        manifest = folder.manifest()
        status = manifest["status"]
        if status == "running" and not _alive(path):
            status = "silent"
        log = path / "metrics.jsonl"
        lines = read(log, LARGEST_LOG).decode(errors="replace").splitlines() if log.exists() else []
        iterations = dict(leaves(folder.values())).get("train.iterations")
    except UserError as error:
        return Standing(path, "unreadable", 0, None, 0.0, None, None, str(error))
    iterations = iterations if isinstance(iterations, int) else None
    clock = last_clock(lines, len(lines))
    scores = [values[SCORE] for line in lines if SCORE in line and SCORE in (values := entry(line))]
    iteration = int(clock.get(AXES["iterations"], 0))
    return Standing(
        path,
        status,
        iterations if status == "finished" and iterations else iteration,
        iterations,
        clock.get(AXES["seconds"], 0.0),
        max(scores, default=None),
        manifest.get("score"),
        manifest.get("error"),
    )


def _alive(path: Path) -> bool:
    """Whether a process of this machine holds a run, or somebody has written into it of late."""
    try:
        lock = (path / ".lock").stat()
        name = f"{os.major(lock.st_dev):02x}:{os.minor(lock.st_dev):02x}:{lock.st_ino}"
        if any(name in line.split() for line in LOCKS.read_text().splitlines()):
            return True
    except OSError:
        pass
    return time.time() - max(map(_written, path.iterdir()), default=0.0) < SILENT_AFTER


def _written(path: Path) -> float:
    """Return when a file was last written [s since the epoch]; 0 for a folder, and for a file that is gone since."""
    try:
        return path.stat().st_mtime if path.is_file() else 0.0
    except OSError:
        return 0.0
