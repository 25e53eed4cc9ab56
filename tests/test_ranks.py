"""Several processes evolve together: the same bits as one."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny
from launching import PATIENCE

from metarl_cli.cli import main as cli
from metarl_cli.processes import Processes
from metarl_cli.runs import checkpoint, loop
from metarl_cli.runs.build import build
from metarl_cli.runs.folder import RunFolder


def train(folder, processes, *overrides):
    """The command under ``torchrun``, which meets on a port that is free; the outputs of the processes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*torchrun, "--redirects=3", f"--log-dir={folder}", "-m", "metarl_cli", "train", *overrides],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    said = {path.parent.name: path.read_text() for path in folder.rglob("stdout.log")}
    assert done.returncode == 0, done.stderr + "".join(path.read_text() for path in folder.rglob("stderr.log"))
    return [said[str(rank)] for rank in range(processes)]


def flat(state):
    values = state.values() if isinstance(state, dict) else state
    return [x for v in values for x in (flat(v) if isinstance(v, dict | list | tuple) else [v])]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    small = ["algo=evo_dqn", *tiny("evo_dqn"), "algo.search.population=5", "algo.validation.candidates=2"]
    assert cli.main(["train", f"run={tmp_path / 'one'}", *small]) == 0
    first, second = train(tmp_path / "logs", 2, f"run={tmp_path / 'two'}", *small)
    assert "run folder" in first
    assert not second, "one process speaks"
    one, two = (checkpoint.load(tmp_path / name / "last.pt")["algorithm"] for name in ("one", "two"))
    for a, b in zip(flat(one), flat(two), strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_a_process_that_follows_starts_where_the_first_does(tmp_path, monkeypatch):
    small = ["algo=evo_dqn", *tiny("evo_dqn")]
    assert cli.main(["train", f"run={tmp_path / 'run'}", *small]) == 0
    config, state = RunFolder(tmp_path / "run").config(), checkpoint.load(tmp_path / "run" / "last.pt")
    told = [json.dumps(config.model_dump(by_alias=True)).encode(), (tmp_path / "run" / "last.pt").read_bytes(), b"yes", b""]
    processes, built = Processes(), []
    monkeypatch.setattr(processes, "broadcast", lambda content=b"": told.pop(0))
    monkeypatch.setattr(loop, "build", lambda values: built.append(build(values)) or built[0])
    loop.follow(processes)
    (parts,) = built
    assert parts.algorithm.iteration == state["iteration"] + 1
    assert not told


@pytest.mark.parametrize("algo", ["dqn", "adrl"])
def test_what_runs_in_one_process_says_so(algo, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "Processes", lambda: SimpleNamespace(size=2, rank=0))
    assert cli.main(["train", f"run={tmp_path / 'run'}", f"algo={algo}", *tiny(algo)]) == 2
    assert f"algo.module={algo} runs in one process, not in 2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("num", "size"), [(5, 1), (5, 2), (4, 4), (3, 4)])
def test_individuals_are_shared_out(num, size):
    ranks = [Processes() for _ in range(size)]
    for number, rank in enumerate(ranks):
        rank.size, rank.rank = size, number
    assert torch.equal(torch.cat([rank.shard(num) for rank in ranks]), torch.arange(num))
