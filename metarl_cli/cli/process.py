"""Settings of the whole process: commands make them, and nothing else in the package does."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
from pathlib import Path

import torch

from metarl_cli.config.models import Hardware


def tune_process(hardware: Hardware) -> None:
    """Set the number of CPU threads, measure memory anew and keep that of freed tensors, have torch's profiler log warnings."""
    torch.set_num_threads(hardware.threads)
    keep_memory()
    forget_peak()
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")


def keep_memory() -> None:
    """Have the C library, where it is glibc, keep the memory of freed tensors for the next ones.

    By default it gives large blocks back at once, and the system clears them page by page whenever they are asked for again:
    most of the time of a large population (docs/speed.md). The process stays as large as its largest moment.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no block on its own
        mallopt(-1, -1)  # M_TRIM_THRESHOLD [bytes]: the heap never shrinks


def forget_peak() -> None:
    """Give the memory of an earlier job in this process back, and have the system measure the largest memory anew."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # Linux alone has it
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        for number in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(number)
