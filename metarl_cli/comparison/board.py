"""Seeds aggregated for TensorBoard: a run for each group, with the mean over seeds and its interval along training.

``metarl report format=tensorboard`` writes it of finished runs. While runs are in training, :class:`Current` keeps it beside
them: the folder of several seeds has ``seeds/GROUP``, which each seed that validates writes anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import custom_scalars
from typing_extensions import override

from metarl_cli.comparison.groups import Comparison
from metarl_cli.comparison.saved import AXES, LEARNING, LEARNING_IQM, read_log
from metarl_cli.errors import DiskFault, UserError
from metarl_cli.evaluation.curves import Report
from metarl_cli.evaluation.statistics import Scores, over_seeds
from metarl_cli.runs.files import open_regular, read_json, write_whole
from metarl_cli.runs.folder import WITHOUT_LOCKS, Manifest, RunFolder
from metarl_cli.runs.loop import Listener, Progress
from metarl_cli.runs.naming import short_names

SEEDS = "seeds"  # folder of the groups, beside their runs; also the group of their tags
EVENTS = "events.out.tfevents"  # how TensorBoard knows its files
TAGS = {LEARNING: f"{SEEDS}/return_after", LEARNING_IQM: f"{SEEDS}/return_after_iqm"}
ENDS = ("", "_low", "_high")
COUNT = f"{SEEDS}/runs"  # tag: of how many runs a point is the mean
LAYOUT = {
    "Seeds": {
        f"validation: after, {what} over tasks, mean over seeds and 95 %": ["Margin", [f"{TAGS[key]}{end}" for end in ENDS]]
        for key, what in ((LEARNING, "mean"), (LEARNING_IQM, "IQM"))
    }
}
EVERY = 30.0  # [s] at least between two times that runs in training write their group
SHARE = 0.02  # of the time of a run in training, at most, that it spends on its group
PATIENCE = 10.0  # [s] to wait at the end of a run for another one that writes
PAUSE = 0.05  # [s] between two looks at a lock

Curves = Sequence[Mapping[str, Scores]]  # of each run: the returns and the environment steps of its evaluations
Points = tuple[Scores, dict[str, list[Scores]]]  # steps [P], and by metric the values of the runs at each of them


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """Write the events of a comparison's groups in the place of those of an earlier report; returns their folders.

    Points are those of the run with the fewest, between which the others are interpolated.

    Raises:
        DiskFault: if they cannot be written.
    """
    written = list[Path]()
    names = short_names([group.name for group in comparison.groups])
    for old in folder.glob("*/"):
        if old.name not in names:
            _remove(old.glob(f"{EVENTS}.*"))
    for group, name in zip(comparison.groups, names, strict=True):
        if points := _common([run.learning for run in group.runs]):
            _replace(folder / name, points)
            written.append(folder / name)
    return written


def _known(curves: Curves) -> tuple[Curves, list[str]]:
    """Return the curves that have values, and the metrics that all of these have."""
    known = [curve for curve in curves if AXES["env_steps"] in curve]
    return known, [key for key in TAGS if all(key in curve for curve in known)]


def _common(curves: Curves) -> Points | None:
    """Return points of which all runs have a value; None where there is no curve."""
    axis = AXES["env_steps"]
    known, keys = _known(curves)
    if not known:
        return None
    fewest = min((curve[axis] for curve in known), key=len)
    start, end = (choose(curve[axis][place] for curve in known) for choose, place in ((max, 0), (min, -1)))
    inside = fewest[(fewest >= start) & (fewest <= end)]
    values = {key: np.stack([np.interp(inside, curve[axis], curve[key]) for curve in known]) for key in keys}  # [S, P]
    return inside, {key: list(points.T) for key, points in values.items()}


def _so_far(curves: Curves) -> Points | None:
    """Return the evaluations of runs of one configuration, each of as many runs as have got to it; None without any.

    The k-th evaluation of each run came after as many iterations. It stands at the environment steps of the run that has got
    furthest.
    """
    axis = AXES["env_steps"]
    known, keys = _known(curves)
    if not known:
        return None
    steps = max((curve[axis] for curve in known), key=len)
    return steps, {
        key: [np.array([curve[key][k] for curve in known if k < len(curve[key])]) for k in range(len(steps))] for key in keys
    }


def _replace(folder: Path, points: Points) -> None:
    """Put events in the place of those that a folder has; a reader sees these, or those before.

    Raises:
        DiskFault: if they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskFault(f"cannot write in {folder}: {error.strerror or error}") from error
    earlier = list(folder.glob(f"{EVENTS}.*"))
    write_whole(folder / f"{EVENTS}.{time.time_ns()}", _encoded(*points))  # TensorBoard reads files in the order of names
    _remove(earlier)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise DiskFault(f"cannot remove {path}: {error.strerror or error}") from error


def _encoded(steps: Scores, values: dict[str, list[Scores]]) -> bytes:
    buffer = io.BytesIO()
    records = RecordWriter(buffer)
    moment = time.time()
    events = [
        Event(wall_time=moment, file_version="brain.Event:2"),
        Event(wall_time=moment, summary=custom_scalars(LAYOUT)),  # type: ignore[no-untyped-call]
    ]
    for k, step in enumerate(steps):
        numbers = {COUNT: float(max(len(points[k]) for points in values.values()))}
        for key, points in values.items():
            numbers |= {f"{TAGS[key]}{end}": number for end, number in zip(ENDS, over_seeds(points[k]), strict=True)}
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=n) for tag, n in numbers.items() if np.isfinite(n)])
        events.append(Event(wall_time=moment, step=int(step), summary=summary))
    for event in events:
        records.write(event.SerializeToString())
    return buffer.getvalue()


class Current(Listener):
    """Keeps the mean over the seeds of a run current while it trains: in ``seeds/GROUP`` beside the run.

    The runs of a group lie in one folder and differ in the seed alone; one run is no group. Whichever of them validates writes
    the group, one at a time: in different processes, and on different machines where their disk has locks. What cannot be read
    or written is left: no run fails by it, or waits for it long.

    Args:
        on: whether it does.
    """

    def __init__(self, on: bool = True):
        self.on, self.next = on, time.monotonic() + EVERY
        self.looked_at = dict[Path, tuple[str | None, int]]()  # the groups and the seeds of runs

    @override
    def started(self, folder: RunFolder, iteration: int, iterations: int) -> None:
        self.run = folder.path

    @override
    def progress(self, progress: Progress) -> None:
        if LEARNING in progress.metrics and time.monotonic() >= self.next:
            self._update(self.run, 0.0)

    @override
    def finished(self, folder: RunFolder, reports: dict[str, Report] | None) -> None:
        self._update(folder.path, PATIENCE, changed=reports is not None)

    def _update(self, run: Path, patience: float, changed: bool = True) -> None:
        began = time.monotonic()
        with contextlib.suppress(Exception):  # whatever neighbours hold: the run itself matters more
            if self.on and (group := self._look_at(run)[0]):
                runs = [(path, *self._look_at(path)) for path in sorted(run.parent.glob("*/"), reverse=True)]
                members = {seed: path for path, its, seed in runs if its == group}  # of a seed that is there twice, the first
                if len(members) > 1:
                    _write_group(sorted(members.values()), group, patience, changed)
        ended = time.monotonic()
        self.next = ended + max(EVERY, (ended - began) / SHARE)

    def _look_at(self, path: Path) -> tuple[str | None, int]:
        with contextlib.suppress(UserError, OSError):  # a folder of somebody else's, say
            if path not in self.looked_at and (path / "run.json").exists():
                self.looked_at[path] = None, 0
                manifest = read_json(path / "run.json", Manifest)
                self.looked_at[path] = manifest.get("group"), manifest["seed"]
        return self.looked_at.get(path, (None, 0))


def _write_group(members: Sequence[Path], group: str, patience: float, changed: bool) -> None:
    """Write the group of some run folders, unless another process does for longer than ``patience`` [s].

    Where none of them is known to have ``changed``, their logs say it.
    """
    place = members[0].parent / SEEDS
    name = f"{re.sub(r'-seed[0-9]+-[0-9a-f]{8}$', '', members[0].name)}-{group}"
    folder = next(iter(sorted(place.glob(f"*-{group}/"))), place / name)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / ".lock", patience) as mine:
        due = patience or not _fresh(folder)
        if mine and due and (changed or _behind(folder, members)) and (points := _so_far(_read(members))):
            _replace(folder, points)


def _read(members: Sequence[Path]) -> list[Mapping[str, Scores]]:
    """Return the curves of run folders; one that cannot be read is left out."""
    curves = list[Mapping[str, Scores]]()
    for path in members:
        with contextlib.suppress(UserError):
            curves.append(read_log(path / "metrics.jsonl")[0])
    return curves


def _fresh(folder: Path) -> bool:
    """Whether a group was written so lately that a run in training leaves it."""
    return any(0 <= time.time() - path.stat().st_mtime < EVERY for path in folder.glob(f"{EVENTS}.*"))


def _behind(folder: Path, members: Sequence[Path]) -> bool:
    """Whether a log of a group's runs has changed since the group was written."""
    written = max((path.stat().st_mtime for path in folder.glob(f"{EVENTS}.*")), default=0.0)
    return any(path.stat().st_ctime >= written for member in members if (path := member / "metrics.jsonl").exists())


@contextlib.contextmanager
def _alone(path: Path, patience: float) -> Iterator[bool]:
    """Yield whether no other process is within the block, for which ``patience`` seconds are waited."""
    deadline = time.monotonic() + patience
    with os.fdopen(open_regular(path, os.O_RDWR | os.O_CREAT), "rb+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    yield False
                    return
                time.sleep(PAUSE)
            except OSError as error:
                yield error.errno in WITHOUT_LOCKS  # two that write at once leave two files, and the next one has both replaced
                return
            else:
                yield True
                return
