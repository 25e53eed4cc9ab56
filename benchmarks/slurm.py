"""A stand-in for Slurm on one machine: what submitit uses of ``sbatch``, ``srun``, ``sacct``, ``scontrol`` and ``scancel``.

    folder = install(Path("somewhere"), cores=2)    # then PATH=somewhere/bin:$PATH

Jobs of an array run as processes of this machine, as many at once as there are ``cores``. It knows the states of jobs, requeues
them, and preempts each once by SIGUSR2 after METARL_SLURM_PREEMPT seconds where that is set, with SIGTERM before it where
METARL_SLURM_TERM is set, too. It knows no partitions, no limits and no other machines.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

COMMANDS = ("sbatch", "srun", "sacct", "scontrol", "scancel")
STATE = "METARL_SLURM"  # environment: the folder of the states of all jobs
CORES = "METARL_SLURM_CORES"
PREEMPT = "METARL_SLURM_PREEMPT"  # [s] since a job heeds the signals, after which it is preempted once
HEEDED = (signal.SIGUSR2, signal.SIGHUP)  # by a run in training; before, SIGUSR2 is for submitit, or ends the process
TERM = "METARL_SLURM_TERM"  # [s] between SIGTERM and SIGUSR2 of a preemption


def install(folder: Path, cores: int) -> dict[str, str]:
    """Write the commands into ``folder/bin``; returns the environment in which they are found."""
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    (folder / "jobs").mkdir(exist_ok=True)
    for name in COMMANDS:
        path = folder / "bin" / name
        path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(__file__)} {name} "$@"\n')
        path.chmod(0o755)
    return {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", STATE: str(folder / "jobs"), CORES: str(cores)}


def _jobs() -> Path:
    return Path(os.environ[STATE])


def _note(job: str, kind: str, text: str) -> None:
    path = _jobs() / f"{job}.{kind}"
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def sbatch(script: str) -> int:
    """Begin the jobs of a script in the background, and print the number of the batch."""
    number = 1 + max((int(path.name.split("_")[0].split(".")[0]) for path in _jobs().iterdir()), default=0)
    for task in _tasks(Path(script).read_text()):
        _note(f"{number}{task}", "state", "PENDING")
    command = [sys.executable, __file__, "serve", str(number), script]
    quiet = subprocess.DEVNULL
    subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
    print(f"Submitted batch job {number}")
    return 0


def _tasks(text: str) -> list[str]:
    found = re.search(r"^#SBATCH --array=0-(\d+)", text, re.MULTILINE)
    return [f"_{task}" for task in range(int(found[1]) + 1)] if found else [""]


def serve(number: str, script: str) -> int:
    """Run the jobs of a batch, as many at once as there are cores."""
    text = Path(script).read_text()
    with ThreadPoolExecutor(int(os.environ[CORES])) as pool:
        for each in [pool.submit(_run, number, task, text) for task in _tasks(text)]:
            each.result()
    return 0


def _run(number: str, task: str, text: str) -> None:
    """Run a job until it ends without having asked to be queued again."""
    job, restarts = f"{number}{task}", 0
    environment = {
        **os.environ,
        "SLURM_JOB_ID": str(int(number) * 1000 + int(task[1:] or 0)),
        "SLURM_NTASKS": "1",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_JOB_NODELIST": "node",
    }
    if task:
        environment |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": task[1:]}
    else:
        environment["SLURM_JOB_ID"] = number
    output = next(iter(re.findall(r"^#SBATCH --output=(.*)$", text, re.MULTILINE)))
    path = output.strip("'\"").replace("%A", number).replace("%a", task[1:]).replace("%j", number)
    while True:
        _note(job, "state", "RUNNING")
        with open(path, "ab") as file:
            process = subprocess.Popen(
                ["bash", "-c", text],
                env={**environment, "SLURM_RESTART_COUNT": str(restarts), "METARL_SLURM_JOB": job},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        if restarts == 0 and (seconds := float(os.environ.get(PREEMPT, "0"))):
            _preempt(job, process, seconds)
        code = process.wait()
        again = _jobs() / f"{job}.requeue"
        if not again.exists():
            break
        again.unlink()
        restarts += 1
        _note(job, "restarts", str(restarts))
    _note(job, "state", "COMPLETED" if code == 0 else "FAILED")


def _preempt(job: str, process: subprocess.Popen[bytes], seconds: float) -> None:
    """Tell a job, once it has heeded signals for so long, to leave its place."""
    step, deadline = _jobs() / f"{job}.pid", None
    while process.poll() is None:
        if deadline is None and step.exists() and _heeds(int(step.read_text())):
            deadline = time.monotonic() + seconds
        if deadline is not None and time.monotonic() > deadline:
            pid = int(step.read_text())
            _signal(pid, signal.SIGTERM if TERM in os.environ else signal.SIGUSR2)
            if TERM in os.environ:
                time.sleep(float(os.environ[TERM]))
                _signal(pid, signal.SIGUSR2)
            _note(job, "preempted", "1")
            return
        time.sleep(0.05)


def _heeds(pid: int) -> bool:
    """Return whether a process has handlers for all of ``HEEDED``."""
    with contextlib.suppress(OSError):
        found = re.search(r"SigCgt:\s+(\w+)", Path(f"/proc/{pid}/status").read_text())
        return found is not None and all(int(found[1], 16) >> (number - 1) & 1 for number in HEEDED)
    return False


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def srun(*words: str) -> int:
    """Run a step of a job: what stands behind srun's own options, with its output in files."""
    words_left, files = list(words), dict[str, str]()
    while words_left and words_left[0].startswith("--"):
        word = words_left.pop(0)
        if word in ("--output", "--error"):
            files[word] = words_left.pop(0)
    places = {"%A": "SLURM_ARRAY_JOB_ID", "%a": "SLURM_ARRAY_TASK_ID", "%j": "SLURM_JOB_ID"}
    opened = {}
    for word, path in files.items():
        for mark, name in places.items():
            path = path.replace(mark, os.environ.get(name, ""))
        opened[word] = open(path.replace("%t", "0"), "ab")  # noqa: SIM115  until the step has ended
    job = os.environ["METARL_SLURM_JOB"]
    process = subprocess.Popen(
        words_left,
        env={**os.environ, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        stdout=opened.get("--output"),
        stderr=opened.get("--error"),
    )
    _note(job, "pid", str(process.pid))
    return process.wait()


def sacct(*words: str) -> int:
    """Print the state of every job of the batches that are asked for."""
    asked = [words[place + 1] for place, word in enumerate(words) if word == "-j"]
    print("JobID|State|NodeList")
    for path in sorted(_jobs().glob("*.state")):
        if path.stem.split("_")[0] in asked:
            print(f"{path.stem}|{path.read_text()}|node")
    return 0


def scontrol(*words: str) -> int:
    """Have a job begin again once it has ended."""
    if words[0] == "requeue":
        _note(words[1], "requeue", "1")
    return 0


def scancel(*words: str) -> int:
    """Send a signal to a job: SIGTERM, or the one that is named."""
    job, *options = words
    number = signal.Signals[f"SIG{options[1].removeprefix('SIG')}"] if options[:1] == ["--signal"] else signal.SIGTERM
    _signal(int((_jobs() / f"{job}.pid").read_text()), number)
    return 0


if __name__ == "__main__":
    sys.exit({each.__name__: each for each in (sbatch, srun, sacct, scontrol, scancel, serve)}[sys.argv[1]](*sys.argv[2:]))
