"""A run made again: what was other, and whether its numbers come out the same."""

import json

import pytest
from test_report import copied, trained  # noqa: F401 a fixture

from metarl_cli.cli.main import main
from metarl_cli.comparison.reproduction import job_of
from metarl_cli.runs.files import write_json
from metarl_cli.runs.folder import Manifest, RunFolder


def test_a_run_comes_out_the_same(trained, tmp_path, capsys):  # noqa: F811
    assert main(["reproduce", str(trained), f"out={tmp_path / 'again'}"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("reproduced to the last bit\n")
    assert "returns on test tasks: " in out
    assert "returns on ood tasks: " in out
    first, again = (json.loads((folder / "run.json").read_text()) for folder in (trained, tmp_path / "again"))
    assert again["command"] == first["command"].replace(str(trained), str(tmp_path / "again"))
    assert again["score"] == first["score"]
    # finished already: the second time it compares alone, and a number that was otherwise is named
    log = trained / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    place = next(k for k, line in enumerate(lines) if "loss/query" in line)
    lines[place]["loss/query"] += 0.5
    copied(trained, tmp_path / "other")
    (tmp_path / "other" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["reproduce", str(tmp_path / "other"), f"out={tmp_path / 'again'}"]) == 1
    out = capsys.readouterr().out
    assert "largest difference 0.5; first: loss/query at" in out
    assert out.endswith("not reproduced to the last bit\n")


def test_what_is_other_than_it_was(trained, tmp_path, capsys):  # noqa: F811
    folder = copied(trained, tmp_path / "run", versions={"torch": "1.2.3"}, git="0123abc")
    assert main(["reproduce", str(folder), "train=false"]) == 0
    shown = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if len(line.split()) > 2}
    assert shown["torch"][0] == "1.2.3"
    assert shown["revision"][0] == "0123abc"
    assert shown["test"][2:] == ["the", "same"]
    assert not (tmp_path / "run-again").exists()


def test_the_flags_and_overrides_of_the_run_but_its_places(trained, tmp_path):  # noqa: F811
    folder = copied(
        trained,
        tmp_path / "run",
        command="torchrun --nproc-per-node 2 -m metarl_cli train --config-dir my algo=x run=a 'b=[1, 2]'",
    )
    job = job_of(RunFolder(folder), tmp_path / "out")
    assert job.overrides == ["algo=x", "b=[1, 2]", f"run={tmp_path / 'out'}"]
    assert job.flags == ("--config-dir", "my")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "metarl reproduce takes one run folder"),
        (["a", "b"], "metarl reproduce takes one run folder"),
        (["--again"], "metarl reproduce takes one run folder"),
        (["nowhere"], "nowhere is not a run folder"),
        (["running"], "running is running; only a finished run has numbers to compare"),
    ],
)
def test_bad_words_are_one_line(words, line, trained, tmp_path, monkeypatch, capsys):  # noqa: F811
    copied(trained, tmp_path / "running")
    values = json.loads((tmp_path / "running" / "run.json").read_text()) | {"status": "running", "score": None}
    write_json(tmp_path / "running" / "run.json", values, Manifest)
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *words]) == 2
    assert line in capsys.readouterr().err
