"""The notebook, cell by cell as a reader runs it."""

from __future__ import annotations

import ast
import json

import pytest
from conftest import CONF

NOTEBOOK = CONF.parent / "examples" / "adapt_a_policy.ipynb"


def run(source: str, names: dict[str, object]) -> object:
    """Run a cell; returns the value of its last line, as a notebook shows it."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(NOTEBOOK), "exec"), names)
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names) if isinstance(last, ast.Expr) else None


@pytest.mark.slow
def test_every_cell_runs_and_the_policies_are_adapted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    score, named, own, loaded = (run("".join(cell["source"]), names) for cell in cells)
    assert score > 50, "a random policy has about 28"
    before, after = named
    assert after > before
    cart, reversed_cart = own
    assert min(cart, reversed_cart) > 50
    assert loaded == reversed_cart
