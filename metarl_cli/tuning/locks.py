"""Locks between processes that end with the process which holds them, even a killed one."""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from pathlib import Path
from typing import IO

from metarl_cli.errors import UserError
from metarl_cli.runs.files import open_regular


class Lock:
    """A file that one process holds until it lets go or ends.

    Args:
        path: the file.
        wait: whether to wait for another process.

    Raises:
        BlockingIOError: if another process holds it.
        UserError: if the file system has no locks, or it cannot be written.
    """

    def __init__(self, path: Path, wait: bool = False):
        try:
            self.file: IO[bytes] = os.fdopen(open_regular(path, os.O_RDWR | os.O_CREAT), "rb+")
            weakref.finalize(self, self.file.close)
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BaseException:
                self.file.close()
                raise
        except BlockingIOError:
            raise
        except OSError as error:
            hint = (
                "" if error.errno in (errno.EACCES, errno.ENOSPC, errno.EROFS) else "; a study needs a file system with locks"
            )
            raise UserError(f"cannot lock {path}: {error.strerror}{hint}") from error

    def release(self) -> None:
        """Let other processes have it."""
        self.file.close()
