"""Exported adaptations: the functions of tensors adapt as the algorithm does, and what is none is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CONF, tiny

import metarl_cli as metarl
from metarl_cli.cli.main import main
from metarl_cli.errors import UserError
from metarl_cli.runs.export import FORMATS, Contract, find_spec
from metarl_cli.runs.export_adaptation import Checked, adapted, check, refuse
from metarl_cli.runs.files import read_json
from metarl_cli.runs.run import Run
from metarl_cli.runs.shipped import FOLDER
from metarl_cli.runs.tensor_adaptation import Graph, solved, trace_adaptation

EXAMPLE = CONF.parent / "examples" / "adapt_policy.py"
WITH_ONNX = pytest.mark.skipif(not all(map(find_spec, FORMATS["onnx"].packages)), reason="no extra")


def shipped(name: str) -> Run:
    run = metarl.load(FOLDER / name, device="cpu")
    assert isinstance(run, Run)
    return run


def test_elimination_solves_equations_of_least_squares():
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 40, 8, generator=rng, dtype=torch.float64)
    square, right = rows.mT @ rows + 1e-3 * torch.eye(8), torch.randn(3, 8, 2, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(solved(square, right), torch.linalg.solve(square, right), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("maml_dqn-cartpole_family", 3),
        pytest.param("es_dqn-cartpole_family", 3, marks=pytest.mark.slow),
        pytest.param("osi_dqn-two_link_arm", 1, marks=pytest.mark.slow),
    ],
)
def test_the_functions_adapt_as_the_algorithm(name, steps):
    run = shipped(name)
    learning: Any = run.algorithm.learning()
    path = list(adapted(run.algorithm, learning, run.family, run.task({}), 0))
    assert len(path) == steps
    traced = trace_adaptation(learning, path[0][0], run.family.spec, 0)

    def called(graph: Graph) -> Any:
        module = graph.program.module()
        return lambda arrays: [each.numpy() for each in module(*map(torch.as_tensor, arrays))]

    found = check(called(traced.act), called(traced.adapt), traced, [path], learning)
    assert found.largest_change > 1e-3
    assert found.largest_difference <= 1e-6 * max(1, found.largest_change)
    assert found.equal == 1
    halved = {key: value / 2 for key, value in path[-1][1].items()}
    wrong = check(called(traced.act), called(traced.adapt), traced, [[*path[:-1], (path[-1][0], halved)]], learning)
    with pytest.raises(UserError, match="does not adapt as the run"):
        refuse(wrong, "adaptation.pt2")


def test_what_fills_a_support_counts_nothing():
    """Eight episodes in the place of nine, of which one has weight 0."""
    run = shipped("maml_dqn-cartpole_family")
    learning: Any = run.algorithm.learning()
    ((support, ours), *_) = adapted(run.algorithm, learning, run.family, run.task({}), 0)
    filled = type(support)(*(torch.cat([value, value[:, :, :1]], 2) for value in support))
    filled.weight[:, :, -1] = 0
    after = learning.step(torch.tensor(1), learning.start, filled)
    for name, value in ours.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-7)


def test_rounding_is_told_from_a_difference():
    refuse(Checked(3, 0.1, 1e-5, 1.0, 100), "adaptation.pt2")
    for wrong in (Checked(3, 0.1, 1e-3, 1.0, 100), Checked(3, 0.1, float("nan"), 1.0, 100), Checked(3, 0.1, 0.0, 0.9, 100)):
        with pytest.raises(UserError, match=r"adaptation.pt2 does not adapt as the run: weights differ by up to"):
            refuse(wrong, "adaptation.pt2")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["adaptation=maybe"], "adaptation=maybe: must be true or false"),
        (["adaptatoin=true"], "adaptatoin: no such key; did you mean adaptation?"),
    ],
)
def test_wrong_words_are_one_line(words, said, capsys):
    assert main(["export", "somewhere", *words]) == 2
    assert said in capsys.readouterr().err


def test_what_adapts_otherwise_is_refused(tmp_path, capsys):
    run = metarl.train("algo=rl2", "env=bandit", *tiny("rl2"), f"run={tmp_path / 'run'}")
    assert main(["export", str(run.path), "adaptation=true", "format=pt2"]) == 2
    assert "adapts by the memory of its policy, which is exported with it" in capsys.readouterr().err
    run.adapt().save(tmp_path / "policy.pt")
    assert main(["export", str(tmp_path / "policy.pt"), "adaptation=true", "format=pt2"]) == 2
    assert "policy.pt is an adapted policy; adaptation=true is of a run" in capsys.readouterr().err
    assert not (tmp_path / "exported").exists()


@pytest.mark.slow
@WITH_ONNX
def test_a_device_adapts_without_this_package(tmp_path, monkeypatch, capsys):
    """The example reads the contract alone: what it says is enough."""
    monkeypatch.chdir(tmp_path)
    assert main(["export", "zoo:maml_dqn-cartpole_family", "adaptation=true", "out=served"]) == 0
    assert "adaptation.onnx" in capsys.readouterr().out
    found = read_json(tmp_path / "served" / "contract.json", Contract)
    assert {path.name for path in Path("served").iterdir()} == {*found["files"], "contract.json"}
    assert "metarl_cli" not in EXAMPLE.read_text()
    command = [sys.executable, str(EXAMPLE), "served"]
    shown = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True
    ).stdout
    before, after = (float(line.split()[-1]) for line in shown.splitlines())
    assert after > before
    assert after == 500


@pytest.mark.slow
def test_a_policy_gradient_is_exported(tmp_path):
    """Its baseline solves equations, for which ONNX has no operator."""
    run = metarl.train("algo=maml_pg", "env=pendulum_family", *tiny("maml_pg"), f"run={tmp_path / 'run'}")
    kinds = [name for name, kind in FORMATS.items() if all(map(find_spec, kind.packages))]
    found = run.export_adaptation(tmp_path / "served", kinds)
    for file, each in found["files"].items():
        if file.startswith("adaptation"):
            assert each["check"]["largest_difference"] <= 1e-4 * each["check"]["largest_change"]
    assert [each["name"] for each in found["outputs"]] == ["action", "mean", "deviation"]
    weights = dict(np.load(tmp_path / "served" / "weights.npz"))
    assert [each["name"] for each in found["inputs"]] == ["obs", *weights]
    assert json.loads((tmp_path / "served" / "contract.json").read_text())["adaptation"]["support"]["fresh"]
