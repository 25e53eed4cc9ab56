"""Files of a run folder, which may be a stranger's: regular files alone, judged before they are used, written whole.

Everything in a run folder is opened here. No link is followed, nothing is truncated, and the size of a file is judged before
memory is taken for it. What stands in a file is compared with what was written: JSON files hold their own checksum.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from metarl_cli.config.messages import one_line
from metarl_cli.errors import DiskFault, UserError

LARGEST_TEXT = 2**26  # [bytes] of a configuration, a manifest or a result
MOST_VALUES = 100_000  # in a YAML file, each alias counted with all that it stands for
CHECKSUM = "checksum"  # key of a JSON file

Value = TypeVar("Value")


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a regular file, without following a link; returns its descriptor.

    Raises:
        UserError: if it is a link, a folder, a pipe or a device.
        OSError: if it cannot be opened.
    """
    if path.is_symlink():
        raise UserError(f"refused {path}: it is a link; a run folder holds files and folders alone")
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)  # a pipe would be waited for
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"refused {path}: it is no regular file")
    return descriptor


def refuse_links(folder: Path) -> None:
    """Check everything within a folder.

    Raises:
        UserError: for the first thing that is neither a regular file nor a folder.
    """
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(place, name)
            try:
                mode = path.lstat().st_mode
            except OSError:  # gone since: the temporary file of a process that writes
                continue
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                kind = "a link" if stat.S_ISLNK(mode) else "no regular file"
                raise UserError(f"refused {path}: it is {kind}; a run folder holds files and folders alone")


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            yield file
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def read(path: Path, largest: int = LARGEST_TEXT) -> bytes:
    """Read a file of at most ``largest`` bytes.

    Raises:
        UserError: if it cannot be read, is no regular file, or is larger.
    """
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > largest:
            raise UserError(f"refused {path}: it has {size / 1e6:,.0f} MB, more than the {largest / 1e6:,.0f} MB there can be")
        return file.read(size)  # a greater number would be allocated at once


def memory() -> int:
    """Return the bytes of memory that the machine has; the most that a checkpoint can have."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        UserError: if it cannot be read, or is no regular file.
    """
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parse(path: Path, parse: Callable[[str], Value]) -> Value:
    """Read and parse a text; whatever the parser raises for a damaged or hostile one becomes one line."""
    content = read(path)
    try:
        return parse(content.decode())
    except (ValueError, OverflowError, yaml.YAMLError) as error:  # a text that is no UTF-8 is a ValueError, too
        raise UserError(f"cannot read {path}: {one_line(error)}") from error
    except RecursionError as error:
        raise UserError(f"cannot read {path}: it is nested too deeply") from error


def read_yaml(path: Path) -> Any:
    """Read a YAML file of plain values.

    Raises:
        UserError: if it cannot be read, or its aliases stand for more values than it may hold.
    """
    return _parse(path, parse_yaml)


def parse_yaml(text: str) -> Any:
    """Parse YAML of plain values.

    Raises:
        ValueError: if its aliases stand for more than ``MOST_VALUES`` values, or for what they stand in.
        yaml.YAMLError: if it is no YAML.
    """
    check_aliases(text)
    return yaml.safe_load(text)


def check_aliases(text: str) -> None:
    """Judge a YAML text before it is read.

    Raises:
        ValueError: if its aliases stand for more than ``MOST_VALUES`` values, or for what they stand in.
        yaml.YAMLError: if it is no YAML.
    """
    if node := yaml.compose(text, yaml.SafeLoader):
        _count(node, {})


def _count(node: yaml.Node, counts: dict[int, int | None]) -> int:
    """Count the values of a node, those behind an alias each time; ``counts`` are those of the nodes seen so far."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) in counts:
        if (known := counts[id(node)]) is None:
            raise ValueError("an alias stands for what it stands in")
        return known
    counts[id(node)] = None
    pairs = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
    total = 1 + sum(_count(part, counts) for part in pairs)
    if total > MOST_VALUES:
        raise ValueError(f"it holds more than {MOST_VALUES:,} values")
    counts[id(node)] = total
    return total


def _checksum(values: Mapping[str, Any]) -> str:
    """Return a hash of JSON values, their checksum left out."""
    text = json.dumps({key: value for key, value in values.items() if key != CHECKSUM}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_json(path: Path, model: type[BaseModel], complete: bool = True) -> dict[str, Any]:
    """Read what :func:`write_json` wrote.

    Args:
        path: the file.
        model: the form of its values.
        complete: whether it is all that was written, so that its checksum must be right.

    Raises:
        UserError: if it cannot be read, does not have the form of ``model``, or is not as it was written.
    """
    values = _parse(path, json.loads)
    try:
        model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"refused {path}: {f'{place}: ' if place else ''}{one_line(first['msg'])}") from error
    checked: dict[str, Any] = values
    if complete and checked.get(CHECKSUM) != _checksum(checked):
        raise UserError(f"refused {path}: it is damaged, or was changed by hand: its checksum is wrong")
    return checked


def write_json(path: Path, values: Mapping[str, Any], model: type[BaseModel]) -> None:
    """Write values as a JSON file with a checksum, whole or not at all; :func:`read_json` reads it with the same ``model``.

    Raises:
        DiskFault: if it cannot be written.
        ValidationError: if it could not be read again.
    """
    plain = json.loads(json.dumps(values))  # what a reader will see: lists for tuples, texts for keys
    model.model_validate(plain)
    write_whole(path, (json.dumps({**plain, CHECKSUM: _checksum(plain)}, indent=1) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Replace the file ``path`` atomically by ``content``: a crash leaves the old file or the new one.

    Raises:
        DiskFault: if the content cannot be written (disk full, no permission); the old file is kept.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with os.fdopen(open_regular(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
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
        raise DiskFault(f"cannot write {path}: {error.strerror or error}{kept}") from error
