"""Composition by Hydra, and its errors in plain words; beside ``cli/hydra.py`` the one place that touches Hydra's internals.

Hydra stops at the first bad override. Here they are tried one by one, so that all are reported at once, and a sweep is composed
and checked job by job before the first one starts.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from importlib.metadata import version as installed_version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import setup_globals
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from metarl_cli.cli.commands import Command
from metarl_cli.cli.guard import check_composed, check_folder
from metarl_cli.config.messages import closest, did_you_mean, flatten, known_options, no_such_key, one_line, quoted
from metarl_cli.envs import packages
from metarl_cli.errors import Problem, UserError

if TYPE_CHECKING:
    from metarl_cli.config.models import Job, TrainConfig

ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError)
REFUSED = {  # Hydra's flags that have no place here, and why
    "experimental_rerun": "--experimental-rerun: refused, it runs pickled code; start the run again: metarl train run=FOLDER",
    "config_name": "--config-name: the command chooses it; add your own as DIR/experiment/NAME.yaml with --config-dir DIR",
    "config_path": "--config-path: the commands bring their configuration; add your own with --config-dir",
}


class UsageError(UserError):
    """A command line that cannot be run, with everything that is wrong with it."""


def set_version_base() -> None:
    """Have Hydra 1.3 behave as 1.3; later versions have nothing else to offer."""
    if tuple(map(int, installed_version("hydra-core").split(".")[:2])) < (1, 4):
        version.setbase("1.3")


def conf_dir() -> str:
    """Return the folder of the configurations: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "conf", here.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return str(folder)
    raise RuntimeError(f"the configurations that belong to {here} are missing; install the package again")


def installed_folders() -> Iterator[tuple[str, str]]:
    """Yield the folders of configurations that installed packages bring by the entry point ``metarl.conf``, as (name, folder).

    The entry point names a folder as a package, ``windy = "metarl_windy.conf"``; nothing of it is imported.
    """
    for point in entry_points(group="metarl.conf"):
        package, *inside = point.value.split(".")
        spec = find_spec(package)
        for place in (spec and spec.submodule_search_locations) or ():
            if Path(place, *inside).is_dir():
                yield point.name, str(Path(place, *inside))


class InstalledConfigurations(SearchPathPlugin):
    """Adds ``installed_folders`` to Hydra's search path: after the configurations of this package."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the folders after those of this package."""
        for name, folder in installed_folders():
            search_path.append(name, f"file://{folder}")


def register_installed() -> None:
    """Have the Hydra of this process find the configurations of installed packages."""
    Plugins.instance().register(InstalledConfigurations)


def group_choices(hydra: Any) -> dict[str, str | None]:
    """Return the option of each config group, Hydra's own left out."""
    return {str(name): option for name, option in hydra.runtime.choices.items() if not name.startswith("hydra/")}


def source_flags(hydra: Any) -> tuple[str, ...]:
    """Return the words of a command line that say where else configurations lie."""
    folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    words = (word for word in hydra.overrides.hydra if word.startswith("hydra.searchpath"))
    return (*(word for folder in folders for word in ("--config-dir", folder)), *words)


def flags_parser() -> argparse.ArgumentParser:
    """Return the parser of Hydra's own flags."""
    parser: argparse.ArgumentParser = get_args_parser()
    parser.exit_on_error = False
    return parser


def parse_flags(words: list[str]) -> argparse.Namespace:
    """Parse flags and overrides in any order.

    Raises:
        UsageError: for a flag that is unknown, incomplete, or does not go with another.
    """
    parser = flags_parser()
    for place, word in reversed(list(enumerate(words[1:], 1))):
        if words[place - 1] in ("--info", "-i") and "=" in word:  # an override, not the topic that --info may take
            words = [*words[:place], "all", *words[place:]]
    try:
        args, unknown = parser.parse_known_intermixed_args(words)
    except argparse.ArgumentError as error:
        raise UsageError(one_line(error)) from error
    flags = [flag for flag in parser._option_string_actions if flag.startswith("--")]
    problems = [f"{word}: no such flag{did_you_mean(word.split('=')[0], flags)}" for word in unknown]
    problems += [why for name, why in REFUSED.items() if getattr(args, name)]
    if args.run + args.multirun + args.shell_completion + bool(args.cfg) + bool(args.info) > 1:
        problems.append("use only one of --run, --multirun, --cfg and --info")
    if args.resolve and not (args.cfg or args.help):
        problems.append("--resolve goes with --cfg or --help")
    args.overrides = [_read_as_text(override) for override in args.overrides]
    args.config_dir = args.config_dir or os.environ.get("METARL_CONFIG_DIR") or None
    if args.config_dir and not os.path.isdir(args.config_dir):
        problems.append(f"--config-dir (or METARL_CONFIG_DIR): no such folder: {os.path.abspath(args.config_dir)}")
    if problems:
        raise UsageError(*problems)
    return args


def _read_as_text(override: str) -> str:
    """Quote a value that Hydra's grammar has no place for, and in which nothing could mean a list, a choice or a quotation."""
    key, equals, value = override.partition("=")
    foreign = not value.isascii() or not value.isprintable() or re.search(r"[#;!&<>~^`]", value)
    return f"{key}={quoted(value)}" if equals and foreign and not re.search(r"[][{}()'\"=,\\$]", value) else override


def plain(config: DictConfig) -> dict[str, Any]:
    """Resolve a configuration to plain values; a value still missing (``???``) is left out.

    Raises:
        UsageError: if an interpolation cannot be resolved.
    """
    try:
        values = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UsageError(f"{error.full_key}: {one_line(str(error).splitlines()[0])}") from error

    def given(value: Any) -> Any:
        return {str(k): given(v) for k, v in value.items() if v != "???"} if isinstance(value, dict) else value

    resolved: dict[str, Any] = given(values)
    return resolved


class Composer:
    """Composes a command's configuration; what cannot be composed is noted in ``problems`` and left out.

    Args:
        command: its name.
        config_dir: the user's own configurations, if any.
        open_groups: groups of the configuration that take any key.
    """

    def __init__(self, command: str, config_dir: str | None, open_groups: tuple[str, ...] = ()):
        set_version_base()
        setup_globals()
        path = create_config_search_path(conf_dir())
        known = {element.provider for element in path.get_path()}
        for name, folder in installed_folders():
            if name not in known:
                path.prepend(name, f"file://{folder}", SearchPathQuery(provider="schema"))
        if config_dir:
            path.prepend("command-line", f"file://{os.path.abspath(config_dir)}", SearchPathQuery(provider="schema"))
        self.command, self.open_groups = command, open_groups
        self.loader = ConfigLoaderImpl(config_search_path=path)
        if config_dir:
            check_folder(config_dir, self.loader.list_groups(""))
        self.problems: dict[str, str] = {}  # override -> what is wrong with it
        self.instead: dict[str, str] = {}  # override -> what it probably means, to judge the others by
        self.ready: tuple[list[str], DictConfig] | None = None  # overrides that were composed already, and the result
        self.sweeps = False  # whether there are several jobs, by the command line or by the configuration itself
        self.lost: set[str] = set()  # groups without a known option: the keys in them cannot be judged

    def compose(self, overrides: list[str], mode: RunMode = RunMode.RUN) -> DictConfig:
        """Compose as Hydra does; raises Hydra's errors."""
        single = mode is RunMode.RUN  # refuses "seed=0,1"
        try:
            config = self.loader.load_configuration(self.command, overrides, mode, validate_sweep_overrides=single)
        except (
            ValueError,
            AssertionError,
            TypeError,
            OverflowError,
            AttributeError,
        ) as error:  # as for algo=null
            raise HydraException(one_line(error)) from None
        except RecursionError:
            raise HydraException("the configuration is nested too deeply, or in itself") from None

        check_composed(config, overrides)
        return config

    def settle(self, overrides: list[str], mode: RunMode = RunMode.RUN) -> DictConfig | None:
        """Compose what can be composed; None if that is nothing."""
        if self.ready and self.ready[0] is overrides:
            return self.ready[1]
        overrides = [self.instead.get(o, o) for o in overrides if o not in self.problems or o in self.instead]
        overrides = [o for o in overrides if _name(o).partition(".")[0] not in self.lost]
        try:
            return self.compose(overrides, mode)
        except ERRORS:
            pass
        try:
            config = self.compose([], mode)
        except ERRORS as error:
            self.problems[""] = error_text(error)
            return None
        good: list[str] = []
        groups = self.loader.list_groups("")
        for override in sorted(overrides, key=lambda o: _name(o).split("/")[0] not in groups or "." in _name(o)):
            if _name(override).partition(".")[0] in self.lost:
                continue
            try:
                config = self.compose([*good, override], mode)
                good.append(override)
            except ERRORS as error:
                self.problems[override] = self._explain(override, error, config)
                if override in self.instead:
                    good.append(self.instead[override])
                    config = self.compose(good, mode)
                elif isinstance(error, MissingConfigException):
                    self.lost.add(_name(override))
        return config

    def _explain(self, override: str, error: Exception, config: DictConfig) -> str:
        written = override.lstrip("+")
        name, value = _name(override), override.partition("=")[2]
        group = name.partition(".")[0]
        if isinstance(error, OverrideParseException) or not name:
            reason = f"cannot be read ({one_line(str(error).splitlines()[0])})"
            advice = "quote what the shell would split: 'key=[1, 2]'"
            return f"{written}: {reason if name and '=' in override else 'write key=value'}; {advice}"
        if isinstance(error, MissingConfigException) and error.missing_cfg_file == f"{name}/{value}":
            options = list(error.options or [])
            if best := closest(value, options):
                self.instead[override] = f"{name}={best[0]}"
            add = f"; put yours in DIR/{name}/{value}.yaml and give --config-dir DIR"
            return f"{written}: no such option{known_options(value, options) if options else add}"
        groups, choices = self.loader.list_groups(""), group_choices(config.hydra)
        if group in groups and choices.get(group) is None and group not in ("experiment", "hydra"):
            return f"{written}: {self._absent(group, choices)}"
        parent, _, part = group.rpartition("/")
        if parent and part in self.loader.list_groups(parent):
            return f"{written}: {parent}={choices.get(parent)} has no {part}"
        text = str(error).splitlines() or [""]
        if text[0].startswith("Could not override"):
            keys = [k for k in flatten(OmegaConf.to_container(config)) if k.startswith("hydra") == name.startswith("hydra")]
            if self.open_groups and not closest(name, keys):
                means = " or ".join(f"{inside}.{name}={value}" for inside in self.open_groups)
                return f"{written}: no such key; did you mean {means}?"
            return f"{written}: {no_such_key(name, [*keys, *(g for g in groups if g in choices)])}"
        if text[0].startswith(("Ambiguous value", "Sweep parameters")):
            listed = f", or write a list as {name}=[1,2]" if OmegaConf.is_list(OmegaConf.select(config, name)) else ""
            return f"{written}: several values; add -m to try each{listed}"
        return f"{written}: {error_text(error)}"

    def _absent(self, group: str, choices: Mapping[str, str | None]) -> str:
        """Say why a configuration has nothing of a config group."""
        if group in choices:
            return f"algo={choices.get('algo')} has no {group}"
        return f"metarl {self.command} has no {group} to choose; a saved run brings its own"

    def jobs(self, overrides: list[str], multirun: bool) -> list[list[str]]:
        """Return the overrides of each job: one, or those of the basic sweeper; none for a sweeper whose jobs are unknown."""
        if not multirun:
            with contextlib.suppress(*ERRORS):
                self.ready = (overrides, self.compose(overrides))
                if self.ready[1].hydra.mode != RunMode.MULTIRUN:
                    return [overrides]
        master = self.settle(overrides, RunMode.MULTIRUN)
        if master is None or not (multirun or master.hydra.mode == RunMode.MULTIRUN):
            return [overrides]
        self.sweeps = True
        if not str(master.hydra.sweeper._target_).endswith(".BasicSweeper"):
            return []
        task = [f"{key}={value}" for key, value in (master.hydra.sweeper.params or {}).items()]
        parsed = OverridesParser.create(self.loader).parse_overrides([*task, *master.hydra.overrides.task])
        (split,) = BasicSweeper.split_arguments(parsed, None)
        return [[*master.hydra.overrides.hydra, *job] for job in split]


def as_range(word: str, group: str) -> str:
    """Return an override whose value a sweep would try as an entry of the ranges in ``group``, and any other word as it is."""
    if word.startswith("-") or "=" not in word:
        return word
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:  # told when it is composed
        return word
    if not override.is_sweep_override():
        return word
    return f"++{group}={{{override.key_or_group.removeprefix(f'{group}.')}: {quoted(word.partition('=')[2])}}}"


def swept_keys(overrides: Iterable[str]) -> frozenset[str]:
    """Return the keys to which the command line gives several values, in whatever way its sweeper understands."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return frozenset(override.key_or_group for override in parsed if override.is_sweep_override())


def _name(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def error_text(error: BaseException) -> str:
    """Return an error of composition in one line: the place in a yaml file, or Hydra's words without its search path."""
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark or error.context_mark):
        return f"{mark.name}, line {mark.line + 1}: {one_line(error.problem or error.context)}"
    return one_line(f"{str(error).partition('Config search path')[0]} {error.__cause__ or ''}")


def find_problems(
    command: Command,
    args: argparse.Namespace,
    check: Callable[[Command, dict[str, Any], dict[str, str | None]], object] | None = None,
) -> list[str | Problem]:
    """Return everything wrong with the configurations a command line asks for, of each job of a sweep.

    Args:
        command: the command.
        args: its flags and overrides; ``multirun`` is set where the configuration is a sweep by itself (``hydra.mode``), which
            Hydra 1.4 wants to know before it composes, and ``jobs`` to the overrides of each job.
        check: raises UserError for wrong values of a configuration, given with its choices.
    """
    composer = Composer(command.name, args.config_dir, command.open_groups)
    wrong: dict[Problem, None] = {}
    args.jobs = composer.jobs(args.overrides, args.multirun)
    for number, job in enumerate(args.jobs):
        config = composer.settle(job)
        if config is None or check is None:
            continue
        with open_dict(config):
            config.hydra.job.num = number
        HydraConfig.instance().set_config(config)
        choices = group_choices(config.hydra)
        with open_dict(config):
            del config["hydra"]
        try:
            check(command, plain(config), choices)
        except UserError as error:
            wrong |= dict.fromkeys(error.problems)
    args.multirun = args.multirun or (composer.sweeps and check is not None)
    HydraConfig.instance().cfg = None
    written = {override: place for place, override in enumerate(args.overrides)}
    refused = sorted(composer.problems, key=lambda override: written.get(override, len(written)))
    return [*(composer.problems[override] for override in refused), *wrong]


def compose_train(overrides: list[str]) -> tuple[TrainConfig, Job]:
    """Compose and check one ``metarl train``.

    Raises:
        UserError: with every problem.
    """
    from metarl_cli.config.models import Job, TrainConfig
    from metarl_cli.config.registry import validate

    register_installed()
    args = parse_flags(overrides)
    if args.multirun or args.cfg or args.info or args.help or args.hydra_help:
        raise UsageError("one run is composed here: give overrides, and --config-dir if you like")
    composer = Composer("train", args.config_dir)
    config = composer.settle(args.overrides)
    if composer.problems or config is None:
        raise UsageError(*composer.problems.values())
    with open_dict(config):
        hydra = config.pop("hydra")
    choices, values = group_choices(hydra), plain(config)
    packages.allow(values)
    return validate(TrainConfig, values, choices), Job(choices, args.overrides, flags=source_flags(hydra))
