"""The largest memory of a run: it is measured, forgotten between jobs, and kept over resumes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from metarl_cli.cli.process import forget_peak
from metarl_cli.runs import peak
from metarl_cli.runs.peak import largest

MB = 10**6


def test_it_is_the_largest_and_what_came_before_is_forgotten():
    forget_peak()
    before = largest({})["memory"]
    taken = np.ones(25 * MB)  # 200 MB
    del taken
    after = largest({})["memory"]
    assert 190 * MB < after - before < 230 * MB
    assert largest({"memory": 10**15})["memory"] == 10**15, "of an earlier part of the run"
    forget_peak()
    if peak.PROCESSES.exists():
        assert largest({})["memory"] < before + 50 * MB


def test_other_systems_know_it_of_the_process_alone(monkeypatch):
    monkeypatch.setattr(peak, "PROCESSES", Path("/nowhere"))
    assert 20 * MB < largest({})["memory"] < 100_000 * MB


@pytest.mark.skipif(not peak.PROCESSES.exists(), reason="this system does not say it")
def test_simulators_in_processes_of_their_own_count(monkeypatch):
    program = "x = b'1' * 80_000_000; print(); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        alone = largest({})["memory"]
        monkeypatch.setattr(peak.multiprocessing, "active_children", lambda: [child])
        assert 80 * MB < largest({})["memory"] - alone < 200 * MB
        child.stdin.close()
