"""Metrics, figures and hyper-parameters of a run: TensorBoard events, and the same numbers in ``metrics.jsonl``.

The x-axis of every algorithm is the environment steps of meta-training, so that runs are comparable. TensorBoard sorts what it
shows by name, and its HParams tab shows the first five metrics: so the returns before and after adaptation have a group of
their own, ``adaptation``, which comes first.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import custom_scalars
from torch.utils.tensorboard.summary import hparams as summaries

from metarl_cli import progress
from metarl_cli.evaluation.pictures import png
from metarl_cli.interfaces import Diagnostics
from metarl_cli.runs.files import memory, open_regular, read, write_whole

FIRST = {"eval/return_before", "eval/return_after", "test/return_before", "test/return_after", "ood/return_after"}
LARGEST = 1e20  # of a number in TensorBoard's histograms
LAYOUT = {  # of the Custom Scalars tab; tags are regular expressions
    "Adaptation": {
        "validation: before and after": ["Multiline", ["adaptation/eval_return_(before|after)$", "eval/return_learned$"]],
        "validation: each step": ["Multiline", [r"eval/return_step_\d+$"]],
        "validation: after, 95 %": [
            "Margin",
            ["adaptation/eval_return_after", "eval/return_after_low", "eval/return_after_high"],
        ],
        "validation: whole trial": ["Multiline", ["eval/trial_return$"]],
        "held out: before and after": ["Multiline", ["adaptation/(test|ood)_return_(before|after)$"]],
    },
    "Training": {
        "trial": ["Multiline", ["train/trial_return$"]],
        "fitness": ["Multiline", ["fitness/(best|mean|median|quantile_25|quantile_75)$", "validation/champion$"]],
        "diversity of the population": ["Multiline", ["search/diversity$"]],
        "loss": ["Multiline", [r"loss/(query|td|policy|value|prediction)$"]],
        "entropy of the policy": ["Multiline", ["train/entropy$"]],
        "gradient norm": ["Multiline", ["grad/norm$"]],
        "inner learning rate": ["Multiline", ["train/inner_lr$"]],
    },
}
Scalar = str | bool | int | float


class Tracker:
    """Writes the metrics and diagnostics of a run.

    Args:
        folder: the run folder; it holds the events directly, so that its name is the run's name in TensorBoard.
        hparams: the columns of the HParams tab: what the run has been told to be; those of None are left out.
        texts: for the Text tab, by tag, as Markdown.
        resume_step: the step of the checkpoint that a run resumes from; later rows are dropped. None: a new run.
        logged: the ``state`` that the tracker had at this checkpoint, if any.
    """

    def __init__(
        self,
        folder: Path,
        hparams: Mapping[str, Any],
        texts: Mapping[str, str],
        resume_step: int | None,
        logged: tuple[int, str] | None = None,
    ):
        self.path = folder / "metrics.jsonl"
        self.num_lines, self.digest = 0, hashlib.sha256()
        purge = 0 if resume_step is None else resume_step + 1
        if self.path.exists():
            lines = read(self.path, memory()).split(b"\n")
            self._add(lines[: logged[0] if logged else 0])
            if logged and self.state != logged:
                progress.note(f"{self.path} is not as it was logged: the lines that can be read are kept")
            if self.state != logged:
                lines, self.num_lines, self.digest = [x for x in lines if _kept(x, purge)], 0, hashlib.sha256()
                self._add(lines)
            write_whole(self.path, b"".join(line + b"\n" for line in lines[: self.num_lines]))
        self.lines = os.fdopen(open_regular(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "a")
        self.hook = threading.excepthook
        threading.excepthook = self._thread_failed
        self.writer = SummaryWriter(str(folder), purge_step=purge)
        self.events = cast(Any, self.writer.file_writer)  # all tags of a step go into one event
        self.tags = set[str]()  # in TensorBoard, since the process has started
        # without the experiment's summary, TensorBoard shows the union of all runs' hyper-parameters
        _, start, self.end = summaries(_columns(hparams), {})  # type: ignore[no-untyped-call]  # TensorBoard has no types
        self.events.add_summary(start)
        if resume_step is None:
            for tag, text in texts.items():
                self.writer.add_text(tag, text, 0)

    @property
    def state(self) -> tuple[int, str]:
        """The number of lines so far, and their hash."""
        return self.num_lines, self.digest.hexdigest()

    def _add(self, lines: Sequence[bytes]) -> None:
        self.num_lines += len(lines)
        self.digest.update(b"".join(line + b"\n" for line in lines))

    def _thread_failed(self, arguments: threading.ExceptHookArgs) -> None:
        """Be silent about a writer of events that fails: the next call to it raises the same error."""
        if not type(arguments.thread).__module__.startswith("tensorboard."):
            self.hook(arguments)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write scalars ``{"group/name": value}`` at ``step`` [environment steps]."""
        values = [Summary.Value(tag=tag_of(tag), simple_value=value) for tag, value in metrics.items()]
        self.events.add_summary(Summary(value=values), step)
        self._lay_out({value.tag for value in values}, step)
        finite = {tag: value if math.isfinite(value) else None for tag, value in metrics.items()}
        line = json.dumps({"step": step, **finite})
        self.lines.write(f"{line}\n")
        self._add([line.encode()])
        self.flush()

    def _lay_out(self, tags: set[str], step: int) -> None:
        """Show the charts of the Custom Scalars tab that have something to show, once there are new tags."""
        if tags <= self.tags:
            return
        self.tags |= tags
        layout = {
            group: {name: chart for name, chart in charts.items() if any(re.match(chart[1][0], tag) for tag in self.tags)}
            for group, charts in LAYOUT.items()
        }
        filled = {group: charts for group, charts in layout.items() if charts}
        self.events.add_summary(custom_scalars(filled), step)  # type: ignore[no-untyped-call]  # TensorBoard gives custom_scalars no types

    def diagnostics(self, diagnostics: Diagnostics, step: int) -> None:
        """Show an algorithm's diagnostics in the Histograms, Text and Images tabs."""
        for tag, values in diagnostics.histograms.items():
            numbers = values.detach().double().flatten().cpu()
            if len(numbers := numbers[numbers.isfinite()].clamp(-LARGEST, LARGEST)):
                self.writer.add_histogram(tag, numbers.numpy(), step)
        for tag, text in diagnostics.texts.items():
            self.writer.add_text(tag, text, step)
        for tag, figure in diagnostics.figures.items():
            self.image(tag, png(figure), step)

    def image(self, tag: str, encoded: bytes, step: int) -> None:
        """Show a PNG in the Images tab."""
        width, height = Image.open(io.BytesIO(encoded)).size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
        self.events.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)
        self.writer.flush()

    def flush(self) -> None:
        """Write pending lines and events to disk."""
        self.lines.flush()
        self.writer.flush()

    def close(self, finished: bool) -> None:
        """Write pending lines and events and close the files; a finished run is marked as a success in HParams."""
        if finished:
            self.events.add_summary(self.end)
        with contextlib.suppress(OSError):  # an earlier write has already reported the reason
            self.lines.close()
            self.writer.close()
        if threading.excepthook == self._thread_failed:
            threading.excepthook = self.hook


def tag_of(metric: str) -> str:
    """Return the tag of a metric in TensorBoard: ``adaptation/eval_return_after`` for ``eval/return_after``, else the same."""
    return f"adaptation/{metric.replace('/', '_')}" if metric in FIRST else metric


def _kept(line: bytes, purge: int) -> bool:
    """Return whether a line was logged before step ``purge``; results of tests are dropped, as a resumed run tests again."""
    try:
        row = json.loads(line)
        return bool(row["step"] < purge) and not any(tag.startswith(("test/", "ood/")) for tag in row)
    except (ValueError, LookupError, TypeError, RecursionError):  # a line that a crash truncated, or no line of a run
        return False


def _columns(hparams: Mapping[str, Any]) -> dict[str, Scalar]:
    """Return hyper-parameters as TensorBoard takes them: lists as text; a None would turn a column of numbers into text."""
    return {key: value if isinstance(value, Scalar) else str(value) for key, value in hparams.items() if value is not None}
