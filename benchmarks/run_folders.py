"""What the tables share that train their runs: start a command, and ask whether its run is finished."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path


def train(command: list[str]) -> int:
    """Run a command, which names its ``run=`` folder, on one core; its output goes to a log beside the folder.

    metarl itself skips a run that is finished.
    """
    log = Path(next(word for word in command if word.startswith("run=")).removeprefix("run=") + ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False).returncode


def done(folder: Path) -> bool:
    """Whether a folder holds a run, and a finished one."""
    manifest = folder / "run.json"
    return manifest.exists() and bool(json.loads(manifest.read_text())["status"] == "finished")
