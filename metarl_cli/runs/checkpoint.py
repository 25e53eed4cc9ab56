"""Checkpoints: tensors and plain values, written atomically, read without executing code.

A checkpoint is an archive of ``torch.save`` whose comment holds the SHA-256 of every byte before it. It is read with
``weights_only=True``, which refuses pickled code; beyond that, nothing but tensors and plain values is built, and no tensor is
larger than the file. Strings that could name code, an interpolation or a path outside the run folder are refused too. What
cannot be read is not written either.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from metarl_cli.config.messages import one_line
from metarl_cli.config.registry import UNSAFE
from metarl_cli.errors import UserError
from metarl_cli.interfaces import State
from metarl_cli.runs.files import memory, read, write_whole

FORMAT = 4
MARK, DIGITS = b"metarl sha256 ", 64  # the comment of the archive: the mark, and the hexadecimal digits
BUILT = re.compile(r"torch._utils _rebuild_tensor_v2|torch \w+Storage|collections OrderedDict")  # by reading a pickle
PLAIN = (bool, int, float, str, type(None))
CONTAINERS = (dict, OrderedDict, list, tuple)


def encode(state: State) -> bytes:
    """Encode a checkpoint.

    Raises:
        UserError: if it could not be read again.
    """
    refuse_unsafe(state, "the checkpoint")
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    return seal(buffer)


def seal(archive: io.BytesIO) -> bytes:
    """Add the SHA-256 of an archive as its comment."""
    archive.seek(-2, io.SEEK_END)  # the length of the comment
    archive.write((len(MARK) + DIGITS).to_bytes(2, "little") + MARK)
    digest = hashlib.sha256(archive.getbuffer()).hexdigest()
    archive.write(digest.encode())
    return archive.getvalue()


def save(path: Path, state: State) -> None:
    """Write a checkpoint atomically.

    Raises:
        UserError: if it cannot be written, or could not be read again.
    """
    write_whole(path, encode(state))


def load(path: Path) -> State:
    """Read a checkpoint, with its tensors on the CPU.

    Raises:
        UserError: if the file is missing, damaged, of another format, or holds anything but tensors and plain values.
    """
    return decode(read(path, memory()), str(path))


def decode(content: bytes, where: str) -> State:
    """Decode a checkpoint from the bytes that :func:`save` wrote.

    Args:
        content: the bytes.
        where: their source, for messages.

    Raises:
        UserError: as :func:`load`.
    """
    if content[-DIGITS - len(MARK) : -DIGITS] != MARK:
        raise UserError(f"refused {where}: not a metarl checkpoint of format {FORMAT}, or cut short")
    if hashlib.sha256(memoryview(content)[:-DIGITS]).hexdigest().encode() != content[-DIGITS:]:
        raise UserError(f"refused {where}: it is damaged")
    try:
        _inspect(content)
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile file can make the reader raise any error
        code = "it holds pickled code" if "weights_only" in str(error).lower() else ""
        reason = code or (str(error) if type(error) is ValueError else "it is damaged")
        raise UserError(f"refused {where}: {reason}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"refused {where}: not a metarl checkpoint of format {FORMAT}")
    refuse_unsafe(state, where, len(content))
    return state


@contextlib.contextmanager
def fitting(path: Path, reason: str = "it does not fit the run's configuration") -> Iterator[None]:
    """Take over the content of a checkpoint within the block.

    Raises:
        UserError: with the ``reason``, for what comes of values that are sound, but not those that are expected.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"refused {path}: {reason} ({type(error).__name__}: {one_line(error)})") from error


def count(value: Any) -> int:
    """Return a number of things that a checkpoint holds.

    Raises:
        ValueError: if it is none.
    """
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no number of iterations or steps")
    return value


def _inspect(content: bytes) -> None:
    """Judge an archive before it is read: torch builds what its pickle names, as large as it says.

    Raises:
        ValueError: if reading it could build anything but tensors and plain values, or unpack more than it holds.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        if len({member.filename.lower() for member in members}) != len(members):
            raise ValueError("a part of it stands there twice")
        if any(member.compress_type or member.external_attr or member.is_dir() for member in members):
            raise ValueError("a part of it is packed otherwise than a checkpoint's")
        for member in members:
            if member.filename.lower().endswith(".pkl"):
                for operation, argument, _ in pickletools.genops(archive.read(member)):
                    if operation.name == "STACK_GLOBAL" or (operation.name == "GLOBAL" and not BUILT.fullmatch(str(argument))):
                        raise ValueError(f"it holds pickled code ({argument})")


def refuse_unsafe(state: State, where: str, size: int | None = None) -> None:
    """Check everything in ``state``, keys included; ``size`` [bytes] is the most that one of its tensors may have.

    Raises:
        UserError: if a string holds ``_target_``, an interpolation, an absolute path or a path with ``..``, if a value is no
            tensor and not plain, or if a tensor is larger than the file it came from.
    """
    for leaf in _leaves(state):
        if isinstance(leaf, str) and UNSAFE.search(leaf):
            reason = "it holds a string that could name code or a path outside the run folder"
            raise UserError(f"refused {where}: {reason}: {leaf[:80]!r}")
        if type(leaf) is torch.Tensor:
            bytes_ = max(leaf.untyped_storage().nbytes(), leaf.numel() * leaf.element_size())
            if size is not None and bytes_ > size:
                raise UserError(f"refused {where}: it holds a tensor {list(leaf.shape)} that is larger than the file")
        elif type(leaf) not in PLAIN:
            raise UserError(f"refused {where}: it holds a {type(leaf).__name__}, which is neither a tensor nor a plain value")


def _leaves(value: Any) -> Iterator[Any]:
    """Yield every value that is no container, each container once: it may be nested deeply, or within itself."""
    left, seen = [value], set[int]()
    while left:
        item = left.pop()
        if type(item) not in CONTAINERS:
            yield item
        elif id(item) not in seen:
            seen.add(id(item))
            left += [*item, *item.values()] if isinstance(item, dict) else list(item)
