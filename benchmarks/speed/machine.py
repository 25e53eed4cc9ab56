"""Where and with what a measurement was made."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import peers


def describe(device: str) -> dict[str, Any]:
    """The machine: processor, cores, memory, system, and the GPU where one is used."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    found: dict[str, Any] = {
        "processor": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    if device == "cuda":
        import torch

        found["gpu"] = torch.cuda.get_device_name()
    return found


def load() -> list[float]:
    """The load averages of the last one, five and fifteen minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def revision() -> str:
    """The revision of this working tree, with a plus where files of the package or its configurations differ from it."""
    changed = peers.git("status", "--porcelain", "--", "metarl_cli", "conf").strip()
    return peers.git("rev-parse", "--short", "HEAD").decode().strip() + ("+" if changed else "")
