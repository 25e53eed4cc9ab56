"""Read numbers from a CSV file of anyone's: what is read is bounded, and what is wrong is named with its line."""

from __future__ import annotations

import csv
import math
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from metarl_cli.config.messages import did_you_mean
from metarl_cli.errors import visible

LARGEST = 32 * 2**20  # [bytes] of a file
SHOWN, COLUMNS = 40, 20  # characters of a cell, and names of columns, in a message


def read_column(path: str, column: str) -> np.ndarray:
    """Read one column of numbers ``[R]`` of a CSV file in UTF-8, whose first line names the columns.

    Args:
        path: of a regular file of at most 32 MiB.
        column: the name of the column.

    Raises:
        ValueError: if the file cannot be read, has no such column, or a cell is not a finite number above 0; with its line.
    """
    file = Path(path)
    try:
        if not file.is_file():
            raise ValueError(f"{visible(path)} is no file")
        if file.stat().st_size > LARGEST:
            raise ValueError(f"{visible(path)} is larger than {LARGEST // 2**20} MiB: take a part of it")
        with file.open(encoding="utf-8-sig", newline="") as lines:
            return _numbers(csv.reader(lines, strict=True), visible(path), column)
    except UnicodeDecodeError:
        raise ValueError(f"{visible(path)} is no text in UTF-8") from None
    except OSError as error:
        raise ValueError(f"{visible(path)} cannot be read: {error.strerror}") from None


def _numbers(rows: Any, name: str, column: str) -> np.ndarray:
    """Return the numbers of a column of ``rows``, the first of which has the names."""
    try:
        header = [cell.strip() for cell in next(rows, [])]
        if column not in header:
            some = [cell[:SHOWN] for cell in header[:COLUMNS]]
            known = ", ".join(map(visible, some)) + ", ..." * (len(header) > COLUMNS) or "none: it is empty"
            hint = did_you_mean(column, some)
            raise ValueError(f"{name}, line 1: no column {visible(column)}{hint or ';'} its columns: {known}")
        place, numbers = header.index(column), array("d")
        for row in rows:
            if row:  # an empty line is none
                numbers.append(_number(row, place))
    except _Wrong as wrong:
        raise ValueError(f"{name}, line {rows.line_num}: {visible(column)} {wrong}") from None
    except csv.Error as error:
        raise ValueError(f"{name}, line {rows.line_num}: {error}") from None
    return np.asarray(numbers)


class _Wrong(Exception):
    """What is wrong with a cell."""


def _number(row: list[str], place: int) -> float:
    """Return the cell of a row as a number."""
    if place >= len(row):
        raise _Wrong("is missing")
    try:
        value = float(row[place])
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise _Wrong(f"must be a number above 0, got {visible(row[place][:SHOWN]) or 'nothing'}")
    return value
