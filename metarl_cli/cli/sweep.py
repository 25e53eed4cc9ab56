"""The table at the end of a sweep: each job keeps what it came to beside the record of the sweep, under any launcher."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from typing_extensions import override

from metarl_cli.errors import UserError
from metarl_cli.runs.files import write_whole

CALLBACK = f"+hydra.callbacks.sweep._target_={__name__}.Sweep"  # no configuration names code
JOBS = "jobs"  # folder of the jobs' files, in the folder of the sweep


class Sweep(Callback):
    """Notes where the record of a sweep lies, once Hydra has decided it."""

    folder: Path | None = None  # of the sweep that this process runs

    @override
    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        Sweep.folder = Path(config.hydra.sweep.dir)
        if _first():
            for path in (Sweep.folder / JOBS).glob("*.json"):  # of an earlier sweep into the same folder
                path.unlink()


def _first() -> bool:
    """Whether this process is the first of those that share the jobs."""
    return os.environ.get("RANK", "0") == "0"


def keep(hydra: Any, columns: Mapping[str, str]) -> None:
    """Keep what a job came to; of several processes that share it, the first does. On a full disk its row is lost, no more."""
    if _first():
        folder = Path(hydra.sweep.dir) / JOBS
        text = json.dumps({"overrides": list(hydra.overrides.task), "columns": columns}, indent=1)
        with contextlib.suppress(OSError, UserError):
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / f"{hydra.job.num}.json", f"{text}\n".encode())


def print_table() -> None:
    """Print a row for each job of the sweep that this process has run, if it has run one: what differs, and what came of it."""
    folder, Sweep.folder = Sweep.folder, None
    paths = sorted((folder / JOBS).glob("*.json"), key=lambda path: int(path.stem)) if folder else []
    jobs = {}
    for path in paths:
        with contextlib.suppress(ValueError):  # torn
            jobs[path.stem] = json.loads(path.read_text(encoding="utf-8"))
    if not jobs:
        return
    from rich.table import Table
    from rich.text import Text

    from metarl_cli.progress import wide_console

    shared = set.intersection(*(set(job["overrides"]) for job in jobs.values())) if len(jobs) > 1 else set()
    names = dict.fromkeys(name for job in jobs.values() for name in job["columns"])
    table = Table(title=f"{len(jobs)} jobs", title_justify="left", title_style="bold")
    for name in ("job", "overrides", *names):
        table.add_column(name, overflow="fold")
    for number, job in jobs.items():
        differs = " ".join(override for override in job["overrides"] if override not in shared)
        table.add_row(number, *(Text(text) for text in (differs, *(job["columns"].get(name, "") for name in names))))
    console = wide_console()
    console.print(table)
    console.print(Text(f"record of the sweep: {folder}"), soft_wrap=True)
