"""What a folder of configurations, which may be a stranger's, can make Hydra do: compose values, and build Hydra's own parts.

Hydra builds its launcher, its sweeper and callbacks by the names in ``hydra:``, and Python's logging its handlers; both take
any name that can be imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarl_cli.errors import UserError
from metarl_cli.runs.files import LARGEST_TEXT, check_aliases, read

BUILT = re.compile(  # by Hydra: its parts, installed plugins, and what Hydra's sweeper for Optuna is made of
    r"hydra\._internal\.core_plugins\.\w+\.\w+|hydra\.experimental\.callbacks\.\w+|hydra_plugins\.[\w.]+"
    r"|optuna\.(samplers|pruners)\.\w+"
)
LOGGED = {"logging.StreamHandler", "logging.NullHandler", "logging.Formatter", "colorlog.ColoredFormatter"}
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
LOG_FILE = "${hydra.runtime.output_dir}/${hydra.job.name}.log"  # of Hydra's own option job_logging=default
REFERENCE = re.compile(r"\$\{.*\}", re.DOTALL)  # a text that can stand for any value of the configuration, or for a new one
LATER = re.compile(r"\$\{hydra[.:][\w.]+\}")  # one that stands for a value of this section, known once Hydra runs


def check_folder(folder: str, groups: Iterable[str]) -> None:
    """Check the files that could be composed from a folder of configurations, before Hydra reads one.

    Raises:
        UserError: for a YAML file whose aliases stand for more values than a configuration has, or for themselves.
    """
    top = Path(folder)
    for path in (*top.glob("*.yaml"), *(path for group in groups for path in (top / group).rglob("*.yaml"))):
        try:
            check_aliases(read(path.resolve(), LARGEST_TEXT).decode())
        except yaml.YAMLError:
            continue  # told when it is composed, if it is
        except (ValueError, RecursionError) as error:
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
            raise UserError(f"cannot read {path}: {reason}") from error


def check_composed(config: DictConfig, overrides: Iterable[str]) -> None:
    """Check Hydra's section of a composed configuration.

    Args:
        config: the configuration.
        overrides: of the command line, which are the user's own.

    Raises:
        UserError: if Hydra, or Python's logging, would build anything but parts of Hydra and of its installed plugins.
    """
    for place, text in _refused(config, OmegaConf.to_container(config.hydra, resolve=False), "hydra"):
        why = _unresolved(config, place) or "a configuration can have Hydra build nothing but its own parts and plugins"
        raise UserError(f"{place}={text}: refused; {why}")
    if config.hydra.job.env_set and not any(word.lstrip("+~").startswith("hydra.job.env_set") for word in overrides):
        raise UserError("hydra.job.env_set: refused; set environment variables in the shell, or on the command line")
    swept = [str(key).lstrip("+~") for key in config.hydra.sweeper.get("params") or {}]
    named = any(word.lstrip("+~").startswith("packages") for word in overrides)
    if "packages" in swept or (config.get("packages") and not named):
        raise UserError("packages: refused; name them on the command line, or by METARL_PACKAGES")


def _refused(config: DictConfig, values: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield the place and the text of everything within ``values`` that names what must not be built."""
    if isinstance(values, list):
        values = dict(enumerate(values))
    for key, value in values.items() if isinstance(values, dict) else ():
        inside = f"{place}.{key}"
        if key == "_target_":
            wrong = not BUILT.fullmatch(str(value))
        elif "logging" in place and key in ("class", "()", "factory"):
            log_file = value == "logging.FileHandler" and values.get("filename") == LOG_FILE
            wrong = value not in LOGGED and not log_file
        elif isinstance(value, str) and REFERENCE.fullmatch(value.strip()):
            # a part of the configuration that is not looked at here, or a stream of logging's
            meant = _meant(config, inside)
            unknown = meant is None and not LATER.fullmatch(value.strip())
            wrong = unknown or isinstance(meant, Container) or str(meant).startswith(("ext://", "cfg://"))
        else:
            wrong = "logging" in place and str(value).startswith(("ext://", "cfg://")) and value not in STREAMS
        if wrong:
            yield inside, value
        yield from _refused(config, value, inside)


def _meant(config: DictConfig, place: str) -> Any:
    """Return the value at a place, its interpolation resolved; None where that is not possible yet."""
    try:
        return OmegaConf.select(config, place)
    except (OmegaConfBaseException, RecursionError):
        return None


def _unresolved(config: DictConfig, place: str) -> str:
    """Return why the interpolation at a place cannot be resolved; empty where it can."""
    try:
        OmegaConf.select(config, place)
    except RecursionError:
        return "it stands for itself"
    except OmegaConfBaseException as error:
        return str(error).splitlines()[0]
    return ""
