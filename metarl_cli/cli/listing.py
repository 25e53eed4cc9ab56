"""Lists of the options of a config group, and pages that describe one of them in full.

A list is read from the configurations and the sources, without importing a module: it needs neither torch nor a simulator.
A page builds the family, where that is possible, to describe it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from metarl_cli.cli import compose as composing
from metarl_cli.cli.commands import commands
from metarl_cli.cli.terminal import MOST_COLUMNS, waiting
from metarl_cli.config import messages as problems
from metarl_cli.envs import packages
from metarl_cli.errors import UserError
from metarl_cli.progress import Plain

GROUPS = {"envs": "env", "algos": "algo"}  # command, which is also the folder of the modules -> config group
# values with their own place on a page
SHOWN_ELSEWHERE = ("module", "ranges", "log_ranges", "ood_ranges", "choices", "ood_choices")
PIPE_COLUMNS = 10_000  # of a pipe: one line per option

HELP = """\
metarl {command}: {what}.

usage: metarl {command} [NAME ...] [--config-dir DIR]{usage}

Without a name, one line for each option of the group "{group}": those that come with metarl, those of installed
packages, and your own in DIR/{group} (METARL_CONFIG_DIR names a DIR too). With a name, everything about it. Use one:

  metarl train {group}=NAME
"""


def run(command: str, words: list[str]) -> int:
    """List the options, or show those named in ``words``; returns the exit code.

    Raises:
        UsageError: for a flag or a name that does not exist.
    """
    args = composing.parse_flags(words)
    named = [word for word in args.overrides if command == "envs" and word.startswith("packages=")]
    names = [word for word in args.overrides if word not in named]
    flags = any(value for flag, value in vars(args).items() if flag not in ("overrides", "config_dir", "help"))
    if flags or any("=" in name for name in names):
        more = ", packages=[...]" if command == "envs" else ""
        raise composing.UsageError(f"metarl {command}: takes names{more}, --config-dir and --help alone")
    if args.help:
        usage = " [packages=[MODULE,...]]" if command == "envs" else ""
        print(HELP.format(command=command, what=commands()[command].line, group=GROUPS[command], usage=usage), end="")
        return 0
    catalogue = Catalogue(command, args.config_dir)
    group, known = catalogue.group, catalogue.names
    if named:
        packages.allow(catalogue.packages(named))
    wrong = [name for name in names if name not in known]
    if wrong:
        raise composing.UsageError(*(f"{n}: no such option of {group}{problems.known_options(n, known)}" for n in wrong))
    console = Plain()
    console.width = min(console.width, MOST_COLUMNS) if console.is_terminal else PIPE_COLUMNS
    with waiting("loading ..."), console.capture() as page:
        if not names:
            _list(console, catalogue)
        for name in names:
            _show(console, catalogue, name)
    print("\n".join(line.rstrip() for line in page.get().splitlines()))
    return 0


def complete(command: str, words: list[str]) -> list[str]:
    """Return the options of a command's group and its flags, for completion."""
    return [*Catalogue(command, composing.parse_flags(words).config_dir).names, "--config-dir"]


class Catalogue:
    """The options of a config group.

    Args:
        command: ``envs`` or ``algos``.
        config_dir: the user's own configurations, if any.
    """

    def __init__(self, command: str, config_dir: str | None):
        self.command, self.group, self.config_dir = command, GROUPS[command], config_dir
        self.composer = composing.Composer("train", config_dir)
        self.names: list[str] = self.composer.loader.get_group_options(self.group)
        self.broken: dict[str, str] = {}  # option -> why it cannot be composed

    @cached_property
    def values(self) -> dict[str, dict[str, Any]]:
        """The values of each option; all in one composition, which is fast. ``broken`` says why an option has none."""
        place = "metarl_listing"
        try:
            config = self.composer.compose([f"+{self.group}@{place}.{name}={name}" for name in self.names])
            composed: Any = OmegaConf.to_container(config[place])
        except composing.ERRORS:  # one is at fault: find it
            composed = {name: self._values_alone(name) for name in self.names}
        return {name: composed.get(name) or {} for name in self.names}

    def _values_alone(self, name: str) -> Any:
        try:
            return self.compose(name)[self.group]
        except (*composing.ERRORS, composing.UsageError) as error:
            self.broken[name] = composing.error_text(error)
            return {}

    def compose(self, name: str, *overrides: str) -> dict[str, Any]:
        """The whole configuration of ``metarl train`` with this option, resolved; raises what composition raises."""
        config = self.composer.compose([f"{self.group}={name}", *overrides])
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        return composing.plain(config)

    def packages(self, overrides: list[str]) -> dict[str, Any]:
        """The value of ``packages`` with these overrides; raises UsageError where they are wrong."""
        config = self.composer.settle(overrides)
        if self.composer.problems or config is None:
            raise composing.UsageError(*self.composer.problems.values())
        if not OmegaConf.is_list(named := config["packages"]):
            raise composing.UsageError(f"packages={named}: must be a list of modules, as in packages=[my_module]")
        return {"packages": OmegaConf.to_container(named)}

    def text(self, name: str, group: str = "") -> str:
        """The yaml of an option."""
        for source in self.composer.loader.get_sources():
            path = Path(source.path, group or self.group, f"{name}.yaml")
            if source.scheme() == "file" and path.is_file():
                return path.read_text(encoding="utf-8")
        return ""

    def description(self, name: str) -> str:
        """The first line of its yaml, a comment."""
        lines = [line for line in self.text(name).splitlines() if not line.startswith("# @package")]
        return lines[0].lstrip("# ") if lines and lines[0].startswith("#") else ""

    def docstring(self, values: dict[str, Any]) -> str:
        """Return the docstring of an option's module, which is read and not imported."""
        module = str(values.get("module", ""))
        installed = {point.name: point.module for point in entry_points(group=f"metarl.{self.command}")}
        try:
            spec = find_spec(f"metarl_cli.{self.command}.{module}") if module.isidentifier() else None
            spec = spec or (find_spec(installed[module]) if module in installed else None)
        except ImportError:
            return ""
        if spec is None or not spec.origin:
            return ""
        text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
        return re.sub(r":\w+:`", "`", text)  # roles are Sphinx's

    def paper(self, name: str, values: dict[str, Any]) -> str:
        """The paper of an option: of the row of its module's docstring with its values or name, else the first one cited."""
        text = self.docstring(values)
        own = {f"{'.'.join(path)}={problems.show(value)}" for path, value in problems.leaves(values)}
        for line in text.splitlines():
            _, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            if len(cells) == 2 and own.issuperset(v if "=" in v else f"{v}=true" for v in cells[0].split(", ")):
                return cells[1] if re.search(r"\b\d{4}\b", cells[1]) else ""
        row = re.search(rf"^{re.escape(name.removeprefix('mdp_'))} {{2,}}.*", text, re.MULTILINE)
        year = r"\(([^()]*\b\d{4}\b[^()]*)\)"
        cited = re.search(year, row[0]) if row else re.search(r"\(([^()]*(?:arXiv:|doi:)[^()]*)\)", text)
        return problems.one_line(cited[1]) if cited else ""

    def experiments(self, name: str) -> list[str]:
        """The experiments that choose it, which hold measured settings."""
        chosen = rf"override /{self.group}: {re.escape(name)}\s*$"
        every = self.composer.loader.get_group_options("experiment")
        return [e for e in every if re.search(chosen, self.text(e, "experiment"), re.MULTILINE)]


def varied(values: dict[str, Any], prefix: str = "") -> dict[str, tuple[str, str]]:
    """Return the [range] or {choices} of each parameter that differs between tasks, and those out of distribution."""
    spans = {}
    for kind, brackets, scale in (("ranges", "[]", ""), ("log_ranges", "[]", "log "), ("choices", "{}", "")):
        wider = _dict(values.get(f"ood_{kind}"))
        for name, value in _dict(values.get(kind)).items():
            spans[prefix + name] = (scale + _span(value, brackets), _span(wider[name], brackets) if name in wider else "")
    for name, family in mixed(values).items():
        spans |= varied(family, f"{prefix}{name}.")
    for family in wrapped(values):
        spans |= varied(family, prefix)
    return spans


def wrapped(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The family that another one wraps, whose parameters keep their names."""
    return [value for value in values.values() if "module" in _dict(value)]


def mixed(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The families that one is made of: whatever in it names a module of its own."""
    groups = (group for group in values.values() if isinstance(group, dict))
    return {name: value for group in groups for name, value in group.items() if "module" in _dict(value)}


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _span(values: Any, brackets: str) -> str:
    numbers = values if isinstance(values, list) else [values]
    return f"{brackets[0]}{', '.join(_number(value) for value in numbers)}{brackets[1]}"


def _number(value: Any) -> str:
    """Return a number in four digits at most."""
    return f"{value:.4g}" if isinstance(value, float) else problems.show(value)


# -- on the screen


def _list(console: Plain, catalogue: Catalogue) -> None:
    table = Table.grid(padding=(0, 2, 0, 0))
    for name in catalogue.names:
        values = catalogue.values[name]
        short = mixed(values) or [f"{key}={span.replace(' ', '')}" for key, (span, _) in varied(values).items()]
        more = ", ".join(short) if catalogue.group == "env" else catalogue.paper(name, values)
        what = f"cannot be composed: {broken}" if (broken := catalogue.broken.get(name)) else catalogue.description(name)
        if console.is_terminal:
            table.add_row(Text(name, "bold", no_wrap=True), Text(what) + Text(f"\n{more}" if more else "", "dim"))
        else:
            table.add_row(name, Text(what), Text(more))
    console.print(table)
    if console.is_terminal:
        known = catalogue.names or ["NAME"]
        console.print(Text(f"\nEverything about one:  metarl {catalogue.command} {known[0]}"))


def _show(console: Plain, catalogue: Catalogue, name: str) -> None:
    from metarl_cli.config import registry as building  # brings torch, which the list does without

    group = catalogue.group
    try:
        values = catalogue.compose(name)[group]
    except composing.ERRORS as error:
        raise composing.UsageError(f"{group}={name}: {composing.error_text(error)}") from error
    config = family = None
    facts = {}
    try:
        parsed = building.load(group, values)
        config = parsed.config
        family = parsed.module.Family(config) if group == "env" else None
    except (UserError, ValueError, ImportError) as error:  # say, a simulator that is not installed
        facts["not here"] = problems.one_line(error)
    if family:
        facts |= _family_facts(family)
    if group == "algo" and (paper := catalogue.paper(name, values)):
        facts["paper"] = paper

    console.print(Text(name, "bold") + Text(f": {catalogue.description(name)}", "not bold"))
    console.print()
    if facts:
        _table(console, (), [(Text(key, "dim"), Text(text)) for key, text in facts.items()])
    if group == "env" and (parameters := list(_parameter_rows(values, family))):
        _table(console, ("task parameter", "nominal", "range", "out of distribution"), parameters)
    if text := catalogue.docstring(values):
        console.print(Markdown(text) if console.is_terminal else Text(text))
        console.print()
    own = [(path, value) for path, value in problems.leaves(values) if not {*path} & {*SHOWN_ELSEWHERE}]
    if own:
        meanings = [_meaning(*building.owner(config, path)) if config else Text() for path, _ in own]
        rows = [
            (Text(".".join((group, *path))), Text(problems.show(value)), meaning)
            for (path, value), meaning in zip(own, meanings, strict=True)
        ]
        _table(console, ("value", "", "meaning; what is allowed"), rows)
    for line in _examples(catalogue, name, {} if "not here" in facts else values):
        console.print(Text(f"  {line}", no_wrap=True, overflow="ignore"))
    console.print()


def _table(console: Plain, columns: tuple[str, ...], rows: Sequence[tuple[Text, ...]]) -> None:
    """A table without its empty columns, and an empty line after it; without a header if ``columns`` is empty."""
    filled = [place for place in range(len(rows[0])) if any(row[place].plain for row in rows)]
    columns, rows = tuple(columns[i] for i in filled if columns), [tuple(row[i] for i in filled) for row in rows]
    table = Table(*columns, box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim", show_header=bool(columns))
    for row in rows:
        table.add_row(*row)
    for column in table.columns[1:]:
        column.overflow = "fold"
    table.columns[0].width = max(len(head) for head in (*columns[:1], *(row[0].plain for row in rows)))  # a key is never cut
    console.print(table)
    console.print()


def _family_facts(family: Any) -> dict[str, str]:
    """Return the observation, action, horizon and splits of a family in words."""
    from metarl_cli.envs.tasks import shares
    from metarl_cli.spaces import Continuous  # brings torch, which the list does without

    spec = family.spec
    facts = {"observation": _count(" x ".join(map(str, spec.obs_shape)) or 1, "number")}
    if isinstance(spec.actions, Continuous):
        bounds = [_span(list(pair), "[]") for pair in zip(spec.actions.low, spec.actions.high, strict=True)]
        each = f", each within {bounds[0]}" if len(set(bounds)) == 1 else f" within {' x '.join(bounds)}"
        facts["action"] = _count(len(bounds), "number") + each
    else:
        facts["action"] = f"one of {spec.actions.n}" + (", some of them not legal everywhere" if spec.actions.masked else "")
    horizons = {int(member.spec.horizon) for member in getattr(family, "members", [family])}
    facts["horizon"] = _count(" or ".join(map(str, sorted(horizons))), "step")
    shared = [split for split in family.splits if shares(family, split)]
    whose = "which" if "test" in shared else f"of which {' and '.join(shared)}"
    facts["splits"] = ", ".join(family.splits) + (f", {whose} share their few tasks" if shared else "")
    return facts


def _parameter_rows(values: dict[str, Any], family: Any) -> Iterator[tuple[Text, ...]]:
    """Name, nominal value, range and range out of distribution of each task parameter; without ``family`` those that vary."""
    spans = varied(values)
    nominal = {name: value[0].tolist() for name, value in family.named_task({}).items()} if family else {}
    said = values.get("parameters", {}).items() if values["module"] == "gymnasium" else ()
    nominal |= {name: each["nominal"] for name, each in said if isinstance(each["nominal"], str)}  # a task holds its place
    unsaid = "fixed" if spans and not wrapped(values) else ""  # a family that wraps another draws its own in its own way
    every = {name: spans[key] for name in nominal for key in spans if "*" in key and fnmatchcase(name, key)}  # mass_*
    spans = every | {name: span for name, span in spans.items() if not (nominal and "*" in name)}
    for name in nominal | spans:
        inside, outside = spans.get(name, (_span(values[name], "[]") if name in values else unsaid, ""))
        yield Text(name), Text(_short(nominal.get(name, ""))), Text(inside), Text(outside)


def _count(number: int | str, what: str) -> str:
    return f"{number} {what}{'' if str(number) == '1' else 's'}"


def _short(value: Any) -> str:
    """A number, or how many there are."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return f"{np.size(value)} numbers" if isinstance(value, list) else _number(value)


def _meaning(model: Any, path: Sequence[str]) -> Text:
    """Return the meaning of a value and its allowed range."""
    allowed, meaning, _ = problems.expected(model, list(path))
    return Text(f"{meaning}; " if meaning else "") + Text(allowed, "dim")


def _examples(catalogue: Catalogue, name: str, values: dict[str, Any]) -> Iterator[str]:
    """Commands that use it and that work here, the measured settings first; ``values`` are empty where it cannot be built."""
    from metarl_cli.config import registry as building
    from metarl_cli.config.models import TrainConfig

    group, more = catalogue.group, f" --config-dir {catalogue.config_dir}" if catalogue.config_dir else ""
    yield from (f"metarl train experiment={experiment}{more}" for experiment in catalogue.experiments(name))
    others = [f"algo={algo}" for algo in catalogue.composer.loader.get_group_options("algo")] if group == "env" else []
    for first in ("", *others) if values else ():
        try:
            building.validate(TrainConfig, catalogue.compose(name, *filter(None, [first])))
        except (UserError, *composing.ERRORS):
            continue
        yield f"metarl train {first} {group}={name}{more}".replace("  ", " ")
        break
    for parameter, (_, high) in [item for item in _dict(values.get("ranges")).items() if "*" not in item[0]][:1]:
        yield f"metarl adapt run=outputs/RUN task.{parameter}={_number(high)}"
