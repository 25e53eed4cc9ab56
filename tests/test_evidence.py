"""Learning beside references: the tables and figures of the documents, made of the kept runs."""

import json
from pathlib import Path

import matrix
import numpy as np
import pytest
import scores as evidence
import supports
from conftest import CONF, compose_train

from metarl_cli.comparison import kept, saved
from metarl_cli.comparison.saved import Curve, Saved
from metarl_cli.comparison.tables import in_markdown
from metarl_cli.evaluation.statistics import over_seeds
from metarl_cli.runs import shipped

ROOT = CONF.parent
RESULTS = ROOT / "benchmarks" / "results"


def run(method, seed, after, before=None, ood=None, knowledge=None):
    """What is kept of a run, of a policy for all tasks where ``knowledge`` says of which."""
    values = {} if knowledge is None else {"algo.module": "conditioned", "algo.knowledge": knowledge}

    def tested(returns):
        first = np.zeros(len(returns)) if before is None else np.array(before)
        curve = Curve([0, 1], [0, 1], [0, 160], np.stack([first, returns]), [None, None])
        return saved.Tested("", 5, False, curve, {"random": np.full(len(returns), -1.0)})

    results = {split: tested(np.array(returns)) for split, returns in (("test", after), ("ood", ood)) if returns}
    test = results["test"]
    return Saved(
        Path(method), "finished", {}, [], seed, {}, values, "", results, test, {}, 2000000, 90.0, None, None, False, []
    )


RUNS = {
    "robust_dqn": [run("robust_dqn", seed, after, knowledge=False) for seed, after in enumerate([[0.0, 2.0], [2.0, 4.0]])],  # 2
    "oracle_dqn": [run("oracle_dqn", 0, [10.0, 14.0], knowledge=True)],  # 12
    "a": [run("a", seed, after) for seed, after in enumerate([[5.0, 9.0], [2.0, 2.0], [12.0, 12.0]])],  # 7, 2, 12
}


@pytest.fixture
def families(monkeypatch):
    """Families of the matrix, by name: their entry and what is kept of their runs on the test tasks."""
    kept = {"plain": ({"title": "plain"}, RUNS)}
    monkeypatch.setattr(evidence, "read", lambda family, split="test": kept[family][1] if split == "test" else {})
    monkeypatch.setattr(evidence, "FAMILIES", {"plain": {"title": "plain"}})

    def add(name, runs, **entry):
        kept[name] = (entry, runs)
        evidence.FAMILIES[name] = {"title": name, "methods": {}, **entry}
        return name

    return add


def rows_of(table):
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    return {cells[0]: dict(zip(lines[0], cells, strict=True)) for cells in lines[2:]}


def test_a_mix_has_a_table_for_each_of_its_families(families):
    """Their tasks take turns; their returns are on two scales."""
    mixed = {method: [run(method, 0, [0.0, 10.0, 2.0, 30.0])] for method in ("a", "b")}
    name = families("mixed", mixed, mix=["first", "second"])
    first, second = (evidence.cells(each) for each in evidence.comparisons(name))
    assert [part["a"]["after"].value for part in (first, second)] == [1.0, 20.0]
    assert evidence.tables(name).count("| b |") == 2
    assert "**second**" in evidence.tables(name)


def test_the_upper_line_of_a_family_may_be_the_oracle_of_another(families):
    """A plain network does not learn to use the numbers that tell how a task is scrambled."""
    weak = [run("oracle_dqn", seed, [0.0, 4.0], knowledge=True) for seed in range(2)]
    name = families("scrambled", RUNS | {"oracle_dqn": weak}, upper="plain")
    (found,) = evidence.comparisons(name)
    assert evidence.cells(found)["a"]["normalised score"] == pytest.approx(over_seeds([0.5, 0, 1]))
    assert evidence.cells(found)["oracle_dqn"]["normalised score"].value == 0
    assert list(rows_of(evidence.tables(name)))[2] == in_markdown(evidence.UPPER)


def test_a_cell_is_the_mean_of_the_runs_with_the_interval_over_them(families):
    found = rows_of(evidence.tables("plain"))
    cells = found["a"]
    assert list(cells.values())[:5] == [
        "a",
        "3",
        "0.00 [0.00, 0.00]",
        str(over_seeds([7, 2, 12])),
        str(over_seeds([0.5, 0, 1])),
    ]
    assert cells["worst tenth"] == str(over_seeds([5, 2, 12]))
    assert [cells[name] for name in ("solved", "out of distribution", "its score")] == ["-", "-", "-"]
    assert [cells[name] for name in ("gradient steps", "support", "env steps", "minutes")] == ["1", "160", "2.0 M", "1.50"]
    assert found["random policy"]["after"] == "-1.00"


def test_a_table_by_step_has_a_column_for_each_step(families):
    """A score is of its own step; a policy without steps, or with fewer, has no cell beyond its last."""

    def stepped(method, *returns, knowledge=None):
        plain = run(method, 0, [0.0], knowledge=knowledge)
        points = [*range(len(returns))]
        curve = Curve(points, points, points, np.array(returns)[:, None], [None] * len(returns))
        return [plain._replace(tested=plain.tested._replace(adapted=curve))]

    runs = {
        "robust_dqn": stepped("robust_dqn", 2.0, knowledge=False),
        "oracle_dqn": stepped("oracle_dqn", 12.0, knowledge=True),
        "a": stepped("a", 0.0, 7.0, 10.0),
        "b": stepped("b", 3.0, 4.0),
    }
    found = rows_of(evidence.steps(families("stepped", runs, by_step=True)))
    columns = ["before", "after 1", "after 2", "score 1", "score 2"]
    assert {method: [row[column] for column in columns] for method, row in found.items()} == {
        in_markdown("robust_dqn"): ["2.00", "-", "-", "-", "-"],
        in_markdown("oracle_dqn"): ["12.00", "-", "-", "-", "-"],
        "a": ["0.00", "7.00", "10.00", "0.50", "0.80"],
        "b": ["3.00", "4.00", "-", "0.20", "-"],
    }


@pytest.mark.parametrize(("spent", "point"), [([0], 0), ([0, 148], 1), ([0, 148, 148, 148], 3), ([0, 148, 296, 444], 1)])
def test_all_methods_are_compared_after_one_support(spent, point):
    """Gradient steps on one support count, further supports do not."""
    assert matrix.first_support(spent) == point


def test_what_is_kept_of_a_run_ends_after_one_support_and_has_five_digits():
    folder = Path(shipped.FOLDER, "osi_dqn-two_link_arm")
    whole, kept = saved.load(folder, "test"), matrix.load(folder, "two_link_arm")
    steps = matrix.load(folder, "navigation_2d_continuous").tested.adapted.env_steps  # its table has every step
    assert steps == [0, 160, 320, 480]
    assert (whole.tested.adapted.env_steps, kept.tested.adapted.env_steps) == ([0, 160, 320, 480], [0, 160])
    np.testing.assert_allclose(kept.tested.adapted.scores, whole.tested.adapted.scores[:2], rtol=6e-5)
    assert max(len(repr(value)) for value in kept.results["ood"].adapted.scores.ravel().tolist() if abs(value) > 1) <= 8


def test_a_method_with_other_settings_begins_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(matrix, "RESULTS", tmp_path)
    family = next(iter(matrix.FAMILIES))
    first, *_ = jobs = list(matrix.jobs([family], None, range(2)))
    assert [job.seed for job in jobs] == sorted(job.seed for job in jobs), "the first seed of everything comes first"

    for job in [job for job in jobs if job.method == first.method] + jobs[:1]:
        matrix.write(job, run("", job.seed, [1.0, 2.0])._replace(path=job.folder(tmp_path)))
    assert [each.seed for each in matrix.read(family)[first.method]] == [0, 1]
    assert matrix.read(family, "ood")[first.method][0].tested is None
    monkeypatch.setitem(matrix.FAMILIES[family]["methods"], first.method, ["algo=other"])
    assert matrix.read(family) == {}


@pytest.mark.parametrize("page", evidence.PAGES, ids=lambda page: page.stem)
def test_the_tables_of_learning_have_the_numbers_of_the_results(page):
    """``python benchmarks/evidence docs`` makes them the same."""
    text = page.read_text()
    assert supports.fill(evidence.fill(text)) == text


def test_what_is_kept_of_runs_is_in_the_documents():
    pages = "".join(page.read_text() for page in evidence.PAGES)
    marked = {match[2] for match in evidence.MARKER.finditer(pages)}
    by_step = {f"{name}_steps" for name, entry in matrix.FAMILIES.items() if entry.get("by_step")}
    assert marked == {*matrix.FAMILIES, *by_step, *evidence.OVERVIEWS}
    assert marked >= {path.stem for path in matrix.RESULTS.glob("*.json")}


@pytest.mark.parametrize(
    ("page", "file", "rows", "digits"),
    [
        ("mandril", "sprite_grid", ["mandril", "pretrain_irl", "maxent_irl", "bayes_irl", "meta_bc"], 2),
        ("pemirl", "navigation", ["pemirl", "context_bc"], 2),
        ("pemirl", "half_cheetah_vel", ["pemirl", "context_bc"], 1),
    ],
)
def test_the_tables_of_demonstrations_have_the_numbers_of_the_results(page, file, rows, digits):
    """By the number of demonstrations: returns, or on sprites how far they are below the optimum."""
    text = (ROOT / "docs" / "algorithms" / f"{page}.md").read_text()
    runs = kept.read(RESULTS / "demonstrations" / f"{file}.json", "test")
    assert {run.choices["algo"] for run in runs} == {*rows}
    for algo in rows:
        tested = [run.tested for run in runs if run.choices["algo"] == algo]
        assert len(tested) == 5
        steps = tested[0].adapted.steps
        values = np.stack([result.adapted.scores.mean(1) for result in tested], 1)  # [P, seeds]
        if file == "sprite_grid":
            values = np.mean(tested[0].references["optimum"]) - values
        cells = [over_seeds(value) for step, value in zip(steps, values, strict=True) if step]
        row = " | ".join(f"{c.value:.{digits}f} [{c.low:.{digits}f}, {c.high:.{digits}f}]" for c in cells)
        assert f"| {row} |" in text, algo


def test_a_probe_has_a_row_for_each_method_and_a_column_for_each_support(tmp_path, monkeypatch):
    monkeypatch.setattr(supports, "PROBES", tmp_path)
    family, (one, other, *_) = next((name, list(entry["methods"])) for name, entry in matrix.FAMILIES.items())
    kept = {
        other: {"its own": {"mean": [4.0, 6.0], "share": [None, None]}, "another": {"mean": [1.0, 2.0], "share": [None, None]}},
        one: {"its own": {"mean": [5.0], "share": [0.0]}, "rewards 0": {"mean": [2.0], "share": [-0.254]}},
    }
    (tmp_path / f"{family}.json").write_text(json.dumps(kept))
    _, _, first, second = supports.table(family).splitlines()
    assert first == f"| `{one}` | 1 | 5.00 | -25% | - |", "in the order of the matrix"
    assert second == f"| `{other}` | 2 | {over_seeds([4, 6])} | - | 1.50 |"


@pytest.mark.slow
@pytest.mark.proof
def test_every_entry_of_the_matrix_is_a_valid_command():
    for job in matrix.jobs(list(matrix.FAMILIES), None, range(1)):
        compose_train(*job.overrides)
