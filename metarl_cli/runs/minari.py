"""Datasets of Minari as demonstrations: HDF5 files, in the layout that minari.farama.org describes as its dataset standard.

    episode_<i>/observations  [T+1, ...]    actions  [T, ...]    terminations  [T]

``minari:NAME`` is the dataset of this name where Minari keeps its own: in MINARI_DATASETS_PATH, else ~/.minari/datasets. The
file is a stranger's: its size is judged, and nothing in it is followed to another file; rewards are not read.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from metarl_cli.errors import UserError
from metarl_cli.experience.recorded import Recorded
from metarl_cli.runs.files import open_regular

PREFIX = "minari:"
FILE = Path("data", "main_data.hdf5")  # of a dataset
LARGEST = 2**30  # [bytes] of a file, and of the numbers that are read
FILTERS = {1, 2, 3}  # that a dataset may be stored with: deflate, shuffle, checksum; others could be code from elsewhere
EXPANSION = 1032  # the most bytes that deflate makes of one (zlib.net/zlib_tech.html)
NUMBERS = "fiub"  # kinds of types


def dataset_file(name: str) -> Path | None:
    """Return the file of ``minari:NAME``, of a folder that holds a dataset, or of a path to one; None for other files."""
    if name.startswith(PREFIX):
        root = Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")
        return root / name.removeprefix(PREFIX) / FILE
    path = Path(name)
    if os.path.exists(path / FILE):
        return path / FILE
    return path if path.suffix in (".hdf5", ".h5") else None


def read_dataset(path: Path, most: int) -> list[Recorded]:
    """Read the episodes of a dataset, in order.

    Args:
        path: the file.
        most: episodes that it may have.

    Raises:
        UserError: if h5py is not installed, or the file cannot be read or is not in this layout.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{path}: datasets of Minari need h5py: pip install h5py") from error
    try:
        with os.fdopen(open_regular(path), "rb") as stream:
            if os.fstat(stream.fileno()).st_size > LARGEST:
                raise UserError(f"refused {path}: it has more than {LARGEST / 1e9:.0f} GB")
            with h5py.File(stream, "r", rdcc_nbytes=0) as file:  # each part is read once, and no chunk is kept
                names = sorted((name for name in file if name.startswith("episode_")), key=_number)
                if not 0 < len(names) <= most:
                    raise ValueError(f"there are {len(names):,} episodes, and there can be 1 to {most:,}")
                left, episodes = LARGEST, list[Recorded]()
                for name in names:
                    episode, size = _episode(h5py, file, name, left)
                    left -= size
                    episodes.append(episode)
                return episodes
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        raise UserError(f"{path}: no dataset of Minari that can be read: {error}") from error


def _episode(h5py: Any, file: Any, name: str, most: int) -> tuple[Recorded, int]:
    """Read an episode; returns the bytes of its numbers, too.

    Raises:
        ValueError: if these are more than ``most``, or a part is missing or does not fit the others.
    """
    group = _own(h5py, file, name, h5py.Group)
    parts = [_own(h5py, group, part, h5py.Dataset) for part in ("observations", "actions", "terminations")]
    size: int = sum(part.size * part.dtype.itemsize for part in parts)
    if size > most or max(map(_chunk, parts)) > LARGEST:
        raise ValueError(f"its numbers have more than {LARGEST / 1e9:.0f} GB")
    observations, actions, ends = (np.asarray(part[()]) for part in parts)
    if ends.shape != actions.shape[:1]:
        raise ValueError(f"{group.name} has actions {list(actions.shape)} and terminations {list(ends.shape)}")
    return Recorded(observations, actions, bool(ends.any())), size


def _number(name: str) -> int:
    return int(name.removeprefix("episode_"))


def _own(h5py: Any, holder: Any, name: str, kind: Any) -> Any:
    """Return a part of a group, which lies in the file itself.

    Raises:
        ValueError: if it is missing, lies elsewhere, or is no table of numbers.
    """
    if not isinstance(holder.get(name, getlink=True), h5py.HardLink) or not isinstance(part := holder[name], kind):
        raise ValueError(f"{holder.name}: {name} is missing or no part of the file")
    if kind is h5py.Dataset:
        filters = _filters(part)
        unknown = set(filters) - FILTERS or len(filters) > len(set(filters))
        numbers = part.dtype.kind in NUMBERS and part.dtype.itemsize <= 8  # no tensor holds longer ones
        if part.is_virtual or part.external or unknown or not numbers or not part.shape:
            raise ValueError(f"{part.name} is no plain table of numbers")
    return part


def _filters(part: Any) -> list[int]:
    stored = part.id.get_create_plist()
    return [stored.get_filter(i)[0] for i in range(stored.get_nfilters())]


def _chunk(part: Any) -> int:
    """Return the most bytes that reading a chunk takes: what it stands for, or what is stored of it when it is inflated.

    HDF5 inflates all that is stored, be it more than the chunk stands for.
    """
    if part.chunks is None:
        return 0
    whole: int = math.prod(part.chunks) * part.dtype.itemsize
    stored = [0]
    if _filters(part):
        part.id.chunk_iter(lambda chunk: stored.append(chunk.size))
    return max(whole, EXPANSION * max(stored))
