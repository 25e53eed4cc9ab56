"""Hydra's composition, and what went wrong with it: the one place that touches Hydra's internals.

Hydra stops at the first bad override. Here they are tried one by one, so that all are told at once, and a sweep is composed
and checked job by job before the first one starts.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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

from metarl_cli.config.messages import choose, closest, did_you_mean, flatten, no_such_key, one_line
from metarl_cli.config.models import TrainConfig
from metarl_cli.config.registry import ConfigError, validate

BASE = "1.3"
ERRORS = (HydraException, OmegaConfBaseException)
REFUSED = {  # Hydra's flags that have no place here, and why
    "experimental_rerun": "--experimental-rerun: refused, it runs pickled code; start the run again: metarl train run=FOLDER",
    "config_name": "--config-name: the command chooses it; add your own as DIR/experiment/NAME.yaml with --config-dir DIR",
    "config_path": "--config-path: the commands bring their configuration; add your own with --config-dir",
}


class UsageError(Exception):
    """What is wrong with a command line, one line each."""

    def __init__(self, problems: list[str]):
        super().__init__(problems)
        self.problems = problems


def conf_dir() -> str:
    """The folder of the configurations: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "conf", here.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return str(folder)
    raise RuntimeError(f"the configurations that belong to {here} are missing; install the package again")


def installed_folders() -> Iterator[tuple[str, str]]:
    """The folders of configurations that installed packages bring by the entry point ``metarl.conf``, as (name, folder).

    The entry point names a folder as a package, ``windy = "metarl_windy.conf"``; nothing of it is imported.
    """
    for point in entry_points(group="metarl.conf"):
        package, *inside = point.value.split(".")
        spec = find_spec(package)
        for place in (spec and spec.submodule_search_locations) or ():
            if Path(place, *inside).is_dir():
                yield point.name, str(Path(place, *inside))


class InstalledConfigurations(SearchPathPlugin):
    """Has Hydra look into ``installed_folders`` too: after the configurations of this package, before ``--config-dir``."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for name, folder in installed_folders():
            search_path.append(name, f"file://{folder}")


Plugins.instance().register(InstalledConfigurations)


def flags_parser() -> argparse.ArgumentParser:
    """Hydra's own flags."""
    parser: argparse.ArgumentParser = get_args_parser()
    parser.exit_on_error = False
    return parser


def parse_flags(words: list[str]) -> argparse.Namespace:
    """Flags and overrides in any order.

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
        raise UsageError([one_line(error)]) from error
    flags = [flag for flag in parser._option_string_actions if flag.startswith("--")]
    problems = [f"{word}: no such flag{did_you_mean(word.split('=')[0], flags)}" for word in unknown]
    problems += [why for name, why in REFUSED.items() if getattr(args, name)]
    if args.run + args.multirun + args.shell_completion + bool(args.cfg) + bool(args.info) > 1:
        problems.append("use only one of --run, --multirun, --cfg and --info")
    if args.resolve and not (args.cfg or args.help):
        problems.append("--resolve goes with --cfg or --help")
    args.config_dir = args.config_dir or os.environ.get("METARL_CONFIG_DIR") or None
    if args.config_dir and not os.path.isdir(args.config_dir):
        problems.append(f"--config-dir (or METARL_CONFIG_DIR): no such folder: {os.path.abspath(args.config_dir)}")
    if problems:
        raise UsageError(problems)
    return args


def plain(config: DictConfig) -> dict[str, Any]:
    """Resolved values; a value still missing (``???``) is left out.

    Raises:
        UsageError: if an interpolation cannot be resolved.
    """
    try:
        values = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UsageError([f"{error.full_key}: {one_line(str(error).splitlines()[0])}"]) from error

    def given(value: Any) -> Any:
        return {str(k): given(v) for k, v in value.items() if v != "???"} if isinstance(value, dict) else value

    found: dict[str, Any] = given(values)
    return found


class Composer:
    """Composes a command's configuration; what cannot be composed is noted in ``problems`` and left out."""

    def __init__(self, command: str, config_dir: str | None):
        version.setbase(BASE)
        setup_globals()
        path = create_config_search_path(conf_dir())
        if config_dir:
            path.prepend("command-line", f"file://{os.path.abspath(config_dir)}", SearchPathQuery(provider="schema"))
        self.command, self.loader = command, ConfigLoaderImpl(config_search_path=path)
        self.problems: dict[str, str] = {}  # override -> what is wrong with it
        self.instead: dict[str, str] = {}  # override -> what it probably means, to judge the others by
        self.ready: tuple[list[str], DictConfig] | None = None  # what was composed already
        self.lost: set[str] = set()  # groups of which nobody knows what is meant: the keys in them cannot be judged

    def compose(self, overrides: list[str], mode: RunMode = RunMode.RUN) -> DictConfig:
        """Hydra's composition; raises Hydra's errors."""
        single = mode is RunMode.RUN  # refuses "seed=0,1"
        try:
            return self.loader.load_configuration(self.command, overrides, mode, validate_sweep_overrides=single)
        except (ValueError, AssertionError, TypeError) as error:  # Hydra's answer to, say, algo=null
            raise HydraException(one_line(error)) from None

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
            self.problems[""] = _reason(error)
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
        if isinstance(error, OverrideParseException):
            reason = "write key=value" if "=" not in override else f"cannot be read ({one_line(str(error).splitlines()[0])})"
            return f"{written}: {reason}; quote what the shell would split: 'key=[1, 2]'"
        if isinstance(error, MissingConfigException) and error.missing_cfg_file == f"{name}/{value}":
            options = list(error.options or [])
            if best := closest(value, options):
                self.instead[override] = f"{name}={best[0]}"
            add = f"; put yours in DIR/{name}/{value}.yaml and give --config-dir DIR"
            return f"{written}: no such option{choose(value, options) if options else add}"
        text = str(error).splitlines() or [""]
        if text[0].startswith("Could not override"):
            keys = [k for k in flatten(OmegaConf.to_container(config)) if k.startswith("hydra") == name.startswith("hydra")]
            return f"{written}: {no_such_key(name, [*keys, *self.loader.list_groups('')])}"
        if text[0].startswith(("Ambiguous value", "Sweep parameters")):
            return f"{written}: several values; add -m to try each, or write a list as {name}=[1,2]"
        return f"{written}: {_reason(error)}"

    def jobs(self, overrides: list[str], multirun: bool) -> list[list[str]]:
        """The overrides of each job: one, or those the basic sweeper will make; none for another sweeper, which knows alone."""
        if not multirun:
            with contextlib.suppress(*ERRORS):
                self.ready = (overrides, self.compose(overrides))
                if self.ready[1].hydra.mode != RunMode.MULTIRUN:
                    return [overrides]
        master = self.settle(overrides, RunMode.MULTIRUN)
        if master is None or not (multirun or master.hydra.mode == RunMode.MULTIRUN):
            return [overrides]
        if not str(master.hydra.sweeper._target_).endswith(".BasicSweeper"):
            return []
        task = [f"{key}={value}" for key, value in (master.hydra.sweeper.params or {}).items()]
        parsed = OverridesParser.create(self.loader).parse_overrides([*task, *master.hydra.overrides.task])
        (split,) = BasicSweeper.split_arguments(parsed, None)
        return [[*master.hydra.overrides.hydra, *job] for job in split]


def _name(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _reason(error: BaseException) -> str:
    """Hydra's own words, without the list of folders it looked in."""
    return one_line(f"{str(error).partition('Config search path')[0]} {error.__cause__ or ''}")


def find_problems(
    command: str, args: argparse.Namespace, validate: Callable[[str, dict[str, Any]], object] | None = None
) -> list[str]:
    """Everything wrong with the configurations a command line asks for, of each job of a sweep.

    ``validate`` checks the values of one, and raises an exception that has ``problems``.
    """
    composer = Composer(command, args.config_dir)
    found: dict[str, None] = {}
    for number, job in enumerate(composer.jobs(args.overrides, args.multirun)):
        config = composer.settle(job)
        if config is None or validate is None:
            continue
        with open_dict(config):
            config.hydra.job.num = number
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        try:
            validate(command, plain(config))
        except Exception as error:
            if not hasattr(error, "problems"):
                raise
            found |= dict.fromkeys(error.problems)
    HydraConfig.instance().cfg = None
    written = {override: place for place, override in enumerate(args.overrides)}
    refused = sorted(composer.problems, key=lambda override: written.get(override, len(written)))
    return [*(composer.problems[override] for override in refused), *found]


def compose_train(overrides: list[str]) -> tuple[TrainConfig, dict[str, str], list[str]]:
    """Compose and check one ``metarl train``: its configuration, the options chosen, the overrides.

    Raises:
        UserError: with every problem.
    """
    composer = Composer("train", os.environ.get("METARL_CONFIG_DIR") or None)
    config = composer.settle(overrides)
    if composer.problems or config is None:
        raise ConfigError(list(composer.problems.values()))
    choices = {k: v for k, v in config.hydra.runtime.choices.items() if not str(k).startswith("hydra/")}
    with open_dict(config):
        del config["hydra"]
    checked = validate("train", plain(config))
    assert isinstance(checked, TrainConfig)
    return checked, choices, overrides
