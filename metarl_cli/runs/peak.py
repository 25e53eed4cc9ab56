"""The largest memory that a run has taken: of its process with those it has started, and on its GPU."""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

PROCESSES = Path("/proc")  # of Linux


def largest(manifest: Mapping[str, Any]) -> dict[str, int]:
    """Return the entries of a manifest [bytes]: what it says already, or what this process has taken if that is more.

    Each process is counted with its own largest moment, so that a run with simulators in processes of their own may have taken
    less. On a GPU it is what tensors took.
    """
    workers = [child.pid for child in multiprocessing.active_children() if child.pid]
    now = {"memory": _of_this_process() + sum(map(_resident, workers))}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        now["gpu_memory"] = max(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count())))
    return {name: max(value, manifest.get(name) or 0) for name, value in now.items()}


def _of_this_process() -> int:
    """Return the largest resident memory of this process [bytes]."""
    unit = 1 if sys.platform == "darwin" else 1024  # of getrusage
    return _resident(os.getpid()) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _resident(pid: int) -> int:
    """Return the largest resident memory of a process [bytes]; 0 where the system does not say it."""
    try:
        line = re.search(r"VmHWM:\s+(\d+) kB", (PROCESSES / str(pid) / "status").read_text())
    except OSError:
        return 0
    return int(line[1]) * 1024 if line else 0
