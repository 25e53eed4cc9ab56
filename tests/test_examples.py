"""The example package installs and runs as the guide says, and the guide's configurations are valid."""

import importlib
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, TINY_MAML
from launching import PATIENCE

from metarl_cli.cli import compose as composing
from metarl_cli.cli import main as cli
from metarl_cli.cli.commands import commands
from metarl_cli.cli.hydra import check_values
from metarl_cli.seeding import numpy_rng, torch_rng

ROOT = Path(__file__).resolve().parent.parent
BOAT = ROOT / "examples" / "drifting_boat"
GUIDE = (ROOT / "docs" / "own_family.md").read_text()


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The example as pip installs it, in a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(folder), str(BOAT)], check=True, capture_output=True)
    return folder


def metarl(installed: Path, cwd: Path, *words: str) -> str:
    env = {**os.environ, "PYTHONPATH": f"{installed}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "metarl_cli", *words]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_an_installed_family_is_listed_and_described(installed, tmp_path):
    assert "boat_family " in metarl(installed, tmp_path, "envs")
    shown = metarl(installed, tmp_path, "envs", "boat_family")
    assert "action       one of 9\n" in shown
    assert re.search(r"^askew +0 +\[-3\.142, 3\.142\]$", shown, re.MULTILINE)
    assert "  metarl train experiment=maml_dqn_boat\n" in shown


@pytest.mark.slow
def test_an_installed_family_from_training_to_adaptation(installed, tmp_path):
    shown = metarl(installed, tmp_path, "train", "experiment=maml_dqn_boat", "run=boat", *TINY, *TINY_MAML)
    assert "after step 1" in shown
    assert (tmp_path / "boat" / "best.pt").is_file()
    metarl(installed, tmp_path, "test", "run=boat", "split=ood", "tasks=2", "episodes=1")
    metarl(installed, tmp_path, "adapt", "run=boat", "task.askew=2", "episodes=1", "gif=true")
    assert list((tmp_path / "boat" / "adapted").rglob("*.gif"))


@pytest.fixture
def boat(installed, monkeypatch):
    """The example's family, without a current but for the tests that name one."""
    monkeypatch.syspath_prepend(str(installed))
    module = importlib.import_module("metarl_boat.boat")
    ranges = {"askew": [-3.0, 3.0], "current_x": [-0.03, 0.03]}
    return module.Family(module.Config(horizon=30, ranges=ranges, ood_ranges={"current_x": [-0.06, 0.06]}))


@pytest.mark.slow
def test_the_example_by_hand(boat, float64):
    env = boat.make(boat.named_task({"askew": torch.pi / 2, "current_y": -0.03}), 1, torch_rng(0, "env"))
    x, y = env.obs[0, 0].tolist()
    assert x**2 + y**2 == pytest.approx(1.0)
    step = env.step(torch.tensor([[1]]))  # east at the helm is north by the rudder
    assert step.next_obs[0, 0].tolist() == pytest.approx([x, y + 0.1 - 0.03])
    assert float(step.reward) == pytest.approx(-((x**2 + (y + 0.07) ** 2) ** 0.5))
    step = env.step(torch.tensor([[0]]))
    assert step.next_obs[0, 0].tolist() == pytest.approx([x, y + 0.04])


@pytest.mark.slow
def test_the_example_keeps_the_contract(boat):
    tasks = boat.sample_tasks(5, "ood", numpy_rng(0, "tasks"))
    assert all(torch.equal(boat.sample_tasks(3, "ood", numpy_rng(0, "tasks"))[name], row[:3]) for name, row in tasks.items())
    env, rng = boat.make(tasks, 2, torch_rng(0, "env")), torch_rng(0, "act")
    for t in range(1, 61):
        step = env.step(boat.spec.actions.random(env.obs, rng))
        assert step.next_obs.shape == (5, 2, *boat.spec.obs_shape)
        assert bool(step.truncated.all()) == (t % 30 == 0)
        assert not step.terminated.any()
    assert len(env.render().getcolors(maxcolors=10_000)) > 1


def test_configurations_of_installed_packages(tmp_path, monkeypatch, capsys):
    """Found without importing anything; where names clash the package's own win, and what is installed wins over a folder."""
    site, mine = tmp_path / "site", tmp_path / "mine"
    theirs = site / "theirs" / "inner" / "conf"
    for folder, name, horizon in ((theirs, "far", 5), (mine, "far", 6), (mine, "mine", 7)):
        (folder / "env").mkdir(parents=True, exist_ok=True)
        (folder / "env" / f"{name}.yaml").write_text(f"# Far.\ndefaults: [navigation_2d]\nhorizon: {horizon}\n")
    (theirs / "env" / "cartpole_v1.yaml").write_text("# Not the real one.\nmodule: nope\n")
    (site / "theirs" / "__init__.py").write_text("raise RuntimeError('imported')")
    (site / "theirs-1.dist-info").mkdir()
    (site / "theirs-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    points = "[metarl.conf]\ntheirs = theirs.inner.conf\nlost = theirs.nowhere\ngone = not_installed.conf\n"
    (site / "theirs-1.dist-info" / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delenv("METARL_CONFIG_DIR", raising=False)
    assert list(composing.installed_folders()) == [("theirs", str(theirs))]
    for name, horizon in (("far", 5), ("cartpole_v1", 500), ("mine", 7)):
        assert cli.main(["train", f"env={name}", "--config-dir", str(mine), "--cfg", "job", "--package", "env"]) == 0
        assert f"\nhorizon: {horizon}\n" in capsys.readouterr().out


def test_the_guide_shows_the_example():
    """Code in the guide is code of the example."""
    sources = [path.read_text() for path in BOAT.rglob("*") if path.suffix in (".py", ".toml", ".yaml")]
    shown = re.findall(r"^```(?:python|toml)\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    assert shown
    for block in shown:
        for part in re.split(r"^ *\.\.\.\n", block, flags=re.MULTILINE):
            assert any(part in source for source in sources), part


def test_the_configurations_of_the_guide_are_valid(tmp_path):
    shown = re.findall(r"`myconf/(\w+/(\w+)\.yaml)`[^`]*```yaml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    assert len(shown) == 2
    for path, name, text in shown:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
        args = composing.parse_flags([f"env={name}", "--config-dir", str(tmp_path)])
        assert composing.find_problems(commands()["train"], args, check_values) == []


SHORT = ["train.iterations=2", "train.eval_every=1", "eval.tasks=2", "eval.episodes=1", "test.tasks=2", "test.episodes=1"]
SCRIPTS = {
    "two_kinds_of_tasks": (
        ["test.steps=1", "algo.tasks=4", "algo.outer.tasks=2", "algo.outer.batch=8"],
        r"step 1: CartPoles \d",
    ),
    "evolve_a_dqn": (["algo.search.population=8", "algo.tasks=4", "algo.fitness.tasks=2"], r"step 1: return \d"),
    "reward_from_demonstrations": (["test.steps=2", "algo.tasks=2"], r"2 demonstrations: return -?\d"),
    "maml_on_mujoco": (["test.steps=1", "env.horizon=20"], r"backwards: at -?\d"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs(name, tmp_path, monkeypatch, capsys):
    overrides, shown = SCRIPTS[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *SHORT, *overrides])
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    assert re.search(shown, capsys.readouterr().out)


def test_every_script_is_run_and_documented():
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"serve_policy", "adapt_policy"}
    assert scripts == set(SCRIPTS)
    assert all(f"`examples/{name}.py`" in (ROOT / "docs" / "examples.md").read_text() for name in scripts)
