"""The architecture: imports point one way, configurations are values alone, the wheel carries them."""

import ast
import subprocess
import sys
import zipfile

import pytest
import yaml
from conftest import CONF, compose_train, options

ROOT = CONF.parent
PACKAGE = ROOT / "metarl_cli"
# The rooms from the top down, the modules beside them last; imports point down this list, which the README shows too.
ROOMS = (
    "cli",
    "tuning",
    "comparison",
    "runs",
    "evaluation",
    "algos",
    "evolution",
    "adaptation",
    "learners",
    "networks",
    "envs",
    "experience",
    "config",
)
MODULES = ("interfaces", "data", "spaces", "seeding", "processes", "shared_sums", "progress", "errors", "signals")
# Siblings that are one thing's parts: what several modules of a folder of plug-ins share.
SHARED = {
    "algos": {"conditioned", "reference", "memory_algorithm", "on_policy"},
    "envs": {
        "csv_file",
        "lattice",
        "links",
        "mixins",
        "native",
        "plane",
        "planning",
        "positions",
        "rules",
        "simulator",
        "tabular",
        "tasks",
    },
    "learners": set(),
    "evolution.genomes": {"genes"},
    "evolution.lifetimes": {"traits"},
    "evolution.searches": {"fitness"},
}


def faults() -> list[str]:
    """Every import that does not point down the list, in words."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE).with_suffix("").parts
        if len(inside) == 1 and inside[0].startswith("__"):
            continue  # the entry points see everything
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                found.append(f"{'/'.join(inside)}.py imports by a relative path: name the package")
            found += [f for parts in imported(node) if (f := fault(inside, parts))]
    return found


def imported(node: ast.AST) -> list[list[str]]:
    """The modules of this package that an import names, without its own name: ``[["envs", "tasks"]]``."""
    names = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
        whole = [f"{node.module}.{alias.name}" for alias in node.names]
        names = [name if is_module(name) else node.module for name in whole]
    return [parts[1:] for name in dict.fromkeys(names) if (parts := name.split("."))[0] == "metarl_cli" and len(parts) > 1]


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def fault(inside: tuple[str, ...], parts: list[str]) -> str | None:
    """What is wrong with the import of ``metarl_cli.<parts>`` by the module ``inside`` the package."""
    names = [*ROOMS, *MODULES]
    if parts[0] == "__version__":
        return None
    for name in (inside[0], parts[0]):
        if name not in names:
            return f"{name} is in no room: add it to ROOMS or MODULES in tests/test_layout.py and to the README"
    arrow = f"{'/'.join(inside)}.py imports metarl_cli.{'.'.join(parts)}"
    if inside[0] == parts[0]:
        folder = ".".join(inside[:-1])
        shared = SHARED.get(folder)
        if shared is not None and ".".join(parts[:-1]) == folder and parts[-1] not in shared:
            return f"{arrow}, its sibling: move what they share below, or add it to SHARED in tests/test_layout.py"
    elif names.index(inside[0]) > names.index(parts[0]):
        return f"{arrow}, which lies above it: imports point down {', '.join(names)}"
    return None


def test_imports_point_down():
    assert not (found := faults()), "\n".join(found)


def test_the_readme_shows_the_list():
    lines = [line.split() for line in (ROOT / "README.md").read_text().splitlines()]
    names = [words[0] for words in lines if words and words[0] in {*(f"{r}/" for r in ROOMS), *(f"{m}.py" for m in MODULES)}]
    assert names == [*(f"{room}/" for room in ROOMS), *(f"{module}.py" for module in MODULES)]


def test_the_listing_is_the_architecture():
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    files = {p.stem for p in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert folders == set(ROOMS), "a folder without a place in the list, or a place without a folder"
    assert files == set(MODULES), "a module at the top without a place in the list: at most six lie there"


def test_a_file_is_one_idea():
    long = [str(p.relative_to(PACKAGE)) for p in sorted(PACKAGE.rglob("*.py")) if len(p.read_text().splitlines()) >= 450]
    assert not long, "450 lines or more: does each hold one idea?"


def test_no_configuration_names_code():
    texts = {str(p.relative_to(CONF)): p.read_text() for p in sorted(CONF.rglob("*.yaml"))}
    assert not [name for name, text in texts.items() if "_target_" in text]
    assert not [name for name, text in texts.items() if yaml.safe_load(text) is None], "these are empty"


def test_every_option_is_described():
    """That each is valid is tested in config/test_building.py."""
    named = [CONF / group / f"{name}.yaml" for group in ("algo", "learner", "env") for name in options(group)]
    assert not [str(path.relative_to(CONF)) for path in named if not path.read_text().startswith("# ")]


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_is_valid(name):
    compose_train(f"experiment={name}")


@pytest.mark.slow
def test_the_wheel_carries_the_configurations(tmp_path):
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in CONF.rglob("*.yaml"):
        assert f"metarl_cli/conf/{path.relative_to(CONF).as_posix()}" in names
    zoo = PACKAGE / "runs" / "zoo"
    assert {f"metarl_cli/runs/zoo/{path.relative_to(zoo)}" for path in zoo.rglob("*.*") if path.is_file()} <= names
    assert "metarl_cli/cli/main.py" in names
