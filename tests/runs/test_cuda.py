"""Runs on a GPU, where there is one."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from conftest import tiny
from launching import ONE_THREAD, PATIENCE

from metarl_cli.runs.folder import RunFolder


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("algo", ["maml_dqn", "rl2"])
def test_a_run_on_a_gpu(algo, tmp_path):
    """Two iterations, an evaluation after each, and the tests at the end; and going on finds the run finished."""
    small = [override for override in tiny(algo) if not override.startswith(("hardware", "train."))]
    gpu = ["train.iterations=2", "train.eval_every=1", "train.log_every=1", "hardware=cuda"]
    command = [sys.executable, "-m", "metarl_cli", "train", f"algo={algo}", *small, *gpu, f"run={tmp_path / 'run'}"]
    one = {**os.environ, **ONE_THREAD}
    for shown in ("held-out tasks", "finished already"):
        done = subprocess.run(command, cwd=tmp_path, env=one, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 0, done.stderr
        assert shown in done.stdout
    folder = RunFolder(tmp_path / "run")
    assert folder.manifest()["device"].startswith("cuda")
    rows = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    measured = ("loss/", "eval/", "test/")
    assert all(math.isfinite(value) for row in rows for name, value in row.items() if name.startswith(measured))
