"""The runs to compare: those in folders, and those that files keep."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from metarl_cli.comparison import kept
from metarl_cli.comparison.saved import Saved, folders, load
from metarl_cli.errors import UserError


class Found(NamedTuple):
    """Runs, and one line on each that cannot be read."""

    runs: list[Saved]
    problems: list[str]


def find(paths: Sequence[str | Path], split: str) -> Found:
    """Read all runs in some folders, in folders within, and in files that keep runs; those in folders come first.

    Args:
        paths: run folders, folders that hold them, or files as ``metarl report format=runs`` writes them.
        split: the held-out tasks whose results are compared.

    Raises:
        UserError: if a path does not exist, or there is no run in any.
    """
    files = {Path(path).resolve(): Path(path) for path in paths if os.path.isfile(path)}
    runs, problems = list[Saved](), list[str]()
    for path in (*folders([path for path in paths if not os.path.isfile(path)]), *files.values()):
        try:
            runs += kept.read(path, split) if path.is_file() else [load(path, split)]
        except UserError as error:
            problems += [problem.text for problem in error.problems]
    if not runs:
        where = ", ".join(map(str, paths))
        raise UserError(*(problems or [f"there is no run in {where}; a run folder holds a run.json"]))
    return Found(runs, problems)
