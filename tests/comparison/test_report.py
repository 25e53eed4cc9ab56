"""Reports on runs: groups, tables, figures and files, and what is refused."""

import csv
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, TINY_MAML
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import metarl_cli as metarl
from metarl_cli.cli.main import main
from metarl_cli.comparison.figures import FORMATS, learning, scores
from metarl_cli.comparison.groups import Comparison, Group, compare
from metarl_cli.comparison.report import TEXTS, report, write
from metarl_cli.comparison.tables import as_csv, as_latex, as_markdown, number, table, text
from metarl_cli.errors import UserError
from metarl_cli.evaluation.statistics import Interval, over_seeds
from metarl_cli.runs.files import _checksum, sha256, write_json, write_whole
from metarl_cli.runs.folder import Manifest
from metarl_cli.runs.results import Result


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run, of which the tests make others."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    words = [word for word in TINY if not word.startswith("env.")] + TINY_MAML
    metarl.train("algo=maml_dqn", "env=navigation_2d", "env.horizon=20", *words, f"run={folder}")
    return folder


def copied(trained, folder, seed=0, algo="maml_dqn", polyak=0.03, after=None, changes=None, result=None, **manifest):
    """The run as one of another seed, algorithm or setting, with these returns after adaptation.

    ``changes`` are of the text of its configuration, ``result`` of its result, the rest of its manifest.
    """
    changes, more = changes or {}, result or {}
    shutil.copytree(trained, folder)
    config = folder / "config.yaml"
    text = re.sub(r"(?m)^seed: \d+", f"seed: {seed}", config.read_text())
    text = re.sub(r"polyak: .*", f"polyak: {polyak}", text)
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    write_whole(config, text.encode())
    values = json.loads((folder / "run.json").read_text())
    values |= {"seed": seed, **manifest, "choices": values["choices"] | {"algo": algo} | manifest.get("choices", {})}
    values["sha256"]["config.yaml"] = sha256(config)
    write_json(folder / "run.json", values, Manifest)
    result = json.loads((folder / "results" / "test.json").read_text())
    if after is not None:
        result["adapted"]["task_returns"][-1] = list(after)
    write_json(folder / "results" / "test.json", result | more, Result)
    return folder


def one_for_all(trained, folder, after, knowledge):
    """The run as one of a policy for all tasks, which does not adapt."""
    algo = {"  module: maml\n": f"  module: conditioned\n  knowledge: {str(knowledge).lower()}\n"}
    copied(trained, folder, 0, "oracle_dqn" if knowledge else "robust_dqn", changes=algo)
    path = folder / "results" / "test.json"
    result = json.loads(path.read_text())
    for name, column in result["adapted"].items():
        if isinstance(column, list):
            result["adapted"][name] = column[:1]
    result["adapted"]["task_returns"] = [after]
    write_json(path, result, Result)


@pytest.fixture(scope="module")
def outputs(trained, tmp_path_factory):
    """Two algorithms with three seeds each, one of them with another setting too, and the ends of the normalised score."""
    folder = tmp_path_factory.mktemp("outputs")
    for seed in range(3):
        copied(trained, folder / f"maml-{seed}", seed, after=[-1.0 - seed, -2.0, -3.0, -4.0])
        copied(trained, folder / f"anil-{seed}", seed, "anil_dqn", 0.1, [-2.0, -2.0, -5.0, -6.0 - seed])
    one_for_all(trained, folder / "robust", [-10.0] * 4, False)
    one_for_all(trained, folder / "oracle", [0.0, 0.0, -1.0, -1.0], True)
    return folder


def test_runs_with_other_demonstrators_are_groups_of_their_own(trained, tmp_path):
    for place, shown in enumerate((None, "0" * 12, "1" * 12)):
        copied(trained, tmp_path / f"run{place}", demonstrator=shown)
    assert len(report([tmp_path]).comparisons[0].groups) == 3


def rows(found, place=0):
    return {row["algorithm"]: row for row in found["tables"][place]["rows"]}


def test_a_row_is_a_group_of_seeds_with_intervals(outputs):
    found = rows(metarl.report(outputs))
    assert list(found) == ["anil_dqn", "maml_dqn", "oracle_dqn", "robust_dqn"]
    means = [np.mean([-1.0 - seed, -2.0, -3.0, -4.0]) for seed in range(3)]
    assert found["maml_dqn"]["runs"] == 3
    assert tuple(found["maml_dqn"]["after"].values()) == pytest.approx(tuple(over_seeds(means)))
    scores = over_seeds([(mean + 10) / 9.5 for mean in means])
    assert tuple(found["maml_dqn"]["normalised score"].values()) == pytest.approx(tuple(scores))
    assert found["maml_dqn"]["worst tenth"]["value"] == -4
    assert found["maml_dqn"]["better"]["value"] == 1, "than the robust policy, on every task"
    assert found["robust_dqn"]["better"] is None
    assert found["robust_dqn"]["after"] == {"value": -10, "low": None, "high": None}, "one run has no interval"
    assert found["maml_dqn"]["gradient steps"] == 2
    assert found["maml_dqn"]["env steps"] > 0


def test_another_baseline_and_another_step(outputs):
    found = rows(metarl.report(outputs, baseline="anil_dqn"))
    # on the four tasks: better in 1 of 3 seeds and equal in another; equal; better; better
    assert found["maml_dqn"]["better"]["value"] == pytest.approx(np.mean([1 / 3 + 1 / 6, 1 / 2, 1, 1]))
    begun = rows(metarl.report(outputs, step=0, baseline="anil_dqn"))
    assert begun["maml_dqn"]["after"] == begun["maml_dqn"]["before"]
    assert begun["maml_dqn"]["better"]["value"] == 0.5, "before adaptation they are the same"
    assert "robust_dqn" in rows(metarl.report(outputs, step=1)), "it has one point at every step"
    with pytest.raises(UserError, match="step=9: no run was tested after it"):
        metarl.report(outputs, step=9)
    with pytest.raises(UserError, match="baseline=rl2: must be one of anil_dqn, maml_dqn"):
        metarl.report(outputs, baseline="rl2")


def test_intervals_as_others_publish_them(outputs):
    """Three of four tasks have one return in all seeds; draws of -1, -2 and -3 are all the same in 1 of 27 resamples each."""
    found = metarl.report(outputs, intervals="stratified")["tables"][0]
    after = rows({"tables": [found]})["maml_dqn"]["after"]
    assert after == {"value": -2.75, "low": -3, "high": -2.5}
    assert "stratified bootstrap" in found["notes"][0]
    with pytest.raises(UserError, match="intervals=rliable: must be one of seeds, stratified"):
        metarl.report(outputs, intervals="rliable")


def test_some_columns_alone(outputs):
    found = metarl.report(outputs, columns=["normalised_score", "after"])
    assert list(rows(found)["maml_dqn"]) == ["algorithm", "normalised score", "after"]
    whole = metarl.report(outputs)["tables"][0]["notes"]
    assert [note for note in whole if note not in found["tables"][0]["notes"]] == [n for n in whole if n.startswith("better: ")]


def test_the_memory_of_a_group_is_the_most_that_one_of_its_runs_took(trained, tmp_path):
    assert rows(metarl.report(trained))["maml_dqn"]["peak MB"] > 10, "every run measures it"
    for seed, memory in enumerate((200_000_000, 312_400_000, None)):
        copied(trained, tmp_path / f"maml-{seed}", seed, memory=memory)
    copied(trained, tmp_path / "older", 0, "anil_dqn", 0.1, memory=None)
    found = report([tmp_path])
    assert rows(found.values())["maml_dqn"]["peak MB"] == 312.4
    assert rows(found.values())["anil_dqn"]["peak MB"] is None
    (table,) = found.tables
    assert "GPU MB" not in table.columns, "there was none"
    older, newer = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert [text("peak MB", row["peak MB"]) for row in (older, newer)] == ["-", "312"]


def test_groups_of_an_algorithm_are_named_by_what_differs(trained, tmp_path):
    for name, polyak in (("a", 0.001), ("b", 0.5)):
        copied(trained, tmp_path / name, polyak=polyak, overridden=["algo.outer.polyak"])
    assert list(rows(metarl.report(tmp_path))) == ["maml_dqn outer.polyak=0.001", "maml_dqn outer.polyak=0.5"]
    pooled = metarl.report(tmp_path, by=["algo"])
    assert rows(pooled)["maml_dqn"]["runs"] == 2
    (note,) = [note for note in pooled["tables"][0]["notes"] if "taken together" in note]
    assert note.startswith("maml_dqn: runs that differ in algo.outer.polyak are taken together; several have the same seed")
    assert list(rows(metarl.report(tmp_path, by=["outer.polyak"]))) == ["outer.polyak=0.001", "outer.polyak=0.5"]
    with pytest.raises(UserError, match=r"by=algo.outer.polyac: no such key; did you mean algo.outer.polyak"):
        metarl.report(tmp_path, by=["algo.outer.polyac"])


def test_names_do_not_hide_what_differs(trained, tmp_path):
    first = {"overridden": ["algo.outer.polyak"]}
    copied(trained, tmp_path / "a", polyak=0.1, **first)
    copied(trained, tmp_path / "b", polyak=0.2, changes={"iterations: 4": "iterations: 9"}, **first)
    found = metarl.report(tmp_path)
    assert list(rows(found)) == ["maml_dqn outer.polyak=0.1", "maml_dqn outer.polyak=0.2"]
    assert "maml_dqn: its groups differ in train.iterations, too." in found["tables"][0]["notes"]
    assert list(rows(metarl.report(tmp_path, by="experiment"))) == ["no experiment"]


def test_names_have_no_more_than_they_need(trained):
    """Two learners differ in every key of theirs: a name has the first, and a note says that there are more."""
    (run,) = report([trained]).runs
    runs = [
        run._replace(values={**run.values, "learner.module": name, **{f"learner.{name}.{k}": k for k in range(20)}})
        for name in ("dqn", "policy")
    ]
    ((compared,), _) = compare(runs, [])
    assert [group.name for group in compared.groups] == ["maml_dqn learner.module=dqn", "maml_dqn learner.module=policy"]
    assert sum("its groups differ in" in note and "and more, too" in note for note in compared.notes) == 1


def test_what_is_said_of_many_runs_is_a_line_with_their_number(trained):
    (run,) = report([trained]).runs
    copies = [run._replace(path=Path(f"{place}"), seed=seed) for seed in range(3) for place in "ab"]
    lost = [run._replace(path=Path(f"lost{k}"), status="interrupted", tested=None) for k in range(4)]
    ((compared,), left) = compare([*copies, *lost], [])
    assert left == ["lost0, as 3 more, is interrupted: it is left out"]
    assert "a, as 2 more, is there several times: it counts once" in compared.notes


def test_a_missing_return_is_no_number(trained, tmp_path):
    copied(trained, tmp_path / "a", after=[-1.0, None, -2.0, -3.0])
    copied(trained, tmp_path / "b", polyak=0.5, after=[-1.0, -1.0, -2.0, -3.0])
    found = metarl.report(tmp_path)
    row = rows(found)["maml_dqn outer.polyak=0.03"]
    for name in ("after", "IQM", "worst tenth"):
        assert row[name] == {"value": None, "low": None, "high": None}
    assert f"{tmp_path / 'a'} has no return on 1 tasks: its means are not known." in found["tables"][0]["notes"]
    write(report([tmp_path]), tmp_path / "out", [*TEXTS, "png"], "")


def test_a_run_of_another_version_is_compared_by_what_its_file_says(trained, tmp_path):
    for seed in range(2):
        copied(trained, tmp_path / str(seed), seed, changes={"  module: maml\n": "  module: maml\n  gone: 1\n  chunk: 5\n"})
    found = metarl.report(tmp_path)
    (row,) = found["tables"][0]["rows"]
    assert row["runs"] == 2
    assert any("as 1 more, is compared by the values in its file" in note for note in found["tables"][0]["notes"])


HOSTILE = {
    "a text for the share solved": lambda result: result["adapted"]["beside"][0].update(solved="much"),
    "no share solved": lambda result: result["adapted"]["beside"][0].clear(),
    "too few shares": lambda result: result["adapted"]["beside"].pop(),
    "a ragged optimum": lambda result: result.update(optimum=[[1.0], [2.0, 3.0]]),
    "an optimum of other tasks": lambda result: result.update(optimum=[1.0]),
    "a list for a reference": lambda result: result.update(robust=[1.0]),
    "a reference of two dimensions": lambda result: result.update(robust={"task_returns": [[1.0]] * 4}),
    "no tasks": lambda result: result["adapted"].update(task_returns=[[], [], []]),
    "huge counts": lambda result: result["adapted"].update(gradient_steps=[10**400] * 3),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_result_that_is_not_as_it_should_be_is_refused(how, trained, tmp_path):
    copied(trained, tmp_path / "good")
    copied(trained, tmp_path / "bad", 1)
    path = tmp_path / "bad" / "results" / "test.json"
    result = json.loads(path.read_text())
    result["tasks"]["each"] = []
    HOSTILE[how](result)
    content = {**result, "checksum": None}
    content["checksum"] = _checksum(content)
    path.write_text(json.dumps(content))
    found = metarl.report(tmp_path)
    assert found["tables"][0]["rows"][0]["runs"] == 1
    assert any(f"refused {path}" in note for note in found["notes"])


def test_the_scores_of_several_comparisons_are_one_figure(trained, outputs, tmp_path):
    """The ends of the score are its 0 and its 1, and no rows."""
    shutil.copytree(outputs, tmp_path / "outputs")
    for path in list((tmp_path / "outputs").iterdir()):
        other = {"horizon: 20": "horizon: 30"}
        if path.name.startswith("maml"):
            copied(trained, tmp_path / "outputs" / f"other-{path.name}", int(path.name[-1]), changes=other, after=[-1.0] * 4)
    found = report([tmp_path / "outputs"])
    assert len(found.comparisons) == 2
    figure = scores(found.comparisons)
    panel = figure.get_axes()[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["anil_dqn", "maml_dqn"]
    dots = [line.get_xdata()[0] for line in panel.lines[:4:2]]
    assert dots == pytest.approx(
        [rows({"tables": [found.values()["tables"][0]]})[n]["normalised score"]["value"] for n in ("anil_dqn", "maml_dqn")]
    )


def test_the_learning_of_several_comparisons_is_one_figure(outputs):
    """A row for each comparison, a column for each axis; a group has one colour, and its known mean over runs."""
    (found,) = report([outputs]).comparisons
    alone = found._replace(groups=found.groups[1:])
    bare = found._replace(groups=[Group("none", [run._replace(learning={}) for run in found.groups[0].runs])])
    assert learning([bare]) is None
    figure = learning([found, bare, alone], ("env_steps", "iterations"))
    panels = np.reshape(figure.get_axes(), (2, 2))
    lines = [{line.get_label().split(" (")[0]: line for line in panel.lines} for panel in panels.flat]
    assert [len(each) for each in lines] == [len(found.groups)] * 2 + [len(alone.groups)] * 2
    name = alone.groups[0].name
    assert len({each[name].get_color() for each in lines}) == 1
    ends = [run.learning["eval/return_after_mean"][-1] for run in alone.groups[0].runs]
    assert lines[0][name].get_ydata()[-1] == pytest.approx(np.mean(ends))


def test_folds_count_each_though_their_runs_have_one_name(outputs):
    """A file keeps the last part of a run's path alone."""
    run = report([outputs]).runs[0]
    curve = run.tested.adapted
    folds = [
        run._replace(tested=run.tested._replace(tasks=str(k), adapted=curve._replace(scores=np.full_like(curve.scores, k))))
        for k in (1, 2, 6)
    ]
    found = table(Comparison("", "", "", [Group("", folds)], []))
    assert tuple(found.rows[0][found.columns.index("after")]) == pytest.approx(tuple(over_seeds([1.0, 2.0, 6.0])))


def test_what_rounds_to_zero_has_no_sign():
    assert [number(-0.001), number(-0.001, 1), number(-0.01)] == ["0.00", "0.0", "-0.01"]
    wide = [text(name, 1e30) for name in ("after", "env steps")] + [text("after", Interval(-1e30, -1e300, 2.0))]
    assert wide == ["1.0e+30", "1.0e+24 M", "-1.0e+30 [-1.0e+300, 2.0]"]
    assert str(Interval(-1e30, -9999999, 2.0)) == "-1.00e+30 [-9999999.00, 2.00]"


def test_a_baseline_that_only_some_tables_have(trained, outputs, tmp_path):
    shutil.copytree(outputs, tmp_path / "outputs")
    copied(trained, tmp_path / "outputs" / "alone", changes={"horizon: 20": "horizon: 30"})
    copied(trained, tmp_path / "outputs" / "beside", polyak=0.5, changes={"horizon: 20": "horizon: 30"})
    found = metarl.report(tmp_path / "outputs", baseline="anil_dqn")
    assert [any("than anil_dqn" in note for note in table["notes"]) for table in found["tables"]].count(True) == 1


def test_what_cannot_be_compared_is_apart_and_said(trained, tmp_path):
    copied(trained, tmp_path / "one")
    copied(trained, tmp_path / "same")
    copied(trained, tmp_path / "other", result={"tasks": {"hash": "0123456789abcdef", "each": []}})
    copied(trained, tmp_path / "longer", changes={"horizon: 20": "horizon: 30"})
    copied(trained, tmp_path / "training", 1, status="interrupted", score=None)  # it was given more iterations, say
    copied(trained, tmp_path / "changed", 2)
    (tmp_path / "changed" / "config.yaml").write_text("seed: 7\n")
    found = metarl.report(tmp_path)
    assert [table["rows"][0]["runs"] for table in found["tables"]] == [1, 1, 1]
    assert [table["title"].split(":")[0] for table in found["tables"]] == [
        "navigation_2d env.horizon=30",
        "navigation_2d env.horizon=20, tasks " + json.loads((tmp_path / "one" / "run.json").read_text())["tasks"]["test"][:6],
        "navigation_2d env.horizon=20, tasks 012345",
    ]
    notes = "\n".join(found["notes"])
    assert f"{tmp_path / 'training'} is interrupted: it is left out" in notes
    assert "it is not as the run was made with" in notes
    assert "navigation_2d has 3 tables: its runs differ in the environment or the tasks" in notes
    assert f"{tmp_path / 'one'} is there several times: it counts once" in found["tables"][1]["notes"]
    assert rows(metarl.report(tmp_path, by=["algo"]), 1)["maml_dqn"]["runs"] == 1, "a copy counts once however runs are grouped"
    write(report([tmp_path]), tmp_path / "out", ["tex"], "")
    assert len(list((tmp_path / "out").iterdir())) == 3, "no table in the place of another"


def test_it_finds_runs_at_any_depth_and_each_once(outputs, tmp_path, monkeypatch):
    shutil.copytree(outputs, tmp_path / "within" / "deep")
    monkeypatch.chdir(tmp_path)
    found = metarl.report("within", tmp_path / "within" / "deep", "within/deep/maml-0")
    assert [table["rows"] for table in found["tables"]] == [table["rows"] for table in metarl.report(outputs)["tables"]]
    assert len(rows(metarl.report(outputs / "maml-0"))) == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere"], "nowhere: no such file or folder"),
        (["."], "there is no run in"),
        (["by=algo", "by=env"], "by: is given twice"),
        (["bye=algo"], "bye: no such key; did you mean by"),
        (["step=-1"], "step=-1: must be an integer >= 0"),
        (["format="], "format=: has no value"),
        (["--format"], "--format: no such flag"),
        (["format=htm"], "format=htm: no such format; did you mean html"),
        (["against=weeks", "OUTPUTS"], "against=weeks: must be one of env_steps, seconds, iterations"),
        (["columns=afterr", "OUTPUTS"], "columns=afterr: no such column; did you mean after"),
        (["split=train", "OUTPUTS"], "split=train: must be one of test, ood"),
        (["x" * 300], "no such file or folder"),
        (["step=" + "9" * 5000], "must be an integer >= 0"),
    ],
)
def test_bad_words_are_one_line(words, line, outputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *(str(outputs) if word == "OUTPUTS" else word for word in words)]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert len(error.splitlines()) == 1


def test_the_command_prints_tables_and_writes_what_it_is_asked_for(outputs, tmp_path, capsys):
    formats = [*TEXTS, *FORMATS]
    assert main(["report", str(outputs), f"format={','.join(formats)}", f"out={tmp_path / 'paper'}"]) == 0
    shown = capsys.readouterr().out
    assert "navigation_2d: 4 held-out tasks" in shown
    assert "8 runs in" in shown
    names = {str(path.relative_to(tmp_path / "paper")) for path in (tmp_path / "paper").iterdir()}
    figures = {f"navigation_2d-{name}.{form}" for name in ("learning", "adaptation", "tasks", "scores") for form in FORMATS}
    texts = {"report.html", "report.md", "report.csv", "report.json", "runs.json", "navigation_2d.tex", "tensorboard"}
    assert texts | figures == names
    first = {path: path.read_bytes() for path in (tmp_path / "paper").iterdir() if path.is_file()}
    again = [form for form in formats if form != "pdf"]  # the slowest
    write(report([outputs]), tmp_path / "paper", again, f"Report on {outputs}")
    changed = [path.name for path, content in first.items() if path.read_bytes() != content]
    assert not changed, "the same runs make the same bytes"
    values = json.loads((tmp_path / "paper" / "report.json").read_text())
    assert values["tables"][0]["rows"][0]["algorithm"] == "anil_dqn"


def test_tensorboard_has_the_mean_over_seeds_and_its_bounds(outputs, tmp_path):
    write(report([outputs]), tmp_path, ["tensorboard"], "")
    write(report([outputs]), tmp_path, ["tensorboard"], "")
    events = EventAccumulator(str(tmp_path / "tensorboard" / "navigation_2d" / "maml_dqn")).Reload()
    log = [json.loads(line) for line in (outputs / "maml-0" / "metrics.jsonl").read_text().splitlines()]
    truth = {line["step"]: line["eval/return_after_mean"] for line in log if "eval/return_after_mean" in line}
    for tag in ("seeds/return_after", "seeds/return_after_low", "seeds/return_after_high"):  # copies of one run: no spread
        found = {event.step: event.value for event in events.Scalars(tag)}
        assert found == pytest.approx(truth), "written anew, not beside the former"
    iqms = {line["step"]: line["eval/return_after"] for line in log if "eval/return_after" in line}
    assert {event.step: event.value for event in events.Scalars("seeds/return_after_iqm")} == pytest.approx(iqms)
    assert {event.value for event in events.Scalars("seeds/runs")} == {3}


def test_texts_of_a_table(outputs):
    (table,) = report([outputs]).tables
    records = list(csv.DictReader(io.StringIO(as_csv([table]))))
    assert [record["algorithm"] for record in records] == ["anil_dqn", "maml_dqn", "oracle_dqn", "robust_dqn"]
    assert float(records[1]["after low"]) < float(records[1]["after"]) < float(records[1]["after high"])
    assert records[3]["after low"] == ""
    latex = as_latex(table)
    assert latex.count(r"\\") == 5
    assert r"maml\_dqn & 3 & " in latex
    assert all(line.startswith("%") for line in latex.splitlines()[: len(table.notes) + 1])
    assert "| maml\\_dqn | 3 |" in as_markdown(table)


UGLY = "[a](b)|=1`!|b<script>alert(1)</script>&_%$#{}~^\\\x1b[31m"


def test_names_of_any_kind_harm_no_format(trained, tmp_path):
    copied(trained, tmp_path / "run", choices={"algo": UGLY, "env": ".."})
    copied(trained, tmp_path / "long", polyak=0.5, choices={"algo": "=" + "x" * 400, "env": ".."})
    found = report([tmp_path])
    write(found, tmp_path / "out", [*TEXTS, "png"], UGLY)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "long", "out"}, "nothing is written elsewhere"
    assert "<script>alert" not in (tmp_path / "out" / "report.html").read_text()
    for form in ("md", "html", "csv"):
        assert "\x1b" not in (tmp_path / "out" / f"report.{form}").read_text()
    (row,) = [line for line in as_markdown(found.tables[0]).splitlines() if line.startswith("| \\[a")]
    assert row.replace(r"\|", "").count("|") == len(found.tables[0].columns) + 1
    assert "](" not in row
    names = [record["algorithm"] for record in csv.DictReader(io.StringIO(as_csv(found.tables)))]
    assert any(name.startswith("'=xxx") for name in names), "a spreadsheet takes it for no formula"
    latex = as_latex(found.tables[0])
    assert "\\%\\$\\#\\{\\}" in latex
    assert "\n{}[a]" in latex, "no argument of the end of the line before"
    assert "$-$" in latex


class Parsed(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.sources = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]


def test_the_page_needs_nothing_else(outputs, tmp_path):
    write(report([outputs]), tmp_path, ["html"], "A report")
    page = Parsed()
    page.feed((tmp_path / "report.html").read_text())
    assert page.tags.count("img") == 4
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    assert page.tags.count("tr") == 5


def test_a_torn_log_and_one_without_evaluations(trained, tmp_path):
    copied(trained, tmp_path / "torn")
    with (tmp_path / "torn" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 5, "eval/return_after_me\n{"step": NaN, "eval/return_after_mean": NaN}\n[1]\n')
        log.write(f'{{"step": {"9" * 400}, "eval/return_after_mean": 1}}\n{{"step": 1e300, "time/training_seconds": 5}}\n{{"st')
    copied(trained, tmp_path / "none", 1)
    (tmp_path / "none" / "metrics.jsonl").unlink()
    assert rows(metarl.report(tmp_path))["maml_dqn"]["runs"] == 2
    write(report([tmp_path]), tmp_path / "out", ["png", "tensorboard"], "")
