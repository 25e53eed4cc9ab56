"""``metarl envs`` and ``metarl algos``: every option of ``conf/`` in the list and in full."""

import os
import re
import subprocess
import sys

import pytest
from conftest import CONF, KINDS, options, slow_if, variant

from metarl_cli.cli import listing
from metarl_cli.cli import main as cli
from metarl_cli.cli.commands import commands
from metarl_cli.config import messages

COMMANDS = list(listing.GROUPS)
EVERY = [(command, name) for command, group in listing.GROUPS.items() for name in options(group)]
SHOWN = {("envs", name) for name in KINDS} | {("algos", name) for name in options("algo") if not variant("algo", name)}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working directory and no settings from outside."""
    monkeypatch.chdir(tmp_path)
    for name in ("METARL_CONFIG_DIR", "COMP_LINE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def said(capsys, *words: str) -> str:
    assert cli.main(list(words)) == 0
    shown = capsys.readouterr()
    assert not shown.err
    return shown.out


def first_line(group: str, name: str) -> str:
    return (CONF / group / f"{name}.yaml").read_text().splitlines()[0].lstrip("# ")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_list_has_a_line_for_every_option(command, capsys):
    group = listing.GROUPS[command]
    lines = said(capsys, command).splitlines()
    assert [line.split()[0] for line in lines] == options(group)
    for line, name in zip(lines, options(group), strict=True):
        assert first_line(group, name) in line
        assert line == line.rstrip()


def test_the_list_says_what_varies(capsys):
    lines = {line.split()[0]: line for line in said(capsys, "envs").splitlines()}
    assert lines["cartpole_physics"].endswith("length=[0.25,1.5], force_mag=[5,15]"), "inherited ranges are shown"
    assert lines["cartpole_v1"].endswith("plain learners."), "one task: nothing varies"


def test_what_varies():
    values = {"ranges": {"g": [1.0, 2.5], "m": [1, 2]}, "ood_ranges": {"g": [0.5, 3.0]}, "choices": {"wind": [0, 5]}}
    assert listing.varied(values) == {"g": ("[1, 2.5]", "[0.5, 3]"), "m": ("[1, 2]", ""), "wind": ("{0, 5}", "")}
    both = {"families": {"a": {"module": "x", **values}, "b": {"module": "y", "ranges": None}}}
    assert list(listing.mixed(both)) == ["a", "b"]
    assert list(listing.varied(both)) == ["a.g", "a.m", "a.wind"]


def test_papers_follow_the_variant(capsys):
    lines = {line.split()[0]: line for line in said(capsys, "algos").splitlines()}
    assert lines["maml_dqn"].endswith("Finn 2017, arXiv:1703.03400")
    assert lines["anil_dqn"].endswith("Raghu 2020, arXiv:1909.09157")
    assert lines["learned_loss_dqn"].endswith("Bechtle 2019, arXiv:1906.05374")
    assert lines["promp"].endswith("Rothfuss 2019, arXiv:1810.06784")
    assert lines["emaml_pg"].endswith("Stadie 2018, arXiv:1803.01118")
    assert lines["dqn"].endswith("Mnih 2015, doi:10.1038/nature14236")
    assert all(lines[name].endswith("universal policy: Yu 2017, arXiv:1702.02453") for name in ("oracle_dqn", "oracle_pg"))
    assert lines["pretrain_dqn"].endswith(first_line("algo", "pretrain_dqn")), "no paper"


@pytest.fixture(scope="module")
def catalogues():
    return {command: listing.Catalogue(command, None) for command in COMMANDS}


@pytest.mark.parametrize(("command", "name"), slow_if(EVERY, lambda case: case not in SHOWN))
def test_one_in_full(command, name, catalogues, capsys):
    group = listing.GROUPS[command]
    shown = said(capsys, command, name)
    assert shown.startswith(f"{name}: {first_line(group, name)}\n\n")
    values = catalogues[command].values[name]
    text = catalogues[command].docstring(values)
    assert len(text) > 100
    assert text.splitlines()[0] in shown
    for path, _ in messages.leaves(values):
        if path[0] in ("ranges", "log_ranges", "choices"):
            entry = re.escape(path[1]).replace(r"\*", "[0-9]+") if path[1:] else ""  # mass_*: at least one of them
            assert not entry or re.search(f"^{entry} ", shown, re.MULTILINE)
        elif not {*path} & {*listing.SHOWN_ELSEWHERE}:
            assert f"\n{'.'.join((group, *path))} " in shown
    if command == "envs":
        assert "not here" in shown or all(f"\n{fact} " in shown for fact in ("observation", "action", "horizon", "splits"))


def test_a_family_in_full(capsys):
    shown = said(capsys, "envs", "cartpole_family")
    for line in (
        "observation  4 numbers",
        "action       one of 2",
        "horizon      500 steps",
        "splits       train, validation, test, ood",
        "gravity         9.8      [4.9, 19.6]  [2.5, 25]",
        "| 1 | cart velocity | m/s | - |",
        "env.horizon     500   time limit of an episode [steps]; an integer > 0",
        "  metarl train experiment=maml_dqn_cartpole",
        "  metarl train env=cartpole_family",
        "  metarl adapt run=outputs/RUN task.gravity=19.6",
    ):
        assert f"{line}\n" in shown


def test_an_algorithm_in_full(capsys):
    shown = said(capsys, "algos", "maml_dqn")
    assert "algo.outer.clip                1.0          largest norm of the meta-gradient; a number > 0\n" in shown
    assert "algo.inner.order               2            order of the meta-gradient; 1 ignores" in shown
    assert "one of 1, 2\n" in shown


def test_several_names_and_unknown_ones(capsys):
    shown = said(capsys, "algos", "dqn", "maml_dqn")
    assert shown.index("dqn: ") < shown.index("maml_dqn: ")
    assert cli.main(["envs", "cartpole_famly", "dqn", "cartpole_v1"]) == 2
    shown = capsys.readouterr()
    first, second = shown.err.splitlines()
    assert first.startswith("metarl: error: cartpole_famly: no such option of env; did you mean cartpole_family? known: ")
    assert second.startswith("metarl: error: dqn: no such option of env; known: ")
    assert not shown.out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["-m"], "metarl envs: takes names, packages=[...], --config-dir and --help alone"),
        (["cartpole_family", "env.horizon=3"], "metarl envs: takes names, packages=[...], --config-dir and --help alone"),
        (["packages=[a-b]x"], "packages="),
        (["packages=mine"], "packages=mine: must be a list of modules, as in packages=[my_module]"),
        (["packages=null"], "packages=None: must be a list of modules"),
        (["--nope"], "--nope: no such flag"),
        (["--config-dir", "nowhere"], "--config-dir (or METARL_CONFIG_DIR): no such folder: "),
    ],
)
def test_bad_flags(words, line, capsys):
    assert cli.main(["envs", *words]) == 2
    assert capsys.readouterr().err.startswith(f"metarl: error: {line}")


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command, capsys):
    shown = said(capsys, command, "--help")
    assert shown.startswith(f"metarl {command}: {commands()[command].line}.\n")
    assert f"{listing.GROUPS[command]}=NAME" in shown
    assert max(map(len, shown.splitlines())) <= 120


@pytest.fixture
def mine(tmp_path_factory):
    """A user's own families, some of which cannot be used here."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "env").mkdir()
    for name, text in {
        "near": "# Near goals.\ndefaults: [navigation_2d]\nranges: {goal_x: [0.0, 0.1]}\nood_ranges: {}\n",
        "plain": "module: navigation_2d\nhorizon: 3\nranges: {}\nood_ranges: {}\n",
        "lost": "# Nobody has its module.\nmodule: nobody\nhorizon: 7\n",
        "wrong": "# Its horizon is wrong.\ndefaults: [navigation_2d]\nhorizon: -1\n",
    }.items():
        (folder / "env" / f"{name}.yaml").write_text(text)
    return folder


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_own_configurations(how, mine, monkeypatch, capsys):
    monkeypatch.setenv("METARL_CONFIG_DIR", str(mine) if how == "variable" else "")
    flag = [] if how == "variable" else ["--config-dir", str(mine)]
    lines = {line.split()[0]: line for line in said(capsys, "envs", *flag).splitlines()}
    assert set(lines) == {*options("env"), "near", "plain", "lost", "wrong"}
    assert "Near goals." in lines["near"]
    assert "goal_x=[0,0.1]" in lines["near"]
    shown = said(capsys, "envs", *flag, "near")
    assert f"  metarl train env=near --config-dir {mine}\n" in shown


def test_what_cannot_be_built_here_says_why(mine, capsys):
    flag = ["--config-dir", str(mine)]
    shown = said(capsys, "envs", "lost", *flag)
    assert shown.startswith("lost: Nobody has its module.\n\nnot here  env.module=nobody: no such module; known: ")
    assert "\nenv.horizon  7\n" in shown
    assert "metarl train" not in shown
    assert "env.horizon=-1: must be an integer > 0" in said(capsys, "envs", "wrong", *flag)


def test_a_simulator_that_is_not_installed(monkeypatch, capsys):
    monkeypatch.setattr("metarl_cli.envs.gymnasium.build.find_spec", lambda name: None)
    assert "lunar_lander_family" in said(capsys, "envs")
    shown = said(capsys, "envs", "lunar_lander_family")
    assert "pip install 'gymnasium[box2d]'\n" in shown
    assert "\nwind_power " in shown
    assert "metarl train env" not in shown


@pytest.mark.slow
def test_one_that_does_not_compose_leaves_the_others(mine, capsys):
    (mine / "env" / "broken.yaml").write_text("# Inherits from nobody.\ndefaults: [nobody]\n")
    lines = {line.split()[0]: line for line in said(capsys, "envs", "--config-dir", str(mine)).splitlines()}
    assert "cannot be composed: " in lines["broken"]
    assert "goal_x=[0,0.1]" in lines["near"]
    assert cli.main(["envs", "broken", "--config-dir", str(mine)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("metarl: error: env=broken: ")


@pytest.mark.parametrize("width", [60, pytest.param(200, marks=pytest.mark.slow)])
def test_on_a_terminal_nothing_is_wider_than_it(width, monkeypatch, capsys):
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": str(width), "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    for words in (["envs"], ["algos"], ["envs", "cartpole_family"], ["algos", "maml_dqn"]):
        shown = re.sub(r"\x1b\[[0-9;]*m", "", said(capsys, *words))
        assert words != ["algos", "maml_dqn"] or "\nalgo.inner.support.rollouts  " in shown, "a key is never cut"
        assert max(map(len, shown.splitlines())) <= min(width, listing.MOST_COLUMNS)


def test_the_list_needs_no_torch():
    code = "import sys; from metarl_cli.cli.main import main; main({}); print([m for m in {} if m in sys.modules])"
    slow = ["torch", "gymnasium", "metarl_cli.interfaces"]
    for command in COMMANDS:
        done = subprocess.run([sys.executable, "-c", code.format([command], slow)], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"


def test_a_pipe_that_closes_ends_it_quietly():
    command = f"{sys.executable} -m metarl_cli envs | head -1"
    env = {**os.environ, "PYTHONPATH": str(CONF.parent)}
    done = subprocess.run(command, shell=True, env=env, capture_output=True, text=True, check=True)
    assert (len(done.stdout.splitlines()), done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("metarl e", [word for word in commands() if word.startswith("e")]),
        ("metarl algos ma", [name for name in options("algo") if name.startswith("ma")]),
        ("metarl algos ", options("algo")),
        ("metarl envs dqn cartpole_f", ["cartpole_family"]),
        ("metarl envs --", ["--config-dir", "--help"]),
        ("metarl envs --nope c", []),
    ],
)
def test_completion(line, expected, monkeypatch, capsys):
    monkeypatch.setenv("COMP_LINE", line)
    assert said(capsys, "-sc", "query=bash").split() == expected


def test_completion_knows_own_configurations(mine, monkeypatch, capsys):
    monkeypatch.setenv("COMP_LINE", f"metarl envs --config-dir {mine} ne")
    assert said(capsys, "-sc", "query=bash").split() == ["near"]


def test_each_entry_of_a_factor_is_listed(capsys):
    pytest.importorskip("mujoco")
    rows = [line.split() for line in said(capsys, "envs", "walker_sizes").splitlines()]
    assert [row for row in rows if row[:1] == ["size_7"]] == [["size_7", "1", "[0.75,", "1.25]", "[0.6,", "1.4]"]]
    assert not [row for row in rows if row[:1] == ["size_*"]]
    rows = [line.split() for line in said(capsys, "envs", "hopper_rand_params").splitlines()]
    assert [row for row in rows if row[:1] == ["mass_4"]] == [["mass_4", "1", "log", "[0.2963,", "3.375]"]]
