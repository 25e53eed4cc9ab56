"""Checkpoints are whole or absent, and nothing hostile or damaged gets through."""

import os
import pickle

import pytest
import torch

from metarl_cli.errors import UserError
from metarl_cli.runs import checkpoint

STATE = {"weights": {"w": torch.arange(1000.0)}, "iteration": 3, "names": ["a", None], "rate": 0.5}


class Harmful:
    def __reduce__(self):
        return os.system, ("echo this must never run > harmful.txt",)


def test_round_trip(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save(path, STATE)
    state = checkpoint.load(path)
    assert torch.equal(state["weights"]["w"], STATE["weights"]["w"])
    assert (state["iteration"], state["names"], state["rate"]) == (3, ["a", None], 0.5)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_refuses_a_truncated_file(tmp_path, share):
    path = tmp_path / "last.pt"
    checkpoint.save(path, STATE)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"refused .*last\.pt: "):
        checkpoint.load(path)


@pytest.mark.parametrize("where", [0.02, 0.3, 0.5, 0.7, 0.95])
def test_refuses_a_damaged_file(tmp_path, where):
    path = tmp_path / "last.pt"
    checkpoint.save(path, STATE)
    content = bytearray(path.read_bytes())
    for i in range(16):
        content[int(len(content) * where) + i] ^= 0x5A
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"refused .*last\.pt: "):
        checkpoint.load(path)


@pytest.mark.parametrize("writer", [lambda p, s: torch.save(s, p), lambda p, s: p.write_bytes(pickle.dumps(s))])
def test_refuses_pickled_code_without_running_it(tmp_path, monkeypatch, writer):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "last.pt"
    writer(path, {"format": checkpoint.FORMAT, "weights": Harmful()})
    with pytest.raises(UserError, match="refused"):
        checkpoint.load(path)
    assert not (tmp_path / "harmful.txt").exists()


@pytest.mark.parametrize(
    "value",
    [
        {"_target_": "os.system"},
        {"a": [{"b": "${oc.env:SECRET}"}]},
        {"file": "/etc/passwd"},
        {"file": "../../elsewhere"},
        {"file": "a/../../b"},
        {"/absolute": 1},
        {"file": "C:\\Windows"},
        {"file": "~/.ssh"},
    ],
)
def test_refuses_texts_that_reach_out(tmp_path, value):
    path = tmp_path / "last.pt"
    checkpoint.save(path, value)
    with pytest.raises(UserError, match="could name code or a path outside"):
        checkpoint.load(path)


def test_texts_that_refer_to_themselves_end():
    loop: dict = {}
    loop["x"] = [loop]
    checkpoint.refuse_unsafe(loop, "a loop")


def test_refuses_another_format_and_a_missing_file(tmp_path):
    torch.save({"weights": 1}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="not a metarl checkpoint"):
        checkpoint.load(tmp_path / "other.pt")
    with pytest.raises(UserError, match="cannot read"):
        checkpoint.load(tmp_path / "none.pt")


def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint.save(path, STATE)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left on device; the previous version is intact"):
        checkpoint.save(path, {**STATE, "iteration": 4})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
