"""Checkpoints: tensors and plain values, written atomically, read without executing code.

A checkpoint is written to a temporary file, flushed to disk and renamed. It is read with ``weights_only=True``, which refuses
pickled code. Strings that could name code, an interpolation or a path outside the run folder are refused too.
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

FORMAT = 3
UNSAFE = re.compile(r"_target_|\$\{|^[/\\~]|^[A-Za-z]:[/\\]|(^|[/\\])\.\.([/\\]|$)")


def write_whole(path: Path, content: bytes) -> None:
    """Replace the file ``path`` atomically by ``content``: a crash leaves the old file or the new one.

    Raises:
        UserError: if the content cannot be written (disk full, no permission); the old file is kept.
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
            os.fsync(folder)  # makes the rename durable
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        kept = f"; the previous version is intact: {path}" if path.exists() else ""
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
    """Read a checkpoint, with its tensors on the CPU.

    Raises:
        UserError: if the file is missing, damaged, of another format, or holds anything but tensors and plain values.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return decode(content, str(path))


def decode(content: bytes, where: str) -> State:
    """Decode a checkpoint from the bytes that :func:`save` wrote.

    Args:
        content: the bytes.
        where: their source, for messages.

    Raises:
        UserError: as :func:`load`.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:  # torch.load itself does not verify the CRC
            if archive.testzip() is not None:
                raise zipfile.BadZipFile
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can make the reader raise any error
        reason = "it holds pickled code" if "weights_only" in str(error).lower() else "it is damaged or truncated"
        raise UserError(f"refused {where}: {reason}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"refused {where}: not a metarl checkpoint of format {FORMAT}")
    refuse_unsafe(state, where)
    return state


def refuse_unsafe(value: Any, where: str) -> None:
    """Check every string in ``value``, keys included.

    Raises:
        UserError: if a string holds ``_target_``, an interpolation, an absolute path or a path with ``..``.
    """
    for text in _texts(value, set()):
        if UNSAFE.search(text):
            reason = "it holds a string that could name code or a path outside the run folder"
            raise UserError(f"refused {where}: {reason}: {text[:80]!r}")


def _texts(value: Any, seen: set[int]) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple | set | frozenset) and id(value) not in seen:
        seen.add(id(value))  # each container once, as a YAML alias can refer to itself
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _texts(item, seen)
