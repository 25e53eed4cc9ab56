"""Checkpoints are whole or absent, and nothing hostile or damaged gets through."""

import io
import os
import pickle
import random
import zipfile

import numpy as np
import pytest
import torch

from metarl_cli.errors import UserError
from metarl_cli.runs import checkpoint

STATE = {"weights": {"w": torch.arange(1000.0)}, "iteration": 3, "names": ["a", None], "rate": 0.5, "pair": (1, 2**70)}


class Mine(dict):
    """A dict that is read by importing this module."""


class Harmful:
    def __reduce__(self):
        return os.system, ("echo this must never run > harmful.txt",)


class Large:
    """Builds its size of memory from a few bytes."""

    def __reduce__(self):
        return bytearray, (2**40,)


def sealed(state) -> bytes:
    """A file whose checksum is right, whatever stands in it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return checkpoint.seal(buffer)


def test_round_trip(tmp_path):
    path = tmp_path / "last.pt"
    state = {**STATE, "columns": torch.arange(6.0).view(2, 3).T}
    checkpoint.save(path, state)
    loaded = checkpoint.load(path)
    assert torch.equal(loaded["weights"]["w"], STATE["weights"]["w"])
    assert all(loaded[name] == STATE[name] for name in ("iteration", "names", "rate", "pair"))
    assert loaded["columns"].stride() == (1, 3), "the order of sums depends on it"
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
    assert torch.load(path, weights_only=True)["iteration"] == 3, "others can read it"


def damages(content: bytes, number: int):
    """The same file, damaged in many ways."""
    rng = random.Random(0)
    for _ in range(number):
        place, size = rng.randrange(len(content)), rng.choice([1, 16, 200])
        damaged = bytearray(content)
        kind = rng.randrange(6)
        if kind == 0:
            damaged[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            damaged[place : place + size] = rng.randbytes(size)
        elif kind == 2:
            del damaged[place:]
        elif kind == 3:
            damaged[place : place + size] = bytes(size)
        elif kind == 4:
            del damaged[place : place + size]
        else:
            damaged[place:place] = damaged[place : place + size]
        if damaged != content:
            yield bytes(damaged)
    start = -1
    while (start := content.find(b"PK\x01\x02", start + 1)) >= 0:  # each record called a folder: torch would leave it unread
        yield content[: start + 38] + bytes([content[start + 38] ^ 0x10]) + content[start + 39 :]
    yield b""


def test_refuses_every_damaged_file():
    content = checkpoint.encode(STATE)
    assert checkpoint.decode(content, "here")["iteration"] == 3
    number = 0
    for damaged in damages(content, 500):
        number += 1
        with pytest.raises(UserError, match="refused here: "):
            checkpoint.decode(damaged, "here")
    assert number > 400


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("value", [Harmful(), Large(), np.ones(3), {1, 2}, b"x", torch.nn.Parameter(torch.ones(2)), Mine(x=1)])
def test_refuses_what_is_no_plain_value(value, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="neither a tensor nor a plain value"):
        checkpoint.encode({"weights": value})
    buffer = io.BytesIO()
    torch.save({"format": checkpoint.FORMAT, "weights": value}, buffer, pickle_protocol=protocol)
    for content in (checkpoint.seal(buffer), pickle.dumps(value)):
        with pytest.raises(UserError, match="refused"):
            checkpoint.decode(content, "here")
    assert not (tmp_path / "harmful.txt").exists()


def test_refuses_an_archive_that_is_larger_than_it_seems(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"format": checkpoint.FORMAT, "x": "0" * 10**6}, 2))
        archive.writestr("archive/version", "3")
    with pytest.raises(UserError, match="packed otherwise"):
        checkpoint.decode(checkpoint.seal(io.BytesIO((tmp_path / "bomb").read_bytes())), "here")
    wide = torch.ones(1).expand(10**12)
    with pytest.raises(UserError, match="larger than the file"):
        checkpoint.decode(sealed({"format": checkpoint.FORMAT, "x": wide}), "here")


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
def test_refuses_texts_that_reach_out_when_writing_and_when_reading(tmp_path, value):
    with pytest.raises(UserError, match="could name code or a path outside"):
        checkpoint.save(tmp_path / "last.pt", value)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="could name code or a path outside"):
        checkpoint.decode(sealed({"format": checkpoint.FORMAT, **value}), "here")


def test_texts_that_refer_to_themselves_and_deep_ones_end():
    loop: dict = {}
    loop["x"] = [loop]
    checkpoint.refuse_unsafe(loop, "a loop")
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    checkpoint.refuse_unsafe({"deep": deep}, "a deep list")
    while deep:  # piece by piece: a destructor would recurse
        deep = deep.pop()


def test_refuses_another_format_and_a_missing_file(tmp_path):
    torch.save({"weights": 1}, tmp_path / "other.pt")
    (tmp_path / "older.pt").write_bytes(sealed({"format": checkpoint.FORMAT - 1}))
    for name in ("other.pt", "older.pt"):
        with pytest.raises(UserError, match="not a metarl checkpoint"):
            checkpoint.load(tmp_path / name)
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
