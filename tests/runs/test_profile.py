"""The profile of a run: a table of the parts of an iteration, and a trace that has them by name."""

import gzip
import io
import json
import time

import pytest
import torch
from conftest import compose_train, flat, slow_if, tiny
from rich.console import Console

from metarl_cli.cli.train import Terminal
from metarl_cli.config.models import Hardware, Job
from metarl_cli.errors import UserError
from metarl_cli.progress import timed, timing
from metarl_cli.runs.build import build
from metarl_cli.runs.folder import RunFolder
from metarl_cli.runs.loop import Listener, train
from metarl_cli.runs.naming import default_name
from metarl_cli.runs.profile import TIMED, TRACE, TRACED, Profile, Profiler, Timer, costliest

PARTS = {  # of every algorithm here, and of each
    "maml_dqn": {"outer update", "inner step", "inner gradient", "target networks", "backward", "sampling from replay"},
    "dqn": {"update", "targets", "loss", "sampling from replay"},
    "rl2": {"advantages", "memory", "loss", "backward"},
    "rl2_dqn": {"memory", "loss", "backward", "sampling from replay"},
    "es_dqn": {"learning", "inner gradient", "measuring fitness", "search"},
}


ITERATIONS = TIMED + TRACED + 1


def events(folder) -> list[str]:
    """The names of the blocks in a trace."""
    trace = json.loads(gzip.decompress((folder / TRACE).read_bytes()))
    return [event["name"] for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]


@pytest.mark.parametrize("algo", slow_if(PARTS, "rl2_dqn".__eq__))
def test_a_profile_names_the_parts_and_changes_no_bit(algo, tmp_path):
    config = compose_train(f"algo={algo}", *tiny(algo), f"train.iterations={ITERATIONS}")
    plain, profiled = build(config).algorithm, build(config).algorithm
    profiles: list[Profile] = []
    step = Profiler(profiled.train_step, 0, ITERATIONS, tmp_path, torch.device("cpu"), profiles.append)
    for _ in range(ITERATIONS):
        assert str(plain.train_step()) == str(step())
    states = flat(plain.state_dict()), flat(profiled.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))

    (profile,) = profiles
    expected = PARTS[algo] | {"acting", "stepping environments"}
    assert expected <= {part.name for part in profile.parts}
    assert expected | {"iteration"} <= set(names := events(tmp_path))
    assert names.count("iteration") == TRACED
    assert sum(part.seconds for part in profile.parts if part.depth == 0) <= profile.seconds
    assert any(operator.name.startswith("aten::") and operator.seconds > 0 for operator in profile.operators)


def test_a_run_prints_its_profile(tmp_path):
    shown = io.StringIO()
    small = ["algo=maml_dqn", *tiny("maml_dqn"), f"train.iterations={ITERATIONS}", f"run={tmp_path}/run"]
    config = compose_train(*small, "hardware.profile=true")
    train(config, Job({}, []), Terminal(Console(file=shown, width=80)))
    assert "iteration" in events(tmp_path / "run")
    rows = [line for line in shown.getvalue().splitlines() if line[:1] == "│"]
    assert {"    inner gradient", "everything else"} <= {row[2:].split("│")[0].rstrip() for row in rows}
    assert any("aten::" in row for row in rows)
    assert max(len(row) for row in rows) <= 80
    assert default_name(config, Job({}, [])) == default_name(compose_train(*small), Job({}, []))


def test_the_time_of_a_part_is_in_those_around_it():
    inner = timed("inner")(lambda: time.sleep(0.01))
    outer = timed("outer")(lambda: [inner(), inner()])
    timer = Timer(torch.device("cpu"))
    with timing(timer):
        for _ in range(2):
            outer()
        inner()
    outer()  # nobody times it
    first, second, alone = timer.parts(2)
    assert [part[:3] for part in (first, second, alone)] == [("outer", 0, 1), ("inner", 1, 2), ("inner", 0, 0.5)]
    assert first.seconds >= second.seconds >= 2 * 0.01
    assert alone.seconds >= 0.5 * 0.01


def test_an_operator_costs_what_those_within_it_leave():
    spans = [("mm", 0, 9), ("copy", 1, 2), ("copy", 4, 4), ("fill", 5, 1), ("mm", 9, 3)]  # name, start, duration [us]
    events = [{"name": name, "ts": start, "dur": duration, "tid": 1} for name, start, duration in spans]
    other = {"name": "fill", "ts": 0, "dur": 20, "tid": 2}  # in a thread of its own
    found = {part.name: (part.calls * TRACED, round(part.seconds * TRACED * 1e6)) for part in costliest([*events, other])}
    assert found == {"mm": (2, 6), "copy": (2, 5), "fill": (2, 21)}


def test_a_profile_needs_iterations(tmp_path):
    config = compose_train(*tiny("maml_dqn"), f"run={tmp_path}/short", "train.iterations=4", "hardware.profile=true")
    with pytest.raises(UserError, match=f"takes {TIMED + TRACED} iterations, and 4 are left"):
        train(config, Job({}, []), Listener())
    assert not (tmp_path / "short" / "run.json").exists()


def test_reading_a_run_compiles_and_profiles_nothing(tmp_path):
    words = [f"train.iterations={ITERATIONS}", "hardware.profile=true", "hardware.compile=true"]
    config = compose_train("algo=maml_dqn", *tiny("maml_dqn"), f"run={tmp_path}/run", *words)
    folder = RunFolder(config.run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", "no-such-compiler")
        train(config, Job({}, []), Listener())
    assert folder.config().hardware.compile, "a run goes on as it was made"
    assert not folder.config().hardware.profile, "unless it is asked again"
    read = folder.config(Hardware(device="cpu", threads=1, patience=60)).hardware
    assert (read.compile, read.profile) == (False, False)
