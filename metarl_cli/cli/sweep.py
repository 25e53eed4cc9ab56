"""The end of a sweep: a table of its jobs, and one over seeds. Jobs keep how they stand beside the record of the sweep.

They do so under any launcher, in whatever process and on whatever machine they run.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from pydantic import BaseModel, ConfigDict
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from metarl_cli.errors import UserError, visible
from metarl_cli.progress import wide_console
from metarl_cli.runs.files import write_whole

if TYPE_CHECKING:
    from rich.console import Console

CALLBACK = f"+hydra.callbacks.sweep._target_={__name__}.Sweep"  # no configuration names code
JOBS = "jobs"  # folder of the jobs' files, in the folder of the sweep
OVER_SEEDS = ("runs", "before", "after", "minutes", "peak MB")  # columns of the table over seeds


class Record(BaseModel):
    """How a job of a sweep stands, as its file says."""

    model_config = ConfigDict(strict=True)

    overrides: list[str]
    status: str = "not begun"
    folder: str | None = None  # of the run, for a command that makes one
    columns: dict[str, str] = {}
    seconds: float | None = None  # the job took
    error: str = ""
    traceback: str = ""


class Sweep(Callback):
    """Notes where the record of a sweep lies, once Hydra has decided it."""

    folder: Path | None = None  # of the sweep that this process runs

    @override
    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        Sweep.folder = Path(config.hydra.sweep.dir)
        if _first():
            for path in (Sweep.folder / JOBS).glob("*.json"):  # of an earlier sweep into the same folder
                with contextlib.suppress(OSError):  # another sweep into it is faster, say
                    path.unlink()


def _first() -> bool:
    """Whether this process is the first of those that share the jobs."""
    return os.environ.get("RANK", "0") == "0"


def keep(hydra: Any, status: str, **values: Any) -> None:
    """Keep how a job stands; of several processes that share it, the first does. On a full disk its row is lost, no more.

    Args:
        hydra: its section of the configuration.
        status: ``running``, or how it ended.
        values: of other fields of a :class:`Record`.
    """
    if _first():
        folder = Path(hydra.sweep.dir) / JOBS
        record = Record(overrides=list(hydra.overrides.task), status=status, **values)
        with contextlib.suppress(OSError, UserError):
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / f"{hydra.job.num}.json", f"{record.model_dump_json(indent=1)}\n".encode())


def print_tables(jobs: Sequence[Sequence[str]]) -> None:
    """Print what came of the sweep that this process has run, if it has run one: of each job, and over seeds.

    Args:
        jobs: the overrides of each job; none where the sweeper alone knows them.
    """
    folder, Sweep.folder = Sweep.folder, None
    records = _records(folder) if folder and _first() else {}
    if not records:
        return
    for number, overrides in enumerate(jobs):
        task = [override for override in overrides if not override.startswith(("hydra.", "hydra/"))]
        records.setdefault(number, Record(overrides=task))
    records = {number: _ended(records[number]) for number in sorted(records)}
    console = wide_console()
    console.print(_table(records))
    for number, record in records.items():
        if record.error:
            log = record.folder and Path(record.folder) / "console.log"
            where = f" (see {log})" if log and record.traceback and log.exists() else ""
            console.print(Text(visible(f"job {number}: {record.error}{where}")), soft_wrap=True)
    _print_over_seeds([record.folder for record in records.values() if record.folder and os.path.isdir(record.folder)], console)
    console.print(Text(f"record of the sweep: {folder}"), soft_wrap=True)


def _records(folder: Path) -> dict[int, Record]:
    """Return the jobs by number, as far as their files are whole."""
    records = dict[int, Record]()
    for path in (folder / JOBS).glob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            records[int(path.stem)] = Record.model_validate_json(path.read_bytes())
    return records


def _ended(record: Record) -> Record:
    """Return a job that has not said how it ended with what its run says: it was killed, say, or goes on elsewhere."""
    if record.status != "running":
        return record
    from metarl_cli.comparison.standing import standings

    standing = []
    with contextlib.suppress(UserError):
        standing = standings([record.folder]) if record.folder else []
    known = standing and standing[0].status in ("interrupted", "failed", "finished")
    return record.model_copy(update={"status": standing[0].status if known else "unfinished"})


def _table(records: Mapping[int, Record]) -> Table:
    shared = set.intersection(*(set(record.overrides) for record in records.values())) if len(records) > 1 else set()
    names = dict.fromkeys(name for record in records.values() for name in record.columns)
    table = Table(title=f"{len(records)} job{'s' * (len(records) > 1)}", title_justify="left", title_style="bold")
    for name in ("job", "overrides", "status", *names, "seconds"):
        table.add_column(name, overflow="fold")
    for number, record in records.items():
        differs = " ".join(override for override in record.overrides if override not in shared)
        seconds = "" if record.seconds is None else f"{record.seconds:.1f}"
        cells = (str(number), differs, record.status, *(record.columns.get(name, "") for name in names), seconds)
        table.add_row(*map(Text, cells), style="red" if record.status in ("failed", "unfinished") else None)
    return table


def _print_over_seeds(folders: Sequence[str], console: Console) -> None:
    """Print the means over seeds of the runs that are finished, where a configuration has several of them."""
    with contextlib.suppress(UserError):  # none is finished, say
        for part in _over_seeds(folders, console.width):
            console.print(part)


def _over_seeds(folders: Sequence[str], width: int) -> Iterator[Table | Text]:
    from metarl_cli.cli.report import drawn
    from metarl_cli.comparison.report import report

    if len(folders) < 2:
        return
    compared = report(folders)
    for comparison, table in zip(compared.comparisons, compared.tables, strict=True):
        if any(len(group.runs) > 1 for group in comparison.groups):
            yield from drawn(table.with_columns([name for name in OVER_SEEDS if name in table.columns]), width)
            yield Text(table.notes[0], "table.caption")
