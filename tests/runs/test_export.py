"""Exported policies: the function of tensors is the policy, in every format, and the contract says how to call it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import urllib.request
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CONF, slow_if, tiny
from launching import PATIENCE

import metarl_cli as metarl
from metarl_cli.cli.export import parse
from metarl_cli.cli.main import main
from metarl_cli.errors import UserError
from metarl_cli.interfaces import State
from metarl_cli.runs import export
from metarl_cli.runs.export import FORMATS, Check, Contract, Moment, check_formats
from metarl_cli.runs.files import read_json
from metarl_cli.runs.policy import AdaptedPolicy
from metarl_cli.runs.tensor_policy import Traced, flatten, trace

SERVER = CONF.parent / "examples" / "serve_policy.py"
FILE_FORMATS = [
    "pt2",
    pytest.param("onnx", marks=pytest.mark.skipif(not all(map(export.find_spec, FORMATS["onnx"].packages)), reason="no extra")),
]
# by algorithm, the family and some of the memory: adapted by gradient, one with vectors, evolved, recurrent, a history
CASES = {
    "maml_dqn": ("cartpole_family", set()),
    "maml_pg": ("pendulum_family", set()),
    "es_dqn": ("cartpole_family", set()),
    "rl2": ("cartpole_family", {"hidden.h", "before.step", "last.obs"}),
    "stacked_dqn": ("cartpole_family", {"history", "last.obs", "last.action"}),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The file of an adapted policy of an algorithm, made when it is first asked for; its run is beside it."""
    folder, made = tmp_path_factory.mktemp("policies"), dict[str, Path]()

    def make(algo: str) -> Path:
        if algo not in made:
            env, _ = CASES[algo]
            run = metarl.train(f"algo={algo}", f"env={env}", *tiny(algo), f"run={folder / algo / 'run'}")
            made[algo] = folder / algo / "policy.pt"
            run.adapt(seed=1).save(made[algo])
        return made[algo]

    return make


@pytest.fixture(scope="module")
def graph(saved):
    """The graph of the policy of an algorithm, traced once, and the policy that was traced."""

    @cache
    def make(algo: str) -> tuple[Traced, AdaptedPolicy]:
        policy = loaded(saved(algo))
        return trace(policy, torch.from_numpy(observations(policy, 1))), policy

    return make


def loaded(path: Path) -> AdaptedPolicy:
    policy = metarl.load(path, device="cpu")
    assert isinstance(policy, AdaptedPolicy)
    return policy


def observations(policy: AdaptedPolicy, num: int, seed: int = 0) -> np.ndarray:
    """Random ones of the usual size, so that a policy of a tiny run does not always do the same."""
    scale = np.array(policy.spec.obs_scale or 1.0)
    return (np.random.default_rng(seed).normal(size=(num, *policy.spec.obs_shape)) * 3 * scale).astype(np.float32)


def played(policy: AdaptedPolicy, num: int = 200) -> list[Moment]:
    """What the policy does at random observations and rewards, in episodes of seven steps."""
    rewards = np.random.default_rng(1).normal(size=num).astype(np.float32)
    moments = []
    for number, (obs, reward) in enumerate(zip(observations(policy, num), rewards.tolist(), strict=True)):
        given = (reward, number % 7 == 0) if number else (0.0, False)
        moments.append(Moment(obs, *given, number == 0, policy(obs, *given)))
    return moments


@pytest.mark.parametrize("kind", FILE_FORMATS)
@pytest.mark.parametrize("algo", slow_if(CASES, lambda algo: algo == "es_dqn"))
def test_an_exported_function_is_the_policy(saved, graph, algo, kind):
    """Actions are equal, and so is what a memory holds in the end."""
    policy = loaded(saved(algo))
    moments, (traced, _) = played(policy), graph(algo)
    with export.quiet():
        function = FORMATS[kind].decode(FORMATS[kind].encode(traced))
    assert traced.memory.keys() >= CASES[algo][1]
    assert bool(traced.memory) == bool(CASES[algo][1])
    actions, memory = [], [value.numpy() for value in traced.memory.values()]
    for moment in moments:
        more = [np.array([moment.reward], np.float32), np.array([moment.ended]), *memory] if memory else []
        action, *memory = function([moment.obs[None], *more])
        actions.append(action[0])
    ours = np.array([moment.action for moment in moments])
    assert np.ptp(ours) > 0, "the policy does not always do the same"
    np.testing.assert_allclose(np.array(actions), ours, rtol=0, atol=1e-5)
    final = flatten(policy.state)
    for name, value in zip(traced.memory, memory, strict=True):
        if name in final:
            np.testing.assert_allclose(value, final[name].numpy(), rtol=1e-5, atol=1e-5)
    if not memory:
        many = function([np.stack([moment.obs for moment in moments])])[0]
        np.testing.assert_allclose(many, ours, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["lstm", "transformer"])
def test_every_memory_is_exported(cell, tmp_path):
    overrides = [f"algo.memory.cell={cell}", *tiny("rl2"), f"run={tmp_path / 'run'}"]
    policy = metarl.train("algo=rl2", "env=cartpole_family", *overrides).before_adaptation()
    kinds = [name for name, kind in FORMATS.items() if all(map(export.find_spec, kind.packages))]
    found = policy.export(tmp_path / "served", kinds)
    assert [file["check"]["equal"] for file in found["files"].values()] == [1.0] * len(kinds)
    assert {"h", "keys"} & {each["name"].removeprefix("hidden.") for each in found["memory"]}


def test_what_actions_do_not_depend_on_is_no_memory(graph):
    traced, _ = graph("rl2")
    assert {"horizon", "seen.inputs", "seen.features", "rng"}.isdisjoint(traced.memory), (
        "a constant, and what only learning needs"
    )
    assert traced.inputs[:3] == ["obs", "reward", "ended"]


def test_a_memory_starts_from_what_the_adaptation_has_left(saved, graph):
    """Tracing changes nothing of the policy."""
    fresh, (traced, policy) = loaded(saved("rl2")), graph("rl2")
    for name, value in flatten(fresh.adapted).items():
        assert not isinstance(value, torch.Tensor) or torch.equal(value, flatten(policy.adapted)[name])
    assert torch.equal(traced.memory["hidden.h"], fresh.adapted["hidden"]["h"])
    assert traced.memory["hidden.h"].abs().max() > 0
    assert not traced.memory["started"]


def test_the_command_writes_files_and_their_contract(saved, tmp_path, capsys):
    assert main(["export", str(saved("rl2").parent), "format=pt2", f"out={tmp_path / 'served'}"]) == 0
    shown = capsys.readouterr().out
    assert "policy.pt2" in shown
    assert "100 % of 1,000 actions equal" in shown
    assert {path.name for path in (tmp_path / "served").iterdir()} == {"policy.pt2", "contract.json"}
    found = read_json(tmp_path / "served" / "contract.json", Contract)
    content = (tmp_path / "served" / "policy.pt2").read_bytes()
    assert found["files"]["policy.pt2"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert str(CONF.parent).encode() not in content, "nothing of this machine"
    assert (found["action"]["kind"], found["action"]["low"], found["action"]["high"]) == ("number", 0, 1)
    assert found["task"] == loaded(saved("rl2")).task
    module = torch.export.load(tmp_path / "served" / "policy.pt2").module()
    policy, memory = loaded(saved("rl2")), [torch.tensor(each["start"]) for each in found["memory"]]
    for moment in played(policy, 20):
        obs, reward = torch.from_numpy(moment.obs)[None], torch.tensor([moment.reward])
        action, *memory = module(obs, reward, torch.tensor([moment.ended]), *memory)
        assert int(action) == moment.action


def test_a_run_is_exported_as_it_is_before_adaptation(saved):
    run = saved("rl2").parent / "run"
    assert main(["export", str(run), "format=pt2"]) == 0
    found = read_json(run / "exported" / "contract.json", Contract)
    hidden = next(each for each in found["memory"] if each["name"] == "hidden.h")
    assert not np.any(hidden["start"]), "at the start of a trial"
    start = metarl.load(saved("maml_dqn").parent / "run").before_adaptation()
    unmoved = metarl.load(saved("maml_dqn").parent / "run").adapt(steps=0)
    assert all(map(torch.equal, *(flatten(each.policy.state_dict()).values() for each in (start, unmoved))))


def test_vectors_are_within_their_bounds(saved, tmp_path):
    found = loaded(saved("maml_pg")).export(tmp_path, ["pt2"])
    assert found["action"] == {
        "name": "action",
        "shape": ["batch", 1],
        "type": "float32",
        "kind": "vector",
        "low": [-2.0],
        "high": [2.0],
        "clipped": True,
    }
    assert found["inputs"] == [{"name": "obs", "shape": ["batch", 3], "type": "float32"}]
    assert found["memory"] == []
    module = torch.export.load(tmp_path / "policy.pt2").module()
    assert module(torch.full((5, 3), 1e6))[0].abs().max() <= 2


def test_a_file_that_acts_otherwise_is_not_written(saved, tmp_path, monkeypatch):
    decode = FORMATS["pt2"].decode

    def opposite(content: bytes) -> export.Function:
        function = decode(content)
        return lambda arrays: [1 - function(arrays)[0]]

    other = FORMATS["pt2"]._replace(decode=opposite)
    monkeypatch.setattr(export, "FORMATS", {"pt2": other})
    with pytest.raises(UserError, match=r"policy.pt2 does not act as the policy: 100.0% of 1000 actions differ") as caught:
        loaded(saved("maml_dqn")).export(tmp_path / "out")
    assert caught.value.exit_code == 1
    assert not (tmp_path / "out").exists()
    export.refuse(Check(1000, 0.999, True, 1.0), "policy.pt2", vectors=False)
    for wrong, vectors in ((Check(1000, 0.999, True, 1.0), True), (Check(1000, 0.999, False, 1.0), False)):
        with pytest.raises(UserError, match="does not act as the policy"):
            export.refuse(wrong, "policy.pt2", vectors)


def test_files_of_others_are_kept_and_of_an_earlier_export_replaced(saved, tmp_path):
    policy = loaded(saved("maml_dqn"))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "policy.pt2").write_text("mine")
    with pytest.raises(UserError, match="is there already, and belongs to no export"):
        policy.export(tmp_path / "foreign", ["pt2"])
    assert (tmp_path / "foreign" / "policy.pt2").read_text() == "mine"
    (tmp_path / "link").symlink_to(tmp_path / "foreign")
    with pytest.raises(UserError, match="it is a link"):
        policy.export(tmp_path / "link", ["pt2"])
    policy.export(tmp_path / "own", ["pt2"])
    (tmp_path / "own" / "policy.onnx").write_text("of an export before")
    policy.export(tmp_path / "own", ["pt2"])
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == ["contract.json", "policy.pt2"]


class Counting:
    """A policy whose state is not of tensors alone."""

    def __init__(self, state: State):
        self.start = state

    def act(self, state: State, obs: torch.Tensor) -> tuple[torch.Tensor, State]:
        return obs[..., 0].long(), {**state, "step": state["step"] + 1}

    def observe(self, state: State, *step: Any) -> State:
        return state


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"rng": torch.Generator(), "step": torch.zeros(1)}, "draws random numbers"),
        ({"rng": None, "step": 0}, r"a number that changes and is no tensor \(step\)"),
    ],
)
def test_what_is_no_function_of_tensors_is_refused(saved, state, said):
    policy = loaded(saved("maml_dqn"))
    policy.policy, policy.adapted = Counting(state), state
    with pytest.raises(UserError, match=said):
        trace(policy, torch.zeros(1, 4))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "takes one path"),
        (["a", "b"], "takes one path: .*, got a, b"),
        (["a", "fromat=pt2"], "fromat: no such key; did you mean format"),
        (["a", "out=x", "out=y"], "out: is given twice"),
        (["a", "out="], "out=: has no value"),
        (["a", "--force"], "--force: no such flag"),
    ],
)
def test_wrong_words_are_refused(words, said):
    with pytest.raises(UserError, match=said):
        parse(words)


def test_a_wrong_path_or_format_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None if name.startswith("onnx") else object())
    (tmp_path / "policy.pt").write_text("nothing of the kind")
    for words, said in (
        ([tmp_path / "nowhere", "format=pt2"], "nowhere"),
        (["x" * 300, "format=pt2"], "is not a run folder"),  # longer than any file name
        ([tmp_path, "x" * 300 + "=1"], "no such key"),
        ([tmp_path, "format=pt2"], "not a metarl checkpoint"),
        ([tmp_path, "format=onxn"], "format=onxn: no such format; did you mean onnx?"),
        (
            [tmp_path],
            "needs onnx, onnxscript, onnxruntime: pip install onnx onnxscript onnxruntime; without it there is format=pt2",
        ),
    ):
        assert main(["export", *map(str, words)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    assert list(check_formats(["pt2"])) == ["pt2"]


@pytest.mark.slow
def test_the_example_serves_a_policy_without_this_package(saved, tmp_path):
    for name in FORMATS["onnx"].packages:
        pytest.importorskip(name)
    assert "metarl_cli" not in SERVER.read_text()
    policy = loaded(saved("rl2"))
    policy.export(tmp_path, ["onnx"])
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen([sys.executable, str(SERVER), str(tmp_path), "0"], stdout=subprocess.PIPE, text=True, env=env)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()

        def ask(**values: Any) -> dict[str, Any]:
            request = urllib.request.Request(address, json.dumps(values).encode())
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return json.loads(answer.read())

        for _ in range(2):
            assert ask(reset=True) == {}
            policy.reset()
            for moment in played(policy, 30):
                assert ask(obs=moment.obs.tolist(), reward=moment.reward, ended=moment.ended) == {"action": moment.action}
    finally:
        server.kill()
        server.communicate()
