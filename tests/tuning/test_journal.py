"""The journal of a study: whole lines alone, whoever writes and is killed, and nothing that a stranger's file could do."""

import os
import threading

import pytest

from metarl_cli.errors import UserError
from metarl_cli.tuning import journal
from metarl_cli.tuning.journal import Journal


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.jsonl"


def test_reads_what_was_written_from_a_line_on(path):
    written, other = Journal(path), Journal(path)
    assert list(written.read_logs(0)) == []
    written.append_logs([{"a": 1}, {"a": 2}])
    assert list(other.read_logs(0)) == [{"a": 1}, {"a": 2}]
    written.append_logs([{"a": 3}])
    assert list(other.read_logs(2)) == [{"a": 3}]
    assert list(other.read_logs(1)) == [{"a": 2}, {"a": 3}]
    assert list(written.read_logs(0)) == [{"a": 1}, {"a": 2}, {"a": 3}]


@pytest.mark.parametrize("torn", [b'{"a": ', b"x" * 10_000])
def test_a_line_of_a_killed_process_is_none(path, torn):
    path.write_bytes(b'{"a": 1}\n' + torn)
    one, two = Journal(path), Journal(path)
    assert list(one.read_logs(0)) == [{"a": 1}]
    two.append_logs([{"a": 2}])
    assert list(one.read_logs(1)) == [{"a": 2}]
    assert path.read_bytes() == b'{"a": 1}\n{"a": 2}\n'


def test_a_file_of_one_torn_line_is_empty(path):
    path.write_bytes(b'{"a"')
    Journal(path).append_logs([{"a": 1}])
    assert path.read_bytes() == b'{"a": 1}\n'


def test_several_writers_lose_nothing(path):
    def write(name):
        for number in range(20):
            Journal(path).append_logs([{name: number}])

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = list(Journal(path).read_logs(0))
    for name in "abc":
        assert [each[name] for each in found if name in each] == list(range(20))


@pytest.mark.parametrize("content", [b"no json\n", b"[1]\n", b"[" * 100_000 + b"\n", b"\xff\n", b"9" * 5000 + b"\n"])
def test_refuses_what_is_no_journal(path, content):
    path.write_bytes(content)
    with pytest.raises(UserError, match="refused"):
        Journal(path).read_logs(0)


def test_refuses_what_would_not_fit(path, monkeypatch):
    with path.open("wb") as file:
        file.truncate(journal.LARGEST + 1)
    with pytest.raises(UserError, match="MB"):
        Journal(path).read_logs(0)
    path.write_bytes(b"{}\n" * 4)
    monkeypatch.setattr(journal, "MOST", 3)
    with pytest.raises(UserError, match="lines"):
        Journal(path).read_logs(0)


def test_refuses_links_and_pipes(path, tmp_path):
    (tmp_path / "elsewhere").touch()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="link"):
        Journal(path).append_logs([{}])
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError):
        Journal(path).read_logs(0)
