"""Checkpoints: tensors and plain values, written whole or not at all, read without running anything.

Written to a temporary file, flushed to disk, renamed. Read with ``weights_only=True``: pickled code is refused, and so is a
text that could name code, an interpolation or a place outside the run folder.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from metarl_cli.errors import UserError
from metarl_cli.interfaces import State

FORMAT = 2
UNSAFE = re.compile(r"_target_|\$\{|^[/\\~]|^[A-Za-z]:[/\\]|(^|[/\\])\.\.([/\\]|$)")


def write_whole(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``: a crash leaves the old file or the new one, never a part.

    Raises:
        UserError: if the content cannot be written (disk full, no permission); the old file stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        kept = f"; the last good one is still there: {path}" if path.exists() else ""
        raise UserError(f"cannot write {path}: {error.strerror or error}{kept}") from error


def save(path: Path, state: State) -> None:
    """Write a checkpoint atomically.

    Raises:
        UserError: if it cannot be written.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    write_whole(path, buffer.getvalue())


def load(path: Path) -> State:
    """Read a checkpoint; its tensors are on the CPU.

    Raises:
        UserError: if it is missing, damaged, of another format, or holds anything but tensors and plain values.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return decode(content, str(path))


def decode(content: bytes, where: str) -> State:
    """What :func:`save` wrote, from the bytes found ``where``; raises as :func:`load` does."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:  # torch.load itself checks no sums
            if archive.testzip() is not None:
                raise zipfile.BadZipFile
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file makes the reader raise
        reason = "it holds pickled code" if "weights_only" in str(error).lower() else "it is damaged or cut short"
        raise UserError(f"refused {where}: {reason}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"refused {where}: not a metarl checkpoint of format {FORMAT}")
    refuse_unsafe(state, where)
    return state


def refuse_unsafe(value: Any, where: str) -> None:
    """Check every text in ``value``, keys included.

    Raises:
        UserError: for ``_target_``, an interpolation, an absolute path or one with ``..``.
    """
    for text in _texts(value, set()):
        if UNSAFE.search(text):
            raise UserError(f"refused {where}: it names something it must not: {text[:80]!r}")


def _texts(value: Any, seen: set[int]) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple | set | frozenset) and id(value) not in seen:
        seen.add(id(value))  # once each: YAML's aliases can refer to themselves
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _texts(item, seen)
