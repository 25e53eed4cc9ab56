"""The runs that come with metarl: trained by the commands in zoo.yaml, kept as what adapting and testing need.

    python benchmarks/zoo.py                         train what is not there yet, ship it, print what each weighs
    python benchmarks/zoo.py --names rl2-bandit      these alone
    python benchmarks/zoo.py --again                 all anew: after a change of the format of run folders, say

    python benchmarks/zoo.py --extra hardware.compile=true    options that change no result

A run is an ordinary ``metarl train`` in ``outputs/made/NAME``; it goes on where it was stopped. Of its folder the
configuration, the manifest, the held-out tasks, the best weights and the test results are copied to
``metarl_cli/runs/zoo/NAME``.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from metarl_cli.runs.shipped import FOLDER, KEPT, entries, size

ROOT = Path(__file__).resolve().parent.parent
MADE = Path("outputs", "made")  # as in the command that a run holds: no folder of this machine


def make(name: str, extra: list[str], again: bool) -> int:
    """Train a run and ship it; returns the exit code."""
    if again:
        shutil.rmtree(ROOT / MADE / name, ignore_errors=True)
    command = [sys.executable, "-m", "metarl_cli", "train", *entries()[name].train, *extra, f"run={MADE / name}"]
    if code := subprocess.run(command, cwd=ROOT, check=False).returncode:
        return code
    ship(ROOT / MADE / name, FOLDER / name)
    return 0


def ship(run: Path, target: Path) -> None:
    """Copy what adapting and testing need of a run folder."""
    shutil.rmtree(target, ignore_errors=True)
    for path in KEPT:
        if (run / path).exists():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run / path, target / path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="*", choices=list(entries()), default=list(entries()))
    parser.add_argument("--again", action="store_true", help="train anew what is there")
    parser.add_argument("--extra", nargs="*", default=[], help="options of every run that change no result")
    args = parser.parse_args()
    codes = {name: make(name, args.extra, args.again) for name in args.names}
    for name in entries():
        print(f"{size(name) / 1e3:8,.0f} KB  {name}{'' if codes.get(name, 0) == 0 else ': failed'}")
    print(f"{sum(map(size, entries())) / 1e3:8,.0f} KB  in all")
    return max(codes.values())


if __name__ == "__main__":
    sys.exit(main())
