"""Runs that come with metarl: ``zoo:NAME`` stands for one wherever a run is named.

They lie in ``runs/zoo``, with the list of the commands that made them, and are read as data: each is a run folder with what
adapting and testing need, and the best weights alone. The package is never written: a run is copied to ``outputs/zoo/NAME``
when it is first used, and what is made of it lies there.
"""

from __future__ import annotations

import json
import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from metarl_cli.config.messages import known_options
from metarl_cli.errors import UserError
from metarl_cli.progress import note
from metarl_cli.runs.files import parse_yaml, sha256

FOLDER = Path(__file__).parent / "zoo"
PREFIX = "zoo:"
KEPT = ("run.json", "config.yaml", "tasks.json", "best.pt", "results/test.json", "results/ood.json")  # of a run folder


class Entry(BaseModel):
    """A run in ``zoo.yaml``."""

    model_config = ConfigDict(strict=True, extra="forbid")

    text: str  # what it is
    train: list[str]  # the overrides it was trained with
    adapt: list[str]  # words of ``metarl adapt`` that show it


@cache
def entries() -> dict[str, Entry]:
    """Return every run by name."""
    listed = parse_yaml((FOLDER / "zoo.yaml").read_text(encoding="utf-8"))
    return {name: Entry.model_validate(values) for name, values in listed.items()}


def shipped_json(name: str, path: str) -> dict[str, Any]:
    """Return what stands in a JSON file of a run; nothing where the run has no such file."""
    file = FOLDER / name / path
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return values


def size(name: str) -> int:
    """Return the bytes of a run."""
    return sum(path.stat().st_size for path in (FOLDER / name).rglob("*") if path.is_file())


def find(run: str | Path) -> Path:
    """Return the folder of a run; that of ``zoo:NAME`` is made in ``outputs/zoo`` where it is not there yet.

    Raises:
        UserError: if no such run comes with metarl, its folder cannot be written, or holds another run.
    """
    name = str(run).removeprefix(PREFIX)
    if name == str(run):
        return Path(run)
    if name not in entries():
        raise UserError(f"{run}: no such run comes with metarl{known_options(name, entries())} (see metarl zoo)")
    folder = Path("outputs", "zoo", name)
    try:
        if not os.path.lexists(folder):
            _copy(name, folder)
            note(f"{run} is copied to {folder}")
        same = is_shipped(folder, name)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; call it in a folder that can be written") from error
    if not same:
        raise UserError(f"{folder} is not the {run} of this version of metarl; move it away")
    return folder


def is_shipped(folder: Path, name: str) -> bool:
    """Whether a folder holds every file of a run as it comes with metarl, and no other in the place of one."""
    if name not in entries():
        return False
    files = [(folder / path, FOLDER / name / path) for path in KEPT if (FOLDER / name / path).exists()]
    return all(os.path.lexists(own) and sha256(own) == sha256(kept) for own, kept in files)


def _copy(name: str, folder: Path) -> None:
    """Copy a run whole or not at all, whoever else does the same."""
    unfinished = folder.with_name(f".{name}.{os.getpid()}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        for path in KEPT:
            if (FOLDER / name / path).exists():
                (unfinished / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(FOLDER / name / path, unfinished / path)  # without the permissions of an installed package
        unfinished.rename(folder)
    except OSError:
        if not folder.exists():
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)  # a disk was full, or another process was faster
