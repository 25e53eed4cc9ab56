"""Speed beside peers: the protocol of contenders, medians and paired ratios, the documentation's tables. No peer is needed."""

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from importlib.machinery import PathFinder
from pathlib import Path

import harness
import pytest
import report
import torch
from conftest import CONF, compose_train
from report import Spread
from tables import COMPILED, GROWTH, Case, Entry, tables
from torch.utils.flop_counter import FlopCounterMode

from metarl_cli.interfaces import Transitions
from metarl_cli.runs.build import build

ROOT = CONF.parent
SPEED, RESULTS = ROOT / "benchmarks" / "speed", ROOT / "benchmarks" / "results"
PAGE = (ROOT / "docs" / "speed.md").read_text()
OPTIONAL = {"websockets"}  # of benchmarks/screenshot.py alone
OTHERS = {"contenders", "peers"}  # they run in environments of their own
SCRIPTS = [path for path in sorted((ROOT / "benchmarks").rglob("*.py")) if path.parent.name not in OTHERS]


def contender(name, walls, work=10.0, **more):
    runs = [{"wall": wall, "processor": 2 * wall, "work": work, "peak_mib": 1.0} for wall in walls]
    return {"name": name, "runs": runs, "versions": {"torch": "2"}, "facts": {}, "first": runs[0], "startup": 3.0} | more


def result(*cases, **more):
    cases = [{"name": "case", "unit": "", "contenders": list(contenders)} for contenders in cases]
    return {"table": "dqn", "unit": "steps", "milliseconds": False, "limit": "", "clock": "wall", "cases": cases} | more


@pytest.mark.parametrize(("values", "spread"), [([7], (7, 7, 7)), ([5, 1, 4, 2, 3], (3, 2, 4)), ([1, 2], (1.5, 1.25, 1.75))])
def test_spread_is_the_median_with_the_quartiles(values, spread):
    assert Spread.of(values) == spread


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.012345, "0.0123"), (1.2345, "1.23"), (123.45, "123"), (12345.6, "12,346")],
)
def test_numbers_have_three_digits(value, text):
    assert report.number(value) == text


def test_ratios_are_paired_by_round():
    """A machine that gets slower from round to round changes rates, and no ratio."""
    ours, theirs = contender("metarl", [1, 2, 4]), contender("peer", [3, 6, 12])
    assert report.ratios(ours, theirs, "wall") == pytest.approx([3, 3, 3])
    head, rows = report.table(result([ours, theirs]))
    assert head == ["work", "contender", "per second", "metarl over it", "start-up [s]"]
    assert rows[0] == ["case [steps]", "metarl", "5.00 [3.75, 7.50]", "", "3.00"]
    assert rows[1] == ["", "peer", "1.67 [1.25, 2.50]", "3.00 [3.00, 3.00]", "3.00"]


def test_the_clock_is_the_results():
    _, rows = report.table(result([contender("metarl", [1])], clock="processor"))
    assert rows[0][2] == "5.00 [5.00, 5.00]"


def test_milliseconds_shares_of_the_limit_and_compiled():
    ours = contender("metarl", [2], facts={"operations": 30})
    compiled = contender(COMPILED, [1], facts={"operations": 30})
    made = result([ours, compiled, contender("peer", [8]), contender("product", [1], 1000)], milliseconds=True, limit="product")
    head, rows = report.table(made)
    assert head[2:] == ["ms", "metarl over it", "compiled over it", "share of the limit", "start-up [s]"]
    assert [row[1] for row in rows] == ["metarl", COMPILED, "peer"]
    assert [row[2].split()[0] for row in rows] == ["200", "100", "800"]
    assert [row[3].split(" ")[0] for row in rows] == ["", "", "4.00"]
    assert [row[4].split(" ")[0] for row in rows] == ["2.00", "", "8.00"]
    assert [row[5] for row in rows] == ["15%", "30%", ""]


def test_what_was_not_measured_is_named():
    gone = {"name": COMPILED, "runs": [], "unavailable": "no compiler"}
    made = result([contender("metarl", [1]), gone, {"name": "peer", "runs": [], "failed": "boom"}])
    assert report.missing(made) == [f"{COMPILED} (case): no compiler", "peer (case): boom"]
    assert len(report.table(made)[1]) == 1


def test_exponents_are_slopes_of_the_upper_half():
    assert report.exponent([(1, 99), (2, 12), (4, 48), (8, 192)]) == pytest.approx(2)


def test_contenders_take_turns(tmp_path, monkeypatch):
    """They are asked in turns, the other way round every second round; one that fails leaves the rest alone."""
    log = tmp_path / "log"
    shutil.copy(SPEED / "contenders" / "serving.py", tmp_path)
    (tmp_path / "fake.py").write_text(
        "from serving import Contender, Unavailable, serve\n"
        "def build(options):\n"
        "    if options['name'] == 'gone': raise Unavailable('not here')\n"
        "    print('noise of a library')\n"
        "    def run(count):\n"
        "        if options['name'] == 'bad': raise SystemExit('boom')\n"
        "        open(options['log'], 'a').write(f\"{options['name']}{count} \")\n"
        "        return 5 * count\n"
        "    return Contender(run, facts={'loss': 1.5}, extras=lambda: {'env_steps': 7})\n"
        "serve(build, ['torch'])\n"
    )
    monkeypatch.setattr(harness, "CONTENDERS", tmp_path)
    entries = [Entry(name, "metarl", "fake", {"name": name, "log": str(log)}) for name in ("a", "bad", "gone", "b")]
    found = harness.measure(Case("case", entries, count=3), 2, 0.1, "cpu", [], lambda text: None)
    assert log.read_text().split() == ["a3", "b3", "a3", "b3", "b3", "a3"]
    a, bad, gone, b = found
    assert [len(x["runs"]) for x in found] == [2, 0, 0, 2]
    assert "boom" in bad["failed"]
    assert gone["unavailable"] == "not here"
    assert b["facts"] == {"loss": 1.5}
    assert a["versions"] == {"torch": torch.__version__}
    run = a["runs"][0]
    assert (run["work"], run["env_steps"], run["count"]) == (15, 7, 3)
    assert run["wall"] > 0
    assert a["startup"] > a["first"]["wall"]


def test_repetitions_are_as_long_as_asked(tmp_path, monkeypatch):
    shutil.copy(SPEED / "contenders" / "serving.py", tmp_path)
    (tmp_path / "slow.py").write_text(
        "import time\nfrom serving import Contender, serve\n"
        "def run(count):\n    time.sleep(0.01 * count)\n    return count\n"
        "serve(lambda options: Contender(run), [])\n"
    )
    monkeypatch.setattr(harness, "CONTENDERS", tmp_path)
    (found,) = harness.measure(Case("case", [Entry("a", "metarl", "slow")]), 1, 0.1, "cpu", [], lambda text: None)
    assert 2 <= found["runs"][0]["count"] <= 10


@pytest.mark.slow
def test_a_peer_that_cannot_be_installed_is_named_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(harness.peers, "REQUIREMENTS", tmp_path / "benchmarks" / "peers")
    monkeypatch.setattr(harness.peers, "ROOT", tmp_path)
    monkeypatch.setenv("METARL_PEERS", str(tmp_path / "kept"))
    (tmp_path / "benchmarks" / "peers").mkdir(parents=True)
    (tmp_path / "benchmarks" / "peers" / "none.txt").write_text("./no_such_folder\n")
    (found,) = harness.measure(Case("case", [Entry("peer", "none", "fake")]), 1, 0.1, "cpu", [], lambda text: None)
    assert report.missing(result([found])) == ["peer (case): pip could not install benchmarks/peers/none.txt"]


@pytest.mark.parametrize(
    ("threads", "cores", "seconds"),
    [
        ({1: 2.0}, 1, 2.0),
        ({1: 0.5, 2: 3.0, 3: 3.0}, 2, 3.5),  # the main thread waits for two that work side by side
        ({1: 0.5, 2: 3.0, 3: 3.0}, 1, 6.5),
        ({1: 0.0, **dict.fromkeys(range(2, 12), 1.0)}, 2, 5.0),  # ten processes share two cores
    ],
)
def test_the_path_is_what_idle_cores_would_take(monkeypatch, threads, cores, seconds):
    monkeypatch.syspath_prepend(SPEED / "contenders")
    import serving

    before = dict.fromkeys(threads, 1.0)
    assert serving.path(before, {key: 1 + value for key, value in threads.items()}, cores) == pytest.approx(seconds)


def test_processor_times_are_those_of_threads_and_processes(monkeypatch):
    monkeypatch.syspath_prepend(SPEED / "contenders")
    import serving

    burn = "import time\nwhile time.process_time() < 0.1: pass\nprint(1, flush=True)\ninput()"
    before = serving.processor_times()
    child = subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    looked = threading.Event()
    thread = threading.Thread(target=lambda: (spin(0.1), looked.wait()))
    thread.start()
    spin(0.05)
    child.stdout.readline()  # it has taken its time
    while (after := serving.processor_times())[thread.native_id] < 0.1:
        time.sleep(0.01)
    assert next(iter(after)) == os.getpid()
    assert after[os.getpid()] - before[os.getpid()] >= 0.05
    assert after[child.pid] >= 0.1
    looked.set()
    child.communicate(b"\n")
    thread.join()


def spin(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@pytest.mark.parametrize("steps", [1, 2])
def test_the_limit_counts_the_products_of_the_meta_gradient(monkeypatch, steps):
    """As many operations as torch counts in metarl's own meta-gradient."""
    monkeypatch.syspath_prepend(SPEED / "contenders")
    import meta_learning

    shape = ["algo.tasks=3", f"algo.inner.steps={steps}", "learner.network.hidden=[16,16]", "algo.outer.tasks=3"]
    algorithm = build(compose_train("algo=maml_dqn", "env=cartpole_family", *shape)).algorithm

    def batch(length, envs):
        return Transitions(**{k: torch.as_tensor(v) for k, v in meta_learning.experience(3, length, envs, 0).items()})

    counter = FlopCounterMode(display=False)
    with counter:
        algorithm.meta_gradient([batch(5, 4)] * steps, batch(1, 8))
    assert counter.get_total_flops() == meta_learning.operations(3, steps, 20, 8, 16)


ENTRIES = [entry for table in tables().values() for case in table.cases for entry in case.entries]


@pytest.mark.slow
@pytest.mark.parametrize("overrides", sorted({" ".join(e.options.get("overrides", [])) for e in ENTRIES if e.name == "metarl"}))
def test_what_metarl_is_measured_with_composes(overrides):
    compose_train(*overrides.split())


def test_contenders_have_their_scripts_and_environments():
    for entry in ENTRIES:
        assert (SPEED / "contenders" / f"{entry.script}.py").exists()
        assert entry.environment == "metarl" or (ROOT / "benchmarks" / "peers" / f"{entry.environment}.txt").exists()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT / "benchmarks")))
def test_every_import_of_a_benchmark_is_there(script):
    """Else only who starts it would notice that a module or a name is gone which it shares with another."""
    inside = (ROOT / "tests", ROOT / "benchmarks")
    outside = [folder for folder in sys.path if folder and not any(Path(folder).is_relative_to(each) for each in inside)]
    for node in ast.walk(ast.parse(script.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in {name.partition(".")[0] for name in names} - {*sys.builtin_module_names, *OPTIONAL}:
            assert PathFinder.find_spec(name, [str(script.parent), *outside]), name
        if isinstance(node, ast.ImportFrom) and (
            names[0].startswith("metarl_cli") or (script.parent / f"{names[0]}.py").exists()
        ):
            module = importlib.import_module(names[0])
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.import_module(f"{names[0]}.{alias.name}")


def test_every_command_of_the_list_of_benchmarks_is_there():
    listed = re.findall(r"python (benchmarks/[\w./]+)", (ROOT / "benchmarks" / "README.md").read_text())
    assert listed
    assert not [name for name in listed if not (ROOT / name).exists()]


def test_every_table_has_its_place_in_the_documentation():
    assert {match[2] for match in report.MARKER.finditer(PAGE)} == set(tables())


def test_growth_has_a_case_for_every_point():
    names = [case.name for case in tables()["growth"].cases]
    assert names == [f"{axis} = {value}" for axis, values in GROWTH.items() for value in values]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_results_have_what_their_tables_need(path):
    found = json.loads(path.read_text())
    assert found["table"] in tables()
    head, rows = report.table(found)
    assert rows
    assert all(len(row) == len(head) for row in rows)
    assert found["revision"] in report.provenance(found)


def test_contenders_of_the_meta_gradient_compute_the_same_loss():
    for case in json.loads((RESULTS / "meta_gradient.json").read_text())["cases"]:
        losses = [run["loss"] for each in report.measured(case).values() for run in each["runs"] if "loss" in run]
        assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-6)


def test_the_documentation_has_the_numbers_of_the_results():
    """``python benchmarks/speed docs`` makes them the same."""
    assert report.fill(PAGE, RESULTS) == PAGE
