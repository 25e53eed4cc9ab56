"""The architecture: imports point one way, configurations are values alone, the wheel carries them."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import CONF, compose_values, options

from metarl_cli.building import load

ROOT = CONF.parent
PACKAGE = ROOT / "metarl_cli"
# From the bottom up; a module imports only from layers below its own.
LAYERS = [
    {"__init__", "types", "problems"},
    {
        "building",
        "composing",
        "checkpoint",
        "statistics",
        "seeding",
        "returns",
        "replay",
        "actions",
        "tasks",
        "ranks",
        "lineage",
        "progress",
    },
    {"networks", "recurrent", "distributions", "inner_optimizers"},
    {"run_folder", "tracking", "envs"},
    {"inner_loop", "reference", "trials"},
    {"learners", "searches", "genomes", "lifetimes"},
    {"evolution"},
    {"algos"},
    {"evaluate"},
    {"train", "adapt", "listing"},
    {"cli"},
    {"__main__"},
]


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    inside = path.relative_to(PACKAGE)
    mine = inside.parts[0].removesuffix(".py")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("metarl_cli."):
            parts = node.module.split(".")[1:]
            if parts[0] == mine and mine in ("algos", "envs", "genomes", "learners", "lifetimes", "searches"):
                assert parts[1] in ("native", "tabular", "population", "genes", "traits"), (
                    f"{inside} imports its sibling {node.module}"
                )
            else:
                assert layer(parts[0]) < layer(mine), f"{inside} imports {node.module}, which is not below it"


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda p: str(p.relative_to(CONF)))
def test_no_configuration_names_code(path):
    text = path.read_text()
    assert "_target_" not in text
    assert yaml.safe_load(text) is not None


@pytest.mark.parametrize("group", ["algo", "learner", "env"])
def test_every_option_is_described_and_valid(group):
    for name in options(group):
        assert (CONF / group / f"{name}.yaml").read_text().startswith("# "), f"{group}/{name} says in one line what it is"
        load(group, compose_values("train", [f"{group}={name}"])[group])


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_is_valid(name):
    from conftest import compose_train

    compose_train(f"experiment={name}")


def test_the_wheel_carries_the_configurations(tmp_path):
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in CONF.rglob("*.yaml"):
        assert f"metarl_cli/conf/{path.relative_to(CONF).as_posix()}" in names
    assert "metarl_cli/cli.py" in names
