"""The command line: help, flags, overrides, sweeps, errors and completion; and what it relies on inside Hydra."""

import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from conftest import CONF, options
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from launching import PATIENCE

import metarl_cli
from metarl_cli.cli import adapt, hydra, report, test, train
from metarl_cli.cli import compose as composing
from metarl_cli.cli import main as cli
from metarl_cli.cli.commands import commands
from metarl_cli.config import registry
from metarl_cli.errors import UserError

ROOT = CONF.parent
COMPOSED = [name for name, command in commands().items() if command.has_config]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working directory, no settings from outside, and logging as it was."""
    monkeypatch.chdir(tmp_path)
    for name in ("METARL_CONFIG_DIR", "HYDRA_FULL_ERROR", "COMP_LINE"):
        monkeypatch.delenv(name, raising=False)
    handlers, level = list(logging.root.handlers), logging.root.level
    yield tmp_path
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture
def runs(monkeypatch):
    """Every run asked for, none made: ``(config, choices, overrides, number, flags)``."""
    made = []
    for module in (train, test, adapt):
        monkeypatch.setattr(module, "run", lambda config, job: made.append((config, *job[:3], job.flags)) or 1.5)
    return made


def errors(capsys) -> list[str]:
    """What was said on stderr, without the prefix that every line must have."""
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("metarl: error: ") for line in lines), lines
    return [line.removeprefix("metarl: error: ") for line in lines]


def shell(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "metarl_cli", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


# -- help and version


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_shows_the_commands(words, capsys):
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert all(f"  {command} " in shown for command in commands())
    assert "metarl COMMAND --help" in shown
    assert max(len(line) for line in shown.splitlines()) <= 120


@pytest.mark.parametrize("words", [["--version"], ["train", "--version"], ["train", "seed=1", "--version"]])
def test_version(words, capsys):
    assert cli.main(words) == 0
    assert capsys.readouterr().out == f"metarl {metarl_cli.__version__}\n"


@pytest.mark.parametrize("command", COMPOSED)
def test_help_of_a_command_teaches(command, capsys, elsewhere):
    assert cli.main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"metarl {command}: ")
    for part in ("usage: metarl ", "GROUP=OPTION", "hardware: auto, cpu, cuda", "examples", "--cfg job"):
        assert part in shown
    assert ("--multirun" in shown) == (command != "tune")  # which has ranges
    assert ("algo: " in shown) == (command in ("train", "tune"))  # a saved run has its own algorithm
    assert "hydra.cc" not in shown
    assert not list(elsewhere.iterdir())


def test_help_shows_the_overrides(capsys):
    assert cli.main(["train", "algo=dqn", "--help", "seed=77"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^seed: 77 +the one seed every random stream derives from; an integer >= 0$", shown, re.MULTILINE)
    assert ", ".join(options("algo")) in shown


@pytest.mark.parametrize("command", COMPOSED)
def test_help_has_the_meaning_of_every_value_beside_it(command, capsys):
    assert cli.main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    values = shown[shown.index("\nhardware:\n") : shown.index("\nexamples\n")]
    told = [line for line in values.splitlines() if line.strip() and not line.rstrip().endswith(":")]
    bare = {line.split(":")[0].strip() for line in told if not re.search(r"\S {2,}\S|^ {12,}", line)}
    assert bare <= {"module"}, "a value without its meaning"
    assert max(map(len, values.splitlines())) <= 120


def test_examples_in_the_help_are_valid(capsys):
    """Whatever a help text tells to type is accepted, but for what stands for a name."""
    texts = []
    for words in ([], *([command, "--help"] for command in COMPOSED)):
        cli.main(words)
        texts.append(capsys.readouterr().out)
    lines = {line.split("  ")[1] for text in texts for line in text.splitlines() if line.startswith("  metarl ")}
    told = [line for line in lines if "COMMAND" not in line and "NAME" not in line and "--version" not in line]
    assert len(told) >= 10
    for line in told:
        _, command, *words = (word.strip("'") for word in line.replace("range(5)", "range(1)").split())
        if command == "report":  # which composes nothing
            report.parse(words)
            continue
        words = hydra.open_keys(commands()[command], words)
        assert composing.find_problems(commands()[command], composing.parse_flags(words), hydra.check_values) == [], line


def test_help_is_fast_and_shows_a_configuration_without_torch(elsewhere):
    code = "import sys; from metarl_cli.cli.main import main; main({}); print([m for m in {} if m in sys.modules])"
    for words, slow in ((["--help"], ["hydra", "torch", "pydantic"]), (["train", "--cfg", "job"], ["torch"])):
        done = subprocess.run([sys.executable, "-c", code.format(words, slow)], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"


# -- the registry of commands


@pytest.fixture
def installed(tmp_path_factory, monkeypatch):
    """A package of somebody else's with two commands."""
    site = tmp_path_factory.mktemp("site")
    for name, text in {
        "somebody/__init__.py": "",
        "somebody/count.py": """
            \"\"\"``metarl count``: count to a number.\"\"\"
            from pydantic import Field
            from metarl_cli.config.base import StrictModel
            open_groups = ("extra",)
            class Config(StrictModel):
                number: int = Field(gt=0, description="how far")
                extra: dict[str, float]
            def run(config, job):
                print(*range(config.number), config.extra, job.overrides)
                return 0.5
            """,
        "somebody/hello.py": '"""``metarl hello``: greet."""\nrun = lambda words: print("hello", *words)\n',
        "somebody/train.py": '"""``metarl train``: not the real one."""\n',
        "somebody/conf/count.yaml": "defaults: [common, _self_]\nnumber: 3\nextra: {}\n",
        "somebody-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: somebody\nVersion: 1\n",
        "somebody-1.dist-info/entry_points.txt": (
            "[metarl.commands]\ncount = somebody.count\nhello = somebody.hello\ntrain = somebody.train\n"
            "[metarl.conf]\nsomebody = somebody.conf\n"
        ),
    }.items():
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip())
    monkeypatch.syspath_prepend(str(site))
    commands.cache_clear()
    yield
    commands.cache_clear()
    for name in [name for name in sys.modules if name.startswith("somebody")]:
        del sys.modules[name]


def test_an_installed_command_is_one_like_the_others(installed, monkeypatch, capsys):
    own = ["train", "tune", "status", "test", "adapt", "export", "report", "envs", "algos", "reproduce", "zoo"]
    assert [name for name in commands() if name not in ("count", "hello")] == own
    assert commands()["train"].module == "metarl_cli.cli.train", "the package's own cannot be replaced"
    assert cli.main([]) == 0
    assert "\n  count     count to a number\n  hello     greet\n" in capsys.readouterr().out
    assert "somebody" not in sys.modules, "read, not imported"
    assert cli.main(["count", "number=4", "extra.x=1"]) == 0
    assert capsys.readouterr().out == "0 1 2 3 {'x': 1.0} ['number=4', '++extra.x=1']\n"
    assert cli.main(["count", "number=0", "nummer=3"]) == 2
    assert errors(capsys) == ["nummer=3: no such key; did you mean number?", "number=0: must be an integer > 0 (how far)"]
    assert cli.main(["hello", "you"]) == 0
    assert capsys.readouterr().out == "hello you\n"
    monkeypatch.setenv("COMP_LINE", "metarl count num")
    assert cli.main(["-sc", "query=bash"]) == 0
    assert capsys.readouterr().out.split() == ["number="]


def test_every_command_is_described():
    for command in commands().values():
        assert command.line
        assert command.has_config == (ROOT / "conf" / f"{command.name}.yaml").is_file()
        assert command.has_config == hasattr(command.load(), "Config")


# -- running


def test_train_is_given_the_configuration_the_choices_and_the_overrides(runs, elsewhere):
    argv = list(sys.argv)
    assert cli.main(["train", "algo=dqn", "seed=3", "train.iterations=1e3"]) == 0
    ((config, choices, overrides, number, flags),) = runs
    assert (number, flags) == (0, ())
    assert config.seed == 3
    assert config.train.iterations == 1000
    assert config.algo.name == "dqn"
    assert choices["algo"] == "dqn"
    assert choices["env"] == "cartpole_family"
    assert choices["experiment"] is None
    assert not any(name.startswith("hydra") for name in choices)
    assert overrides == ["algo=dqn", "seed=3", "train.iterations=1e3"]
    assert sys.argv == argv, "a run records the command line"
    assert not list(elsewhere.iterdir()), "Hydra leaves nothing on disk"


def test_saved_run_commands(runs):
    assert cli.main(["test", "run=a/b", "split=ood", "steps=7"]) == 0
    assert cli.main(["adapt", "run=a/b", "task.gravity=20", "task.force_mag=-8", "steps=5"]) == 0
    (tested, *_), (adapted, *_) = runs
    assert (tested.run, tested.split, tested.steps) == ("a/b", "ood", 7)
    assert adapted.task == {"gravity": 20.0, "force_mag": -8.0}
    assert adapted.steps == 5


@pytest.mark.parametrize("word", ["task={gravity: 20}", "+task.gravity=20", "++task.gravity=20", "task.gravity=20.0"])
def test_a_task_can_be_written_in_many_ways(word, runs):
    assert cli.main(["adapt", "run=x", word]) == 0
    assert runs[0][0].task == {"gravity": 20.0}


@pytest.mark.parametrize(
    "words",
    [
        ["algo=dqn", "-m", "seed=0,1", "env=navigation_2d"],
        ["algo=dqn", "seed=range(2)", "env=navigation_2d", "outputs=elsewhere/runs", "--multirun"],
    ],
)
def test_overrides_stand_anywhere_around_the_flags(words, runs, elsewhere):
    assert cli.main(["train", *words]) == 0
    assert [(c.seed, c.algo.name, c.env.name) for c, *_ in runs] == [(s, "dqn", "navigation_2d") for s in (0, 1)]
    assert [overrides for *_, overrides, _, _ in runs][1].count("seed=1") == 1
    assert [number for *_, number, _ in runs] == list(range(len(runs)))
    (record,) = (path for path in elsewhere.rglob("*.yaml") if path.is_file())
    outputs = runs[0][0].outputs
    assert record.relative_to(elsewhere).match(f"{outputs}/sweeps/*/multirun.yaml")


@pytest.mark.parametrize("kind", ["job", "hydra", "all"])
def test_cfg_shows_the_configuration(kind, runs, capsys):
    assert cli.main(["train", "seed=9", "--cfg", kind, "algo=dqn"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert ("hydra" in shown) == (kind != "job")
    assert kind == "hydra" or (shown["seed"] == 9 and shown["algo"]["module"] == "dqn")
    assert not runs


@pytest.mark.parametrize("words", [["--info", "algo=dqn"], ["algo=dqn", "--info"], ["--info", "defaults-tree", "algo=dqn"]])
def test_info(words, runs, capsys):
    assert cli.main(["train", *words]) == 0
    assert "algo: dqn" in capsys.readouterr().out
    assert not runs


def test_hydra_help(capsys):
    assert cli.main(["train", "--hydra-help"]) == 0
    assert "hydra/launcher" in capsys.readouterr().out


@pytest.fixture
def mine(tmp_path_factory) -> Path:
    """A user's own configurations."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "experiment").mkdir()
    (folder / "algo").mkdir()
    (folder / "algo" / "mine.yaml").write_text("defaults: [dqn]\nbatch: 32\n")
    texts = {
        "good": "defaults:\n  - override /algo: mine\nseed: 7\ntrain: {iterations: 3}\n",
        "swept": "hydra: {mode: MULTIRUN, sweeper: {params: {seed: '0,1', algo: 'dqn,mine'}}}\n",
        "typo": "sed: 7\nalgo: {outer: {lrr: 3}}\ntrain: {iterations: 0}\n",
        "lost": "defaults:\n  - override /algo: nope\n",
        "named": "run: outputs/${hydra:runtime.choices.algo}-${seed}\n",
    }
    for name, text in texts.items():
        (folder / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{text}")
    return folder


def test_own_configurations(mine, runs, monkeypatch):
    assert cli.main(["train", "--config-dir", str(mine), "experiment=good"]) == 0
    assert cli.main(["train", f"hydra.searchpath=[file://{mine}]", "experiment=good", "seed=8"]) == 0
    monkeypatch.chdir(mine.parent)
    assert cli.main(["train", "algo=mine", "--config-dir", mine.name]) == 0
    monkeypatch.setenv("METARL_CONFIG_DIR", str(mine))
    assert cli.main(["train", "experiment=named"]) == 0
    assert [c.algo.values.get("batch") for c, *_ in runs] == [32, 32, 32, None]
    assert [c.seed for c, *_ in runs] == [7, 8, 0, 0]
    assert runs[0][1]["experiment"] == "good"
    assert runs[0][1]["algo"] == "mine"
    assert runs[3][0].run == "outputs/learned_loss_dqn-0"


def test_a_sweep_can_live_in_an_experiment(mine, runs):
    assert cli.main(["train", "--config-dir", str(mine), "experiment=swept", "algo=dqn"]) == 0
    assert [(c.seed, choices["algo"]) for c, choices, *_ in runs] == [(0, "dqn"), (1, "dqn")]


# -- bad input


def test_unknown_command(capsys):
    assert cli.main(["trian"]) == 2
    assert errors(capsys) == [f"trian: no such command; did you mean train? known: {', '.join(commands())} (see metarl --help)"]
    assert cli.main(["-m", "train"]) == 2
    assert errors(capsys) == ["-m: no such command; the command comes first (see metarl --help)"]


def test_every_bad_override_is_told_at_once(runs, capsys, elsewhere):
    assert cli.main(["train", "sed=1", "algo.lrr=3", "algo=mamldqn", "learner.gamma=2"]) == 2
    seed, rate, option, gamma = errors(capsys)
    assert option.startswith("algo=mamldqn: no such option; did you mean maml_dqn? known: ")
    assert option.endswith(", ".join(options("algo")))
    assert seed == "sed=1: no such key; did you mean seed?"
    assert rate == "algo.lrr=3: no such key; did you mean algo.inner.lr or algo.outer.lr?"
    assert gamma == "learner.gamma=2: must be a number >= 0 and < 1 (discount per step)"
    assert not runs
    assert not list(elsewhere.iterdir()), "nothing on disk before the configuration is valid"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["algo=rl2", "learner.gamma=0.1"], "learner.gamma=0.1: algo=rl2 has no learner"),
        (["algo=rl2", "learner=dqn_atari"], "learner=dqn_atari: algo=rl2 has no learner"),
        (["algo=ucb1", "env=bandit", "learner.gamma=0.1"], "learner.gamma=0.1: algo=ucb1 has no learner"),
        (
            ["algo=ucb1", "env=bandit", "train.iterations=50"],
            "train.iterations=50: algo=ucb1 has nothing to train; leave it at 1",
        ),
        (["experiment=rl2_cartpole", "+learner.gamma=0.1"], "learner.gamma=0.1: algo=rl2 has no learner"),
        (
            ["algo=rl2", "eval.steps=7"],
            "eval.steps=7: algo=rl2 adapts within trials of algo.episodes, not by gradient steps",
        ),
        (
            ["-m", "algo=maml_dqn,rl2", "test.steps=7"],
            "test.steps=7: algo=rl2 adapts within trials of algo.episodes, not by gradient steps",
        ),
        (["hardware=gpu"], "hardware=gpu: no such option; did you mean cuda? known: auto, cpu, cuda"),
    ],
)
def test_a_value_without_effect_is_refused(words, line, runs, capsys):
    assert cli.main(["train", *words]) == 2
    assert errors(capsys) == [line]
    assert not runs


def test_an_algorithm_leaves_out_what_it_does_not_use(runs, capsys):
    assert cli.main(["train", "-m", "algo=maml_dqn,rl2,fomaml_dqn"]) == 0
    assert [c.learner and c.learner.name for c, *_ in runs] == ["dqn", None, "dqn"]
    assert [(c.eval.steps, c.test.steps) for c, *_ in runs] == [(1, 3), (None, None), (1, 3)]
    assert "\n│ 1   │ algo=rl2 " in capsys.readouterr().out, "the table of the sweep"
    for words in (["algo=rl2"], ["experiment=rl2_bandit_n100_k10"], ["algo=thompson", "env=bandit"]):
        assert cli.main(["train", *words, "--cfg", "job"]) == 0
        shown = yaml.safe_load(capsys.readouterr().out)
        assert "learner" not in shown
        assert shown["eval"]["steps"] is shown["test"]["steps"] is None


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["adapt", "run=R", "gravity=20"], "gravity=20: no such key; did you mean task.gravity=20?"),
        (["adapt", "run=R", "epsodes=3"], "epsodes=3: no such key; did you mean episodes?"),
        (
            ["adapt", "run=R", "env=cartpole_v1"],
            "env=cartpole_v1: metarl adapt has no env to choose; a saved run brings its own",
        ),
        (["test", "run=R", "algo=rl2"], "algo=rl2: metarl test has no algo to choose; a saved run brings its own"),
        (["test", "run=R", "env.horizon=2"], "env.horizon=2: metarl test has no env to choose; a saved run brings its own"),
    ],
)
def test_a_saved_run_brings_its_own(words, line, runs, capsys):
    assert cli.main(words) == 2
    assert errors(capsys) == [line]
    assert not runs


def test_a_syntax_error_in_a_yaml_is_one_line(mine, runs, capsys):
    path = mine / "algo" / "indented.yaml"
    path.write_text("module: dqn\n  tasks: 3\n")
    assert cli.main(["train", "--config-dir", str(mine), "algo=indented"]) == 2
    (line,) = errors(capsys)
    assert line.startswith(f"algo=indented: {path}, line 2: ")
    assert not runs


def test_the_configuration_that_was_checked_is_the_one_that_runs(runs, monkeypatch):
    """Validated once in one process; the family that validation has built is in it."""
    parsed = []
    parse = registry._parse
    monkeypatch.setattr(registry, "_parse", lambda model, *rest, **named: parsed.append(model) or parse(model, *rest, **named))
    assert cli.main(["train", "env=classic_mix"]) == 0
    assert parsed.count(train.Config) == 1
    assert sum(model.__module__ == "metarl_cli.envs.mix" for model in parsed) == 1
    ((config, *_),) = runs
    assert config.env.instance.families.keys() == {"cartpole_family", "mountain_car_family"}
    parsed.clear()
    monkeypatch.setattr(hydra, "KEPT", 1)
    assert cli.main(["train", "-m", "seed=0,1"]) == 0
    assert parsed.count(train.Config) == 3, "a sweep keeps a few"
    assert not hydra._checked


# what is written -> how the line about it starts; in the order of the lines: as written, what does not compose first
BAD = {
    "algo=null": "algo=null: Config group override must be a string or a list",
    "env=qqq": f"env=qqq: no such option; known: {', '.join(options('env'))}",
    "hydra/launcher=qqq": "hydra/launcher=qqq: no such option; known: ",
    "lr=3": "lr=3: no such key; did you mean algo.inner.lr or algo.outer.lr?",
    "outer.lr=3": "outer.lr=3: no such key; did you mean algo.outer.lr?",
    "algorithm=dqn": "algorithm=dqn: no such key; known: adaptation, aggregate, algo, ",
    "foo": "foo: write key=value; quote what the shell would split",
    "algo.query.epsilon=[1.0,": "algo.query.epsilon=[1.0,: cannot be read (",
    "seed=0,1": "seed=0,1: several values; add -m to try each",
    "learner.network.hidden=8,9": "learner.network.hidden=8,9: several values; add -m to try each, or write a list as ",
    "seed=range(3)": "seed=range(3): several values; add -m",
    "hydra.sweper.params=1": "hydra.sweper.params=1: no such key; did you mean hydra.sweeper.params?",
    "~seed": "seed: missing; must be an integer >= 0 (the one seed",
    "train.iterations=1.5": "train.iterations=1.5: must be an integer > 0",
    "+clip=3": "clip=3: no such key; did you mean algo.inner.clip or algo.outer.clip?",
    "+algo.foo=1": "algo.foo=1: no such key; known: algo.",
    "learner.double=1": "learner.double=1: must be true or false",
    "+learner._target_=os.system": "learner._target_=os.system: refused",
}


def test_each_kind_of_bad_override_has_its_line(runs, capsys):
    assert cli.main(["train", *BAD, "env.horizn=3"]) == 2  # nothing is said of horizn: its group is unknown
    found = errors(capsys)
    assert len(found) == len(BAD), found
    for line, start in zip(found, BAD.values(), strict=True):
        assert line.startswith(start)
    assert not runs


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["algo.lr=3", "algo=dqn", "sed=1"], ["sed=1: no such key; did you mean seed?"]),  # groups before values
        (["algo=dqn", "algo.inner.lr=3"], ["algo.inner.lr=3: no such key; did you mean algo.lr?"]),
        (["seed=${nope}"], ["seed: Interpolation key 'nope' not found"]),
        (["experiment=qqq"], ["experiment=qqq: no such option"]),
    ],
)
def test_bad_overrides(words, expected, runs, capsys):
    assert cli.main(["train", *words]) == 2
    found = errors(capsys)
    assert len(found) == len(expected), found
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start)
    assert not runs


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--multrun", "--cfgg"],
            ["--multrun: no such flag; did you mean --multirun?", "--cfgg: no such flag; did you mean "],
        ),
        (["--cfg", "foo"], ["argument --cfg/-c: invalid choice: 'foo'"]),
        (["--config-dir"], ["argument --config-dir/-cd: expected one argument"]),
        (["--config-dir", "/no/such"], ["--config-dir (or METARL_CONFIG_DIR): no such folder: /no/such"]),
        (["--cfg", "job", "-m"], ["use only one of --run, --multirun, --cfg and --info"]),
        (["--resolve"], ["--resolve goes with --cfg or --help"]),
        (["--config-name", "x"], ["--config-name: the command chooses it"]),
        (["--config-path", "x"], ["--config-path: the commands bring their configuration"]),
        (["--experimental-rerun", "x"], ["--experimental-rerun: refused, it runs pickled code"]),
    ],
)
def test_bad_flags(words, expected, runs, capsys):
    assert cli.main(["train", "seed=1", *words]) == 2
    found = errors(capsys)
    assert len(found) == len(expected), found
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start)
    assert not runs


def test_missing_run(runs, capsys):
    assert cli.main(["test"]) == 2
    assert errors(capsys) == ["run: missing; must be a text (the run folder to test, or zoo:NAME)"]
    assert cli.main(["adapt", "task.gravity=heavy", "steps=0"]) == 2
    run, steps = errors(capsys)  # what a text means, the run's family knows
    assert run.startswith("run: missing; ")
    assert steps.startswith("steps=0: must be an integer > 0 or null")


@pytest.mark.parametrize("flag", [["--cfg", "job"], ["--info", "defaults"]])
def test_bad_overrides_while_showing(flag, capsys):
    assert cli.main(["train", *flag, "algo=typo", "sed=1"]) == 2
    assert [line.split(":")[0] for line in errors(capsys)] == ["algo=typo", "sed=1"]


def test_bad_experiments(mine, runs, capsys):
    assert cli.main(["train", "--config-dir", str(mine), "experiment=typo"]) == 2
    assert [line.split(": ")[0] for line in errors(capsys)] == ["train.iterations=0", "sed=7", "algo.outer.lrr=3"]
    assert cli.main(["train", "--config-dir", str(mine), "experiment=lost"]) == 2
    (line,) = errors(capsys)
    assert line.startswith("experiment=lost: ")
    assert "'algo/nope'" in line
    assert str(mine) not in line
    assert cli.main(["train", "--config-dir", str(mine), "experiment=god"]) == 2
    (line,) = errors(capsys)
    assert line.startswith("experiment=god: no such option; did you mean good? known: ")
    assert "lost" in line
    assert not runs


def test_every_job_of_a_sweep_is_checked_before_the_first_runs(runs, capsys, elsewhere):
    assert cli.main(["train", "-m", "algo=maml_dqn,dqn", "algo.tasks=20,-1", "seed=0,-5", "env=cartpole_famly"]) == 2
    found = errors(capsys)
    assert found[0].startswith("env=cartpole_famly: no such option; did you mean cartpole_family?")
    assert {line.split(":")[0] for line in found[1:]} == {"algo.tasks=-1", "seed=-5"}
    assert len(found) == len(set(found))
    assert not runs
    assert not list(elsewhere.iterdir())


def test_full_error_shows_the_traceback(runs, capsys, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    for word, cause in (("sed=1", "ConfigCompositionException"), ("seed=-1", "ConfigError")):
        assert cli.main(["train", word]) == 2
        shown = capsys.readouterr().err
        assert "Traceback" in shown
        assert cause in shown
        assert shown.splitlines()[-1].startswith(f"metarl: error: {word}: ")
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


# -- what happens inside a run


def raising(error: BaseException):
    def run(*_):
        raise error

    return run


def test_user_errors_are_one_line(monkeypatch, capsys):
    monkeypatch.setattr(train, "run", raising(UserError("no space\nleft")))
    assert cli.main(["train"]) == 2
    assert errors(capsys) == ["no space left"]


def test_faults_of_the_program_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(train, "run", raising(ZeroDivisionError("oops")))
    with pytest.raises(ZeroDivisionError):
        cli.main(["train"])
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_interrupt(monkeypatch, capsys):
    monkeypatch.setattr(train, "run", raising(KeyboardInterrupt()))
    assert cli.main(["train", "-m", "seed=0,1"]) == 130
    shown = capsys.readouterr().err.splitlines()
    assert shown[-1] == "metarl: interrupted"
    assert not any("seed=1" in line for line in shown), "the jobs after it do not start"


@pytest.mark.parametrize(("error", "code"), [(UserError("disk full"), 2), (ZeroDivisionError("oops"), 1)])
def test_a_failing_job_does_not_stop_the_sweep(error, code, monkeypatch, capsys):
    done = []

    def run(config, *_):
        if config.seed == 1:
            raise error
        done.append(config.seed)

    monkeypatch.setattr(train, "run", run)
    assert cli.main(["train", "-m", "seed=1,2"]) == code
    assert done == [2]
    shown = capsys.readouterr().err
    told = "disk full" if code == 2 else "ZeroDivisionError: oops"
    assert f"metarl: error: job 0 (seed=1): {told}\n" in shown
    assert ("Traceback" in shown) == (code == 1)


def test_the_table_of_a_sweep_has_its_own_jobs_alone(runs, monkeypatch, capsys):
    """And no score where the command has none to give; a file that is torn is left out."""
    assert cli.main(["adapt", "-m", "run=a", "seed=1,2,3", "hydra.sweep.dir=sweep"]) == 0
    assert "score" in capsys.readouterr().out
    monkeypatch.setattr(adapt, "run", lambda config, job: Path("sweep/jobs/7.json").write_text("{"))
    assert cli.main(["adapt", "-m", "run=a", "seed=1,2", "hydra.sweep.dir=sweep"]) == 0
    assert "2 jobs" in capsys.readouterr().out
    monkeypatch.setattr(adapt, "run", lambda config, job: None)
    assert cli.main(["adapt", "-m", "run=a", "seed=1,2", "hydra.sweep.dir=sweep"]) == 0
    out = capsys.readouterr().out
    assert "2 jobs" in out
    assert not {"score", "None"} & set(re.findall(r"\w+", out))


def test_a_full_disk_hides_no_error_of_a_job(monkeypatch, capsys):
    def run(config, job):
        Path("sweep").mkdir(exist_ok=True)
        Path("sweep/jobs").touch()  # nothing can be kept there
        raise UserError("disk full")

    monkeypatch.setattr(adapt, "run", run)
    assert cli.main(["adapt", "-m", "run=a", "seed=1,2", "hydra.sweep.dir=sweep"]) == 2
    assert "metarl: error: job 0 (run=a seed=1): disk full\n" in capsys.readouterr().err


def test_the_return_value_is_the_objective_of_a_sweep(runs, monkeypatch):
    values = []
    job = hydra.Task.__call__
    monkeypatch.setattr(hydra.Task, "__call__", lambda task, config: values.append(job(task, config)))
    assert cli.main(["train"]) == 0
    assert values == [1.5]


def test_a_job_travels_to_another_process():
    task = pickle.loads(pickle.dumps(hydra.Task(commands()["train"])))
    assert task.command.load() is train
    assert pickle.loads(pickle.dumps(UserError(exit_code=1))).exit_code == 1


# -- completion


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("metarl ", [*commands(), "--help", "--version"]),
        ("metarl t", [name for name in commands() if name.startswith("t")]),
        ("metarl train", ["train"]),
        ("metarl train al", ["algo.", "algo/", "algo="]),
        ("metarl train algo/se", ["algo/search="]),
        ("metarl train algo/search=op", ["algo/search=openai_es"]),
        ("metarl train algo=", [f"algo={name}" for name in options("algo")]),
        ("metarl train -m seed=1 env=cartpole_f", ["env=cartpole_family"]),
        ("metarl train algo=dqn algo.target.", ["algo.target.every=", "algo.target.polyak="]),
        ("metarl train algo.outer.cl", ["algo.outer.clip="]),
        ("metarl train --mul", ["--multirun"]),
        ("metarl train --exp", []),
        ("metarl test spl", ["split="]),
        ("metarl adapt run=x s", ["seed=", "steps="]),
        ("metarl nope x", []),
        ("metarl train x=[", []),
        ("metarl train --nope al", []),
        ("metarl test run=", ["run=outputs/", "run=zoo:"]),
        ("metarl test run=outputs/", ["run=outputs/one", "run=outputs/sweeps/"]),
    ],
)
def test_completion(line, expected, monkeypatch, capsys, elsewhere):
    for name in ("outputs/one", "outputs/sweeps"):
        (elsewhere / name).mkdir(parents=True)
    (elsewhere / "outputs/one/run.json").touch()
    monkeypatch.setenv("COMP_LINE", line)
    assert cli.main(["-sc", "query=bash"]) == 0
    shown = capsys.readouterr()
    assert sorted(shown.out.split()) == sorted(expected)
    assert not shown.err


def test_completion_knows_own_configurations(mine, monkeypatch, capsys):
    monkeypatch.setenv("COMP_LINE", f"metarl train --config-dir {mine} experiment=g")
    assert cli.main(["-sc", "query=bash"]) == 0
    assert capsys.readouterr().out.split() == ["experiment=good"]


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_completion_scripts(name, capsys):
    assert cli.main(["--shell-completion", f"install={name}"]) == 0
    assert "COMP_LINE" in capsys.readouterr().out
    assert cli.main(["--shell-completion", "install=qqq"]) == 2
    assert "qqq" in errors(capsys)[0]


def test_completion_in_bash(elsewhere):
    (elsewhere / "metarl").write_text(f'#!/bin/sh\nexec {sys.executable} -m metarl_cli "$@"\n')
    (elsewhere / "metarl").chmod(0o755)
    script = """
    eval "$(metarl --shell-completion install=bash)"
    complete -p metarl
    COMP_LINE="metarl train algo=ma" COMP_CWORD=2; hydra_bash_completion; echo "${COMPREPLY[@]}"
    COMP_LINE="metarl ad" COMP_CWORD=1; hydra_bash_completion; echo "${COMPREPLY[@]}"
    """
    env = {**os.environ, "PATH": f"{elsewhere}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=env, check=True)
    installed, *completed = done.stdout.splitlines()
    assert installed.endswith("-F hydra_bash_completion metarl")
    assert "algo=maml_dqn" in completed[0].split()
    assert "adapt" in completed[1].split()


# -- as a process


def test_exit_codes(elsewhere):
    assert shell("--version", cwd=elsewhere).stdout == f"metarl {metarl_cli.__version__}\n"
    lost = shell("test", "run=nope", cwd=elsewhere)
    assert (lost.returncode, lost.stdout) == (2, "")
    assert lost.stderr.startswith("metarl: error: nope is not a run folder")
    assert len(lost.stderr.splitlines()) == 1
    assert not list(elsewhere.iterdir())


def test_a_pipe_that_closes_ends_it_quietly(elsewhere):
    command = f"{sys.executable} -m metarl_cli train --cfg all | head -1"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, cwd=elsewhere, env=env, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("hydra:\n", "")


def test_ctrl_c(elsewhere):
    code = """if True:
        import sys, time
        from metarl_cli.cli import main as cli, train
        train.run = lambda *_: (print("started", flush=True), time.sleep(600))
        sys.exit(cli.main(["train"]))
    """
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=-1, stderr=-1, text=True)
    assert running.stdout is not None
    assert running.stdout.readline() == "started\n"
    running.send_signal(signal.SIGINT)
    _, shown = running.communicate(timeout=PATIENCE)
    assert (running.returncode, shown) == (130, "metarl: interrupted\n")


# -- what is used inside Hydra


def test_hydra_has_what_is_used():
    """Internals that ``composing`` and ``cli`` rely on; a new Hydra that moves them must fail here first."""
    parser = composing.flags_parser()
    known = {action.dest for action in parser._actions}
    assert known >= {*composing.REFUSED, "help", "hydra_help", "overrides", "cfg", "resolve", "package", "run", "multirun"}
    assert known >= {"shell_completion", "config_dir", "info"}
    args = composing.parse_flags(["a=1", "-m", "b=2", "--package", "p", "c=3"])
    assert args.overrides == ["a=1", "b=2", "c=3"]
    assert args.multirun
    assert args.package == "p"


def test_basic_sweeper_splits_as_expected():
    overrides = OverridesParser.create().parse_overrides(["a=1,2", "b=x", "++c.d=3,4"])
    (jobs,) = BasicSweeper.split_arguments(overrides, None)
    assert jobs == [[f"a={a}", "b=x", f"++c.d={c}"] for a in (1, 2) for c in (3, 4)]


def test_composer_makes_the_jobs_that_hydra_runs(runs, mine):
    words = ["algo=glob(m*_dqn)", "seed=1"]
    jobs = composing.Composer("train", None).jobs(words, multirun=True)
    assert cli.main(["train", "-m", *words]) == 0
    assert [overrides for *_, overrides, _, _ in runs] == jobs
    assert composing.Composer("train", str(mine)).jobs(["experiment=swept"], multirun=False) == [
        [f"seed={seed}", f"algo={algo}", "experiment=swept"] for seed in (0, 1) for algo in ("dqn", "mine")
    ]


def test_configurations_are_found(monkeypatch, tmp_path):
    assert Path(composing.conf_dir()) == ROOT / "conf"
    package = tmp_path / "site" / "metarl_cli"  # as a wheel lies
    (package / "conf").mkdir(parents=True)
    (package / "conf" / "train.yaml").touch()
    monkeypatch.setattr(composing, "__file__", str(package / "cli" / "compose.py"))
    assert composing.conf_dir() == str(package / "conf")
    (package / "conf" / "train.yaml").unlink()
    with pytest.raises(RuntimeError, match="missing"):
        composing.conf_dir()
