"""What contenders run with: virtual environments of peers, made once, and checkouts of metarl's revisions."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import venv
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "benchmarks" / "peers"
METARL = "metarl"  # the environment that runs the benchmarks


def folder() -> Path:
    """Where environments and checkouts are kept: ``METARL_PEERS``, or the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("METARL_PEERS", cache / "metarl-peers"))


def git(*words: str) -> bytes:
    """The output of a command of git in this repository."""
    return subprocess.run(["git", "-C", str(ROOT), *words], check=True, capture_output=True).stdout


def python(environment: str) -> Path:
    """The interpreter of an environment, which is installed from ``benchmarks/peers`` if it is not there yet."""
    if environment == METARL:
        return Path(sys.executable)
    requirements = REQUIREMENTS / f"{environment}.txt"
    place = folder() / f"{environment}-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:8]}"
    found, complete = place / "bin" / "python", place / "complete"
    if not complete.exists():
        print(f"installing {requirements.relative_to(ROOT)} in {place}", file=sys.stderr, flush=True)
        venv.create(place, with_pip=True, clear=True)
        subprocess.run([found, "-m", "pip", "install", "-qq", "-r", requirements], check=True, stdout=sys.stderr)
        complete.touch()
    return found


def lacking(environment: str) -> str:
    """Why an environment cannot be had, or nothing where it can."""
    try:
        python(environment)
    except subprocess.CalledProcessError:
        return f"pip could not install benchmarks/peers/{environment}.txt"
    return ""


def checkout(revision: str | None) -> Path:
    """The folder of a revision's files; without one this working tree."""
    if revision is None:
        return ROOT
    place = folder() / "revisions" / git("rev-parse", f"{revision}^{{commit}}").decode().strip()
    if not place.exists():
        part = place.with_name(f"{place.name}.part")
        with tarfile.open(fileobj=BytesIO(git("archive", place.name, "metarl_cli", "conf"))) as archive:
            archive.extractall(part, filter="data")
        part.rename(place)
    return place
