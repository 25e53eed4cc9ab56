"""Try environments of other packages, one yaml each: train, test, adapt with a film, kill and go on to the same bits.

    python benchmarks/packages.py                      every environment of packages.yaml whose package is installed
    python benchmarks/packages.py jss deep_sea_treasure

Each is trained by a tiny ``maml_dqn``, or as its entry in ``packages.yaml`` says. A run is ended by SIGKILL after its first
checkpoint and started again by the same command; everything in its folder must be the same as in that of a run that was not
killed, but for times. The exit code is 1 if a step fails or anything differs.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from kills import METARL, contents, differences
from rich.table import Table

from metarl_cli.progress import wide_console

ROWS: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
SHIPPED = Path(__file__).resolve().parents[1] / "conf" / "env"
LIMIT = 1200.0  # [s] of one command
SMALL = [
    "algo=maml_dqn",
    "algo.tasks=4",
    "algo.outer.tasks=2",
    "algo.outer.updates=2",
    "algo.outer.batch=8",
    "algo.inner.support.rollouts=2",
    "algo.inner.support.steps=6",
    "algo.query.envs=2",
    "algo.query.steps=5",
    "algo.query.capacity=60",
    "learner.network.hidden=[8,8]",
    "train.iterations=4",
    "train.eval_every=2",
    "train.log_every=1",
    "train.checkpoint_every=0.001",
    "eval.tasks=2",
    "eval.episodes=1",
    "eval.steps=1",
    "test.tasks=2",
    "test.episodes=1",
    "test.steps=1",
    "hardware=cpu",
]


class Tried(NamedTuple):
    """What became of one environment."""

    error: str  # of the first step that failed; empty: none did
    film: str  # "yes", or why there is none
    different: list[str]  # the files of the continued run that are not those of the run that was not killed


def needed(name: str) -> list[str]:
    """Return the modules that must be installed for an environment."""
    row = ROWS[name]
    values = row.get("env") or yaml.safe_load((SHIPPED / f"{name}.yaml").read_text())
    return [*filter(None, [values.get("package")]), *row.get("needs", [])]


def attempt(name: str, folder: Path) -> Tried:
    """Go through all steps with one environment.

    Args:
        name: its entry in ``packages.yaml``.
        folder: an empty one to work in.
    """
    row, conf = ROWS[name], folder / "conf"
    (conf / "env").mkdir(parents=True)
    if values := row.get("env"):
        written = {"defaults": ["base/gymnasium@_here_"], **values}
        (conf / "env" / f"{name}.yaml").write_text(f"# {name}\n{yaml.safe_dump(written, sort_keys=False)}")
    for path, text in row.get("files", {}).items():
        (folder / path).write_text(text)
    whole, torn = folder / "whole", folder / "torn"
    allowed = [f"packages=[{','.join(row['packages'])}]"] if "packages" in row else []
    train = ["train", "--config-dir", str(conf), f"env={name}", *SMALL, *row.get("overrides", []), *allowed]
    for words in ([*train, f"run={whole}"], ["test", f"run={whole}", "split=validation", *allowed]):
        if error := _ended(_start(words, folder)):
            return Tried(f"{words[0]}: {error}", "", [])
    adapt = ["adapt", f"run={whole}", "steps=1", *allowed]
    film = _ended(_start([*adapt, "gif=true"], folder))
    if film and (error := _ended(_start([*adapt, "gif=false"], folder))):
        return Tried(f"adapt: {error}", "", [])
    process = _start([*train, f"run={torn}"], folder)
    while process.poll() is None and not list(torn.rglob("last.pt")):
        time.sleep(0.01)
    process.kill()
    if not (killed := process.wait() == -signal.SIGKILL) or (error := _ended(_start([*train, f"run={torn}"], folder))):
        return Tried(f"go on: {error if killed else 'it was over before it could be killed'}", film or "yes", [])
    parts = [{k: v for k, v in contents(each).items() if not k.startswith(("adapt", "results"))} for each in (whole, torn)]
    return Tried("", film or "yes", differences(*parts))


def _start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy"}
    return subprocess.Popen(
        [*METARL, *words], cwd=folder, env=quiet, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )


def _ended(process: subprocess.Popen[str]) -> str:
    """Wait for a command; return what it said last if it failed, else nothing."""
    try:
        said, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        return f"not over after {LIMIT:g} s"
    return (said.strip().splitlines() or ["it said nothing"])[-1] if process.returncode else ""


def main() -> int:
    """Try environments, print a table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ROWS)}; none: all")
    names = parser.parse_args().names or list(ROWS)
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"no such environment: {', '.join(unknown)}; known: {', '.join(ROWS)}")
    table, failed = Table("environment", "trained, tested, adapted", "film", "killed and continued"), False
    for name in names:
        if missing := [module for module in needed(name) if find_spec(module.split(".")[0]) is None]:
            table.add_row(name, f"not installed: {', '.join(missing)}", "", "")
            continue
        with tempfile.TemporaryDirectory() as folder:
            tried = attempt(name, Path(folder))
        failed |= bool(tried.error or tried.different)
        bits = ", ".join(tried.different) or ("" if tried.error else "the same bits")
        table.add_row(name, tried.error or "yes", tried.film, bits)
        print(f"{name}: {tried}", file=sys.stderr, flush=True)
    wide_console().print(table)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
