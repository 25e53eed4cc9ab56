"""The zoo: every run that comes with metarl is of this version, adapts, scores what it says, and weighs little."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import metarl_cli as metarl
from metarl_cli.cli.main import main
from metarl_cli.errors import UserError
from metarl_cli.runs import checkpoint, shipped
from metarl_cli.runs.folder import FORMAT, RunFolder
from metarl_cli.runs.run import Run
from metarl_cli.runs.shipped import FOLDER, KEPT, entries, find, size

FIRST = "maml_dqn-cartpole_family"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """In an empty folder, and the package is as it was afterwards."""
    before = {path: path.stat().st_mtime_ns for path in FOLDER.rglob("*")}
    monkeypatch.chdir(tmp_path)
    yield
    assert {path: path.stat().st_mtime_ns for path in FOLDER.rglob("*")} == before


def test_the_zoo_weighs_little_and_holds_nothing_else():
    assert sum(map(size, entries())) < 5e6
    inside = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file()}
    assert inside <= {"zoo.yaml", *(f"{name}/{path}" for name in entries() for path in KEPT)}


@pytest.mark.parametrize("name", entries())
def test_every_run_is_of_this_version(name):
    """After a change of the format of run folders: python benchmarks/zoo.py --again."""
    folder = RunFolder(FOLDER / name)
    manifest, config = folder.manifest(), folder.config()
    assert (manifest["format"], manifest["status"]) == (FORMAT, "finished")
    assert set(entries()[name].train) <= set(manifest["command"].replace("'", "").split()), "made by the command in zoo.yaml"
    assert "/tmp" not in manifest["command"]
    weights = checkpoint.load(folder.best)
    assert weights.keys() == {"format", "algorithm", "env_steps", "score"}, "no state of training"
    assert set(weights["algorithm"]) == {"weights"}
    assert {path.name for path in folder.results.iterdir()} >= {"test.json"}
    assert config.run == str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", entries())
def test_every_run_adapts_and_scores_what_it_says(name, capsys):
    if "half_cheetah" in name:
        pytest.importorskip("mujoco")
    assert main(["adapt", f"run=zoo:{name}", *entries()[name].adapt, "episodes=2"]) == 0
    assert f"outputs/zoo/{name}/adapted/" in capsys.readouterr().out
    stored = json.loads((FOLDER / name / "results" / "test.json").read_text())
    run = metarl.load(f"zoo:{name}")
    assert isinstance(run, Run)
    found = run.test()
    assert found["tasks"]["each"] == stored["tasks"]["each"]
    random, after = np.mean(stored["random"]["task_returns"][0]), np.mean(stored["adapted"]["task_returns"][-1])
    again = np.mean(found["adapted"]["task_returns"][-1])
    assert abs(again - after) <= 0.05 * abs(after - random), "the same draws, rounded as another processor does"


def test_a_run_is_copied_and_used_like_any_other(capsys):
    assert main(["test", f"run=zoo:{FIRST}", "tasks=2", "episodes=1"]) == 0
    shown = capsys.readouterr()
    folder = Path("outputs", "zoo", FIRST)
    assert f"written: {folder}/results/test-best-tasks2" in shown.out
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.*")} >= {path for path in KEPT if "ood" not in path}
    assert not list(folder.parent.glob(".*")), "nothing unfinished is left"
    assert find(f"zoo:{FIRST}") == folder
    assert main(["report", f"zoo:{FIRST}"]) == 0
    assert "cartpole_family" in capsys.readouterr().out
    assert main(["train", f"run=zoo:{FIRST}"]) == 0
    assert f"{folder} is finished already" in capsys.readouterr().out


@pytest.mark.parametrize("path", [path for path in KEPT if (FOLDER / FIRST / path).exists()])
def test_a_run_of_another_version_is_known_by_any_of_its_files(path):
    folder = find(f"zoo:{FIRST}")
    (folder / path).write_bytes((folder / path).read_bytes() + b" ")
    with pytest.raises(UserError, match=rf"{folder} is not the zoo:{FIRST} of this version of metarl; move it away"):
        find(f"zoo:{FIRST}")


def test_a_run_cannot_be_trained_on(capsys):
    assert main(["train", f"run=zoo:{FIRST}", "train.iterations=2000"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert f"zoo:{FIRST} comes with its best weights alone" in line
    assert line.endswith("train your own: metarl train experiment=maml_dqn_cartpole")


@pytest.mark.parametrize("there", ["something else", "a file", "a link to nowhere"])
def test_a_folder_of_ones_own_is_left_alone(there):
    folder = Path("outputs", "zoo", FIRST)
    folder.parent.mkdir(parents=True)
    if there == "something else":
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
    elif there == "a file":
        folder.write_text("mine")
    else:
        folder.symlink_to("nowhere")
    with pytest.raises(UserError, match=rf"{folder} is not the zoo:{FIRST} of this version of metarl; move it away"):
        find(f"zoo:{FIRST}")
    assert [path.name for path in folder.parent.iterdir()] == [FIRST]
    assert there != "something else" or [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_a_full_disk_leaves_nothing(monkeypatch):
    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"a part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(UserError, match=r"cannot write outputs/zoo/.*: No space left on device"):
        find(f"zoo:{FIRST}")
    assert not list(Path("outputs", "zoo").iterdir())


def test_an_unknown_name_is_one_line(capsys):
    for words in (
        ["adapt", "run=zoo:maml_dqn-cartpole"],
        ["export", "zoo:maml_dqn-cartpole", "format=pt2"],
        ["zoo", "maml_dqn-cartpole"],
    ):
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"did you mean {FIRST}?" in line
    assert not list(Path().iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"cannot write outputs/zoo/.*: Permission denied"):
        find(f"zoo:{FIRST}")
    tmp_path.chmod(0o700)


def test_another_process_may_copy_the_same(monkeypatch):
    rename = Path.rename

    def late(unfinished: Path, folder: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        monkeypatch.setattr(os, "getpid", lambda: 1)
        find(f"zoo:{FIRST}")
        return unfinished.rename(folder)

    monkeypatch.setattr(Path, "rename", late)
    assert RunFolder(find(f"zoo:{FIRST}")).manifest()["status"] == "finished"
    assert [path.name for path in Path("outputs", "zoo").iterdir()] == [FIRST]


def test_the_list_and_one_in_full(capsys):
    assert main(["zoo"]) == 0
    shown = capsys.readouterr().out
    assert all(f"zoo:{name}" in shown for name in entries())
    assert f"metarl adapt run=zoo:{FIRST} task.gravity=15" in shown
    assert max(map(len, shown.splitlines())) <= 120
    assert main(["zoo", FIRST, f"zoo:{FIRST}"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("made by: metarl train experiment=maml_dqn_cartpole") == 2
    stored = json.loads((FOLDER / FIRST / "results" / "test.json").read_text())["adapted"]["task_returns"]
    for row in stored:
        assert f"{np.mean(row):.2f}" in shown
    assert shipped.PREFIX == "zoo:"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("metarl adapt run=", ["run=zoo:"]),
        ("metarl adapt run=zo", ["run=zoo:"]),
        ("metarl adapt run=zoo:maml_dqn-c", [f"run=zoo:{FIRST}"]),
        ("metarl test run=zoo:", [f"run=zoo:{name}" for name in entries()]),
        ("metarl zoo maml_dqn-c", [FIRST]),
    ],
)
def test_names_are_completed(line, expected, monkeypatch, capsys):
    monkeypatch.setenv("COMP_LINE", line)
    assert main(["-sc", "query=bash"]) == 0
    assert capsys.readouterr().out.split() == expected


def test_bash_takes_the_colon_as_a_part_of_the_word(capsys):
    assert main(["--shell-completion", "install=bash"]) == 0
    assert "COMP_WORDBREAKS=${COMP_WORDBREAKS//[=:]}" in capsys.readouterr().out
