"""Files that keep runs: they have the reports of the folders, and what is none is refused."""

import json
import os
import re

import pytest
from test_report import copied, outputs, rows, trained  # noqa: F401  # fixtures, among others

import metarl_cli as metarl
from metarl_cli.comparison import kept
from metarl_cli.comparison.figures import figures
from metarl_cli.comparison.report import report, write
from metarl_cli.errors import UserError


@pytest.fixture(scope="module")
def runs_file(outputs, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("kept")
    write(report([outputs]), folder, ["runs"], "")
    return folder / "runs.json"


@pytest.mark.parametrize("split", ["test", "ood"])
def test_a_file_that_keeps_runs_has_the_report_of_their_folders(split, outputs, runs_file):  # noqa: F811
    assert rows(metarl.report(runs_file, split=split)) == rows(metarl.report(outputs, split=split))
    found, again = report([outputs]), report([runs_file])
    assert {f"{run.path.name}{run.seed}" for run in again.runs} == {f"{run.path.name}{run.seed}" for run in found.runs}
    assert figures(again.comparisons[0]).keys() == figures(found.comparisons[0]).keys()
    assert again.runs[0].learning.keys() == found.runs[0].learning.keys() != set()


def test_a_file_that_keeps_runs_is_compared_with_folders_and_other_files(trained, runs_file, tmp_path):  # noqa: F811
    copied(trained, tmp_path / "more", 3)
    found = metarl.report(runs_file, tmp_path / "more", runs_file)
    assert rows(found)["maml_dqn"]["runs"] == 4
    write(report([runs_file, tmp_path / "more"]), tmp_path, ["runs"], "")
    assert rows(metarl.report(tmp_path / "runs.json")) == rows(found)


def test_the_order_in_a_file_is_of_what_it_holds(trained):  # noqa: F811
    (run,) = report([trained]).runs
    other = run._replace(choices={**run.choices, "algo": "anil_dqn"})
    runs = [each._replace(seed=seed) for each in (run, other) for seed in (10, 2)]
    assert kept.text(runs) == kept.text(runs[::-1])
    file = json.loads(kept.text(runs))["configurations"]
    assert [each["choices"]["algo"] for each in file] == ["anil_dqn", "maml_dqn"]
    assert [each["seed"] for each in file[0]["runs"]] == [2, 10]


@pytest.mark.parametrize("name", [".", os.fsdecode(b"run \xff")])
def test_a_run_is_kept_whatever_its_folder_is_called(name, trained, tmp_path, monkeypatch):  # noqa: F811
    copied(trained, tmp_path / name if name != "." else tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run" if name == "." else tmp_path)
    write(report([name]), tmp_path / "out", ["runs"], "")
    (run,) = report([tmp_path / "out" / "runs.json"]).runs
    assert run.path.name == ("run" if name == "." else "run ?")


def test_of_a_run_in_a_file_and_in_a_folder_the_folder_counts(outputs, runs_file, tmp_path):  # noqa: F811
    (tmp_path / "runs.json").write_text(runs_file.read_text().replace("-10.0", "-9.0"))
    found = rows(metarl.report(tmp_path / "runs.json", outputs))["robust_dqn"]
    assert (found["runs"], found["after"]["value"]) == (1, -10.0)


def test_a_link_to_a_file_stands_for_it(runs_file, tmp_path):
    (tmp_path / "link.json").symlink_to(runs_file)
    assert rows(metarl.report(tmp_path / "link.json")) == rows(metarl.report(runs_file))


def _result(file):
    return file["configurations"][0]["runs"][0]["results"]["test"]


HOSTILE_FILES = {
    "another format": (lambda file: file.update(format=2), "reads format 1, and the file is of format 2"),
    "no configuration": (lambda file: file["configurations"][0].pop("config"), "configurations.0.config: Field required"),
    "a name that leads elsewhere": (lambda file: file["configurations"][0]["runs"][0].update(run="../x"), "runs.0.run"),
    "a huge seed": (lambda file: file["configurations"][0]["runs"][0].update(seed=10**40), "runs.0.seed"),
    "no number": (lambda file: _result(file)["adapted"]["returns"][0].__setitem__(0, float("inf")), "finite number"),
    "ragged returns": (lambda file: _result(file)["adapted"]["returns"][0].pop(), "not of the same tasks"),
    "no points": (lambda file: _result(file)["adapted"].update(steps=[]), "adapted.steps"),
    "no tasks": (lambda file: _result(file)["adapted"].update(returns=[[], [], []]), "not of the same tasks, or of none"),
    "more counts": (lambda file: _result(file)["adapted"]["env_steps"].append(1), "its columns differ in length"),
    "more solved than there are": (lambda file: _result(file)["adapted"].update(solved=[2.0] * 3), "solved.0"),
    "a text for a curve": (lambda file: file["configurations"][0]["runs"][0].update(learning={"step": "x"}), "learning"),
    "curves without points": (
        lambda file: file["configurations"][0]["runs"][0].update(learning={"eval/return_after_mean": [], "step": []}),
        "it has no eval/return_after_mean",
    ),
    "a curve of another length": (
        lambda file: file["configurations"][0]["runs"][0]["learning"]["step"].pop(),
        "learning: its curves differ in length",
    ),
}


@pytest.mark.parametrize("how", HOSTILE_FILES)
def test_a_file_that_is_not_as_it_should_be_is_refused(how, runs_file, tmp_path):
    change, words = HOSTILE_FILES[how]
    file = json.loads(runs_file.read_text())
    change(file)
    (tmp_path / "runs.json").write_text(json.dumps(file))
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path / 'runs.json'))}.*{re.escape(words)}"):
        metarl.report(tmp_path / "runs.json")


def test_a_file_of_many_levels_is_refused(runs_file, tmp_path):
    levels = 100_000
    deep = runs_file.read_text().replace(
        '"config": {', '"config": {"more": ' + '{"a": ' * levels + "1" + "}" * levels + ", ", 1
    )
    (tmp_path / "runs.json").write_text(deep)
    with pytest.raises(UserError, match="nested too deeply"):
        metarl.report(tmp_path / "runs.json")


def test_a_file_is_not_written_that_would_be_too_large_to_read(outputs, runs_file, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(kept, "LARGEST_TEXT", runs_file.stat().st_size - 1)
    with pytest.raises(UserError, match=r"more than the .* MB that are read again"):
        write(report([outputs]), tmp_path, ["runs"], "")
    assert not list(tmp_path.iterdir())
