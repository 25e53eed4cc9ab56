"""Provenance of a result: time, versions of packages, revision of the source."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from metarl_cli import __version__
from metarl_cli.config.models import Job


def now() -> str:
    """Return the time in UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Return the version of every package that a result can depend on."""
    installed = {"metarl-cli": __version__, "python": platform.python_version()}
    for name in ("torch", "numpy", "gymnasium", "hydra-core", "omegaconf", "pydantic"):
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            installed[name] = "not installed"
    return installed


def command(job: Job) -> str:
    """Return the command line that repeats one ``metarl train``, be it a job of a sweep, as a shell reads it."""
    size, local = (os.environ.get(name, "1") for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    nodes = [] if size == local else ["--nnodes", str(int(size) // int(local))]
    started = ["metarl"] if size == "1" else ["torchrun", *nodes, "--nproc-per-node", local, "-m", "metarl_cli"]
    return shlex.join([*started, "train", *job.flags, *job.overrides])


def git_revision() -> str | None:
    """Return the revision of the source tree, with ``+dirty`` if it was changed; None outside a repository."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty=+dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
