"""A run folder is a stranger's: what is no regular file, too large or not as it was written is one line."""

import itertools
import json
import os
import socket

import pytest
import yaml
from hostile import BOMB, MERGED
from pydantic import BaseModel

from metarl_cli.errors import UserError
from metarl_cli.runs import files


class Form(BaseModel):
    score: float
    name: str


@pytest.mark.parametrize("kind", ["link", "link to nothing", "link to a device", "pipe", "socket", "folder"])
def test_nothing_but_a_regular_file_is_opened(kind, tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "run"
    (folder / "results").mkdir(parents=True)
    path = folder / "results" / "file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(path.parent)  # a short name: those of sockets are limited
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path.name)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"link": victim, "link to nothing": tmp_path / "none", "link to a device": "/dev/zero"}[kind])
    for flags in (os.O_RDONLY, os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_APPEND):
        with pytest.raises((UserError, OSError), match=r"link|no regular file|Is a directory|No such device"):
            os.close(files.open_regular(path, flags))
    with pytest.raises(UserError, match=r"refused|cannot read"):
        files.read(path)
    if kind == "folder":
        files.refuse_links(folder)
    else:
        with pytest.raises(UserError, match="a run folder holds files and folders alone"):
            files.refuse_links(folder)
    if kind != "folder":
        files.write_whole(path, b"mine")  # takes its place
        assert path.read_bytes() == b"mine"
    assert victim.read_text() == "precious"
    assert not (tmp_path / "none").exists()


def test_a_large_file_is_not_read(tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match=r"it has 1,099,512 MB"):
        files.read(tmp_path / "large")


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "a: b: c",
        "a: !!python/object/apply:os.system [ls]",
        "a: &a [*a]",
        BOMB,
        MERGED,
        "[" * 5000,
        "{a: " * 5000,
        "a: 2020-13-45",
        f"a: {'9' * 5000}",
        "a: \x00",
        "a: *nothing",
        "%YAML 9.9\n---\na: 1",
        "--- a\n--- b",
        b"a: \xff",
        b"\xfe\xff\x00a",
        "? [a]\n: 1",
    ],
    ids=lambda text: repr(text[:20]),
)
def test_bad_yaml_is_one_line(text, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"^cannot read .*config.yaml: ") as error:
        files.read_yaml(path)
    assert "\n" not in str(error.value)


def test_good_yaml_is_as_yaml_has_it(tmp_path):
    text = "a: &a [1, 2.5, null, true, text]\nb: *a\nc: {<<: {d: 1}, e: 2}\n"
    (tmp_path / "config.yaml").write_text(text)
    assert files.read_yaml(tmp_path / "config.yaml") == yaml.safe_load(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 10**5,
        '{"score": 1}',
        '{"score": "1", "name": 2}',
        f'{{"score": {"9" * 5000}}}',
        "\x00",
        b"\xff",
    ],
    ids=lambda text: repr(text[:20]),
)
def test_bad_json_is_one_line(text, tmp_path):
    path = tmp_path / "run.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"^(cannot read|refused) .*run.json: ") as error:
        files.read_json(path, Form)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "all"])
def test_every_bit_of_a_json_file_counts(step, tmp_path):
    path = tmp_path / "run.json"
    values = {"score": 0.1 + 0.2, "name": "é\n", "more": [(1, 2)], "none": None}
    files.write_json(path, values, Form)
    assert files.read_json(path, Form) == {
        **json.loads(json.dumps(values)),
        "checksum": files.read_json(path, Form)["checksum"],
    }
    content = path.read_bytes()
    for place, bit in list(itertools.product(range(len(content)), range(8)))[::step]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        try:
            read = files.read_json(path, Form)
        except UserError:
            continue
        assert {**read, "checksum": ""} == {**json.loads(content), "checksum": ""}, "white space alone may change"


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="score"):
        files.write_json(tmp_path / "run.json", {"name": "a"}, Form)
    assert not list(tmp_path.iterdir())
