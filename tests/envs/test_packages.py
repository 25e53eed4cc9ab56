"""Families of other packages: what they need is said, and where that is installed they go from end to end."""

import re
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import CONF, ENVS, inherited
from packages import ROWS, attempt, needed

from metarl_cli.envs.packages import KNOWN

FOREIGN = [name for name in ENVS if inherited("env", name).get("package")]
EXTRAS = tomllib.loads((CONF.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_every_family_of_a_package_is_tried():
    assert sorted(name for name, row in ROWS.items() if "env" not in row) == FOREIGN


@pytest.mark.parametrize("name", FOREIGN)
def test_the_extra_that_a_family_names_brings_its_package(name):
    (extra,) = re.findall(r"needs the extra (\w+)", (CONF / "env" / f"{name}.yaml").read_text().splitlines()[0])
    assert KNOWN[inherited("env", name)["package"]] in {re.split(r"[=>\[]", text)[0] for text in EXTRAS[extra]}


@pytest.mark.slow
@pytest.mark.parametrize("name", FOREIGN)
def test_train_test_adapt_and_go_on_to_the_same_bits(name, tmp_path):
    if missing := [module for module in needed(name) if find_spec(module) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    tried = attempt(name, Path(tmp_path))
    assert (tried.error, tried.different) == ("", [])
