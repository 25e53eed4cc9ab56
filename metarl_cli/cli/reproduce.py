"""``metarl reproduce``: repeat a run from its folder, and compare every number."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from metarl_cli.cli.terminal import waiting
from metarl_cli.errors import UserError
from metarl_cli.progress import wide_console

if TYPE_CHECKING:
    from metarl_cli.comparison.reproduction import Fact

HELP = """\
metarl reproduce: repeat a run from its folder, and compare every number.

usage: metarl reproduce FOLDER [out=FOLDER] [train=false]

It compares the revision of the code, the versions of packages, the device and the held-out tasks with what the run was made
with, trains the run's configuration again in a folder beside it (out=FOLDER for another), and compares every metric and the
return of every task. The exit code is 0 if all are equal to the last bit, and 1 if not. train=false compares what it was made
with, and trains nothing. Stopped, it goes on when the command is issued again.
"""


def run(words: list[str]) -> int:
    """Make a run again; returns the exit code: 0 if its numbers came out the same.

    Raises:
        UserError: for other words than a folder and the two keys, or where the run is not finished or cannot be read.
    """
    if {"-h", "--help"} & set(words):
        print(HELP, end="")
        return 0
    options = dict(word.split("=", 1) for word in words if word.startswith(("out=", "train=")))
    paths = [word for word in words if not word.startswith(("out=", "train="))]
    if len(paths) != 1 or paths[0].startswith("-") or options.get("train", "true") not in ("true", "false"):
        raise UserError("metarl reproduce takes one run folder, out=FOLDER and train=false")
    with waiting("loading ..."):
        from metarl_cli.cli.process import tune_process
        from metarl_cli.cli.train import Terminal
        from metarl_cli.comparison.reproduction import agreements, facts, job_of
        from metarl_cli.runs.build import build
        from metarl_cli.runs.folder import RunFolder
        from metarl_cli.runs.loop import train

    folder, console = RunFolder(paths[0]), wide_console()
    config, manifest = folder.config(), folder.manifest()
    if manifest["status"] != "finished":
        raise UserError(f"{folder} is {manifest['status']}; only a finished run has numbers to compare")
    tune_process(config.hardware)
    family, _, device = build(config)
    console.print(_facts(facts(folder, config, family, device.type)))
    if manifest.get("iterations"):
        console.print(
            Text("The run was given more iterations when it had finished: trained in one go it may come out otherwise.")
        )
    if options.get("train") == "false":
        return 0
    out = Path(options.get("out", f"{folder.path}-again"))
    again = config.model_copy(update={"run": str(out), "outputs": str(out.parent)})
    with Terminal(console) as terminal:
        other, _ = train(again, job_of(folder, out), terminal)
    compared = agreements(folder, other)
    for each in compared:
        text = f"{each.what}: {each.equal:,} of {each.total:,} numbers are equal"
        console.print(Text(text if each.exact else f"{text}; largest difference {each.largest:.3g}; first: {each.first}"))
    exact = all(each.exact for each in compared)
    console.print(
        Text("reproduced to the last bit" if exact else "not reproduced to the last bit", "green" if exact else "yellow")
    )
    return 0 if exact else 1


def _facts(compared: list[Fact]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", "then", "now"):
        table.add_column(name, overflow="fold")
    for each in compared:
        table.add_row(each.name, each.then, "the same" if each.same else each.now, style=None if each.same else "yellow")
    return table
