"""The journal of a study: a file of JSON lines to which several processes append, and which a killed one leaves readable.

Optuna's storage replays it. Optuna's own files are locked by a link or a file that a killed process leaves behind, and this one
by a lock that ends with the process. It offers no snapshots, which Optuna would unpickle.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metarl_cli.errors import DiskFault, UserError
from metarl_cli.runs.files import open_regular

LARGEST = 2**26  # [bytes]
MOST = 200_000  # lines: of ten thousand trials that report twenty times


class Journal:
    """A file of JSON objects, one a line: a backend of Optuna's ``JournalStorage``.

    Args:
        path: the file; need not exist yet.
    """

    def __init__(self, path: Path):
        self.path = path
        self.read, self.lines = 0, 0  # bytes and lines up to here were handed out

    @contextlib.contextmanager
    def _opened(self, lock: int) -> Iterator[int]:
        """Yield the descriptor of the file, locked until the end of the block."""
        try:
            descriptor = open_regular(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            try:
                fcntl.flock(descriptor, lock)
                yield descriptor
            finally:
                os.close(descriptor)
        except OSError as error:
            raise DiskFault(f"cannot use {self.path}: {error.strerror or error}") from error

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Return the objects from a line on; a line without an end, of a process killed while it wrote, is none.

        Raises:
            UserError: if the file is too large, or no journal.
        """
        with self._opened(fcntl.LOCK_SH) as descriptor:
            size = os.fstat(descriptor).st_size
            if size > LARGEST:
                raise UserError(
                    f"refused {self.path}: it has {size / 1e6:,.0f} MB, more than the {LARGEST / 1e6:,.0f} MB there can be"
                )
            if log_number_from != self.lines:
                self.read, self.lines = 0, 0
            content = os.pread(descriptor, size - self.read, self.read) if size > self.read else b""
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.split(b"\n")[:-1]
        skipped = max(log_number_from - self.lines, 0)
        self.read, self.lines = self.read + len(whole), self.lines + len(lines)
        if self.lines > MOST:
            raise UserError(f"refused {self.path}: it has more than the {MOST:,} lines there can be")
        return iter([self._parse(line) for line in lines[skipped:]])

    def _parse(self, line: bytes) -> dict[str, Any]:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"refused {self.path}: a line of it is no JSON") from error
        if not isinstance(values, dict):
            raise UserError(f"refused {self.path}: a line of it is no JSON object")
        return values

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write objects at the end, in the place of a line without an end.

        Raises:
            DiskFault: if they cannot be written.
        """
        content = "".join(f"{json.dumps(each)}\n" for each in logs).encode()
        with self._opened(fcntl.LOCK_EX) as descriptor:
            os.ftruncate(descriptor, end := _end(descriptor))
            try:
                written = os.write(descriptor, content)
                if written != len(content):
                    raise OSError(f"{written} of {len(content)} bytes written")
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, end)
                raise


def _end(descriptor: int) -> int:
    """Return the place after the last whole line of a file."""
    size = place = os.fstat(descriptor).st_size
    while place > 0:
        start = max(place - 4096, 0)
        block = os.pread(descriptor, place - start, start)
        if (newline := block.rfind(b"\n")) >= 0:
            return min(start + newline + 1, size)
        place = start
    return 0
