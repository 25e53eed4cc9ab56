"""Sweeps: what is skipped, added and killed, the tables at the end, and launchers that fail or run jobs elsewhere."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm
from conftest import CONF, tiny
from omegaconf import OmegaConf

from metarl_cli.cli import hydra, sweep, train
from metarl_cli.cli import main as cli
from metarl_cli.cli.hydra import Task
from metarl_cli.cli.sweep import Record, _ended
from metarl_cli.comparison.standing import Standing
from metarl_cli.errors import UserError

SMALL = ["algo=dqn", "env=navigation_2d", *tiny("dqn"), "outputs=outputs"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(out: str) -> dict[str, list[str]]:
    """The cells of the table of jobs, by job."""
    lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│ ")]
    return {cells[0]: cells[1:] for cells in lines if cells[0]}


def state() -> dict[str, tuple[bytes, bytes]]:
    paths = sorted(path.parent for path in Path("outputs").glob("*/run.json"))
    return {path.name: ((path / "run.json").read_bytes(), (path / "metrics.jsonl").read_bytes()) for path in paths}


def test_more_seeds_train_no_more_than_those_and_the_end_says_how_all_stand(capsys):
    assert cli.main(["train", "-m", *SMALL, "seed=0"]) == 0
    first, shown = state(), capsys.readouterr().out
    assert [cells[1] for cells in rows(shown).values()] == ["finished"]
    assert "held-out tasks (" not in shown[shown.index("1 job") :], "one run is no mean over seeds"
    assert not Path("outputs/seeds").exists()
    assert cli.main(["train", "-m", *SMALL, "seed=range(2)"]) == 0
    second, shown = state(), capsys.readouterr().out
    assert [cells[:2] for cells in rows(shown).values()] == [["seed=0", "finished before"], ["seed=1", "finished"]]
    assert len(second) == 2
    assert {name: second[name] for name in first} == first, "it is as it was"
    end = shown[shown.index("2 jobs") :]
    assert "navigation_2d: 4 held-out tasks (" in end
    assert "dqn           2 " in end
    assert "peak" in end
    assert list(Path("outputs/seeds").glob("dqn-navigation_2d-*/events*"))


def test_the_end_says_of_jobs_that_could_not_how_they_ended(monkeypatch, capsys):
    """One fails, one is interrupted, which ends the sweep, and one is not begun; a traceback is kept."""

    def run(config, job):
        if config.seed == 1:
            raise ZeroDivisionError("oops")
        if config.seed == 2:
            raise KeyboardInterrupt
        return 1.5

    monkeypatch.setattr(train, "run", run)
    monkeypatch.setattr(train, "outcome", lambda config, job: {"after": "2.5"})
    assert cli.main(["train", "-m", "seed=range(4)", "hydra.sweep.dir=sweep"]) == 130
    out = capsys.readouterr().out
    found = rows(out)
    assert [found[job][1] for job in "0123"] == ["finished", "failed", "unfinished", "not begun"]
    assert found["0"][2] == "2.5"
    assert float(found["0"][3]) < 60
    assert "job 1: ZeroDivisionError: oops" in out
    record = Record.model_validate_json(Path("sweep/jobs/1.json").read_bytes())
    assert "Traceback" in record.traceback
    assert record.folder


@pytest.mark.parametrize(
    ("standing", "status"),
    [("silent", "unfinished"), ("running", "unfinished"), ("interrupted", "interrupted"), (None, "unfinished")],
)
def test_a_job_that_could_not_say_how_it_ended_is_known_by_its_run(standing, status, monkeypatch):
    found = [Standing(Path("run"), standing, 0, None, 0.0, None, None, None)] if standing else []
    monkeypatch.setattr("metarl_cli.comparison.standing.standings", lambda paths: found)
    assert _ended(Record(overrides=[], status="running", folder="run")).status == status


def test_a_launcher_that_loses_a_job_is_one_line(monkeypatch, capsys):
    """A worker that the system has killed, say."""

    def broken(*_):
        raise RuntimeError("a worker was killed\nby the system")

    monkeypatch.setattr(hydra, "_run_hydra", broken)
    assert cli.main(["train", "-m", "seed=0,1"]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("metarl: error")]
    assert "the launcher or the sweeper has failed: RuntimeError: a worker was killed by the system; issue the command" in line
    with pytest.raises(RuntimeError):
        cli.main(["train", "seed=0"])


def test_a_job_runs_in_the_folder_where_its_sweep_was_started(elsewhere, monkeypatch):
    """A launcher's process on another machine begins anywhere."""
    task = Task(train_command(), where=str(elsewhere))
    other = elsewhere / "other"
    other.mkdir()
    os.chdir(other)
    hydra._enter(task.where)
    assert Path.cwd() == elsewhere
    with pytest.raises(UserError, match=r"cannot enter /nowhere on \S+: No such file.*a disk that they share"):
        hydra._enter("/nowhere")


def train_command():
    from metarl_cli.cli.commands import commands

    return commands()["train"]


SCRIPT = """#!/bin/bash
#SBATCH --array=0-1%2
#SBATCH --output={folder}/log_%A_%a
srun --unbuffered --output {folder}/out_%A_%a_%t --error {folder}/err_%A_%a_%t {python} {folder}/job.py
"""
JOB = """
import os, signal, subprocess, sys, time
print(os.environ["SLURM_ARRAY_TASK_ID"], os.environ["SLURM_RESTART_COUNT"], flush=True)
def requeue(*_):
    job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    subprocess.run(["scontrol", "requeue", job], check=True)
    sys.exit(1)
signal.signal(signal.SIGUSR2, requeue)
signal.signal(signal.SIGHUP, requeue)
if os.environ["SLURM_RESTART_COUNT"] == "0":
    time.sleep(60)
"""


def test_the_stand_in_for_slurm_runs_preempts_and_requeues(elsewhere, monkeypatch):
    for name, value in {**slurm.install(elsewhere, cores=2), slurm.PREEMPT: "0.5"}.items():
        monkeypatch.setenv(name, value)
    (elsewhere / "job.py").write_text(JOB)
    (elsewhere / "batch.sh").write_text(SCRIPT.format(folder=elsewhere, python=sys.executable))
    asked = subprocess.run(["sbatch", "batch.sh"], capture_output=True, text=True, check=True)
    assert asked.stdout == "Submitted batch job 1\n"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        states = subprocess.run(["sacct", "-o", "JobID,State", "-j", "1"], capture_output=True, text=True, check=True).stdout
        if states.count("COMPLETED") == 2:
            break
        time.sleep(0.1)
    assert states.splitlines()[1:] == ["1_0|COMPLETED|node", "1_1|COMPLETED|node"]
    for task in "01":
        assert (elsewhere / f"out_1_{task}_0").read_text().splitlines() == [f"{task} 0", f"{task} 1"]
        assert (elsewhere / f"err_1_{task}_0").read_text() == ""


PLUGINS = {
    "basic": "hydra",
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "submitit_local": "hydra_plugins.hydra_submitit_launcher",
    "submitit_slurm": "hydra_plugins.hydra_submitit_launcher",
    "ray": "hydra_plugins.hydra_ray_launcher",
}


@pytest.mark.slow
@pytest.mark.proof
@pytest.mark.parametrize("launcher", PLUGINS)
def test_a_sweep_that_was_killed_is_issued_again_under_each_launcher(launcher):
    pytest.importorskip(PLUGINS[launcher])
    command = [sys.executable, str(CONF.parent / "benchmarks" / "sweeps.py"), "--launchers", launcher]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_a_record_that_cannot_be_read_or_removed_ends_no_sweep(tmp_path):
    jobs = tmp_path / sweep.JOBS
    (jobs / "0.json").mkdir(parents=True)
    (jobs / "1.json").write_text('{"overrides": ["seed=1"]}')
    (jobs / "2.json").write_text('{"overrides"')
    assert list(sweep._records(tmp_path)) == [1]
    sweep.Sweep().on_multirun_start(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    sweep.Sweep.folder = None
    assert [path.name for path in jobs.iterdir()] == ["0.json"]
