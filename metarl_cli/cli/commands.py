"""The registry of commands: every module of this folder, and of the entry points ``metarl.commands``, that describes one.

A command is a module whose docstring begins "``metarl NAME``: what it does". Its source is read, not imported, until it runs.

    Config          a pydantic model: the command's values are in conf/NAME.yaml, and it runs through Hydra
    run(config, job)  of such a command; returns its objective, for sweepers, or None
    folder(config, job)   of such a command, if it makes runs: the folder of the run
    outcome(config, job)  of such a command, if it has one: what the table of a sweep shows of a job, by column
    open_groups     names of groups in conf/NAME.yaml that take any key, as a tuple of texts
    searched        of a command that searches: the group of conf/NAME.yaml that holds the values a sweep would try
    run(words)      of a command without Config: the words after its name; returns the exit code
    complete(words)   of a command without Config, if it has one: the candidates for another word
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

FIRST = (
    "train",
    "tune",
    "status",
    "test",
    "adapt",
    "export",
    "report",
    "envs",
    "algos",
)  # in this order; the others follow by name


class Command(NamedTuple):
    """A command as its source describes it."""

    name: str
    line: str  # what it does
    module: str
    has_config: bool
    open_groups: tuple[str, ...]
    searched: str = ""

    def load(self) -> ModuleType:
        """Import its module."""
        return importlib.import_module(self.module)


@cache
def commands() -> dict[str, Command]:
    """Return every command by name, in the order of ``metarl --help``; this package's own cannot be replaced."""
    by_name = dict[str, Command]()
    for name, module, path in (*_own(), *_installed()):
        if name not in by_name and (command := _read(name, module, path)):
            by_name[name] = command
    return {name: by_name[name] for name in (*FIRST, *sorted(by_name.keys() - set(FIRST)))}


def _own() -> Iterator[tuple[str, str, Path]]:
    for path in sorted(Path(__file__).parent.glob("*.py")):
        yield path.stem, f"{__package__}.{path.stem}", path


def _installed() -> Iterator[tuple[str, str, Path]]:
    """Yield the name, module and file of each installed command; a package is found without importing it."""
    for point in entry_points(group="metarl.commands"):
        package, *inside = point.module.split(".")
        spec = find_spec(package)
        places = list((spec and spec.submodule_search_locations) or ())
        paths = [p for place in places for p in (Path(place, *inside, "__init__.py"), Path(place, *inside).with_suffix(".py"))]
        if spec and spec.origin and not inside:
            paths.append(Path(spec.origin))
        if file := next((path for path in paths if path.is_file()), None):
            yield point.name, point.module, file


def _read(name: str, module: str, path: Path) -> Command | None:
    """Read the description of a command from its source; None where there is none."""
    text = path.read_text(encoding="utf-8")
    if "``metarl " not in text:
        return None
    tree = ast.parse(text)
    line = re.match(rf"``metarl {re.escape(name)}``: (.+)", ast.get_docstring(tree) or "")
    if line is None:
        return None
    values = {target: value for node in tree.body for target, value in _assigned(node)}
    groups, searched = ((node := values.get(key)) and ast.literal_eval(node) for key in ("open_groups", "searched"))
    return Command(name, line[1].rstrip("."), module, "Config" in values, tuple(groups or ()), searched or "")


def _assigned(node: ast.stmt) -> Iterator[tuple[str, ast.expr | None]]:
    """Yield the names that a statement binds, with their values where it assigns them."""
    if isinstance(node, ast.ClassDef):
        yield node.name, None
    elif isinstance(node, ast.ImportFrom):
        yield from ((alias.asname or alias.name, None) for alias in node.names)
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Name):
                yield target.id, node.value
