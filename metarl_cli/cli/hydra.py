"""Running a command through Hydra: check everything the command line asks for, then hand it over, job by job."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hydra._internal.utils import _run_hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from metarl_cli.cli import compose, manual, sweep
from metarl_cli.cli.commands import Command
from metarl_cli.cli.terminal import closing_pipes, print_error, waiting
from metarl_cli.envs import packages
from metarl_cli.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from pydantic import BaseModel

FULL = "HYDRA_FULL_ERROR=1 shows the traceback"
KEPT = 8  # jobs whose checked configuration waits for its turn, with the family that was built to check it
_checked: dict[str, BaseModel] = {}


def run(command: Command, words: list[str]) -> int:
    """Run a command line of ``command``; returns the exit code.

    Raises:
        UserError: for everything that is wrong with it, and for a job that failed.
    """
    words = open_keys(command, words)
    _checked.clear()
    with _errors_raised() as traces:
        args = compose.parse_flags(words)
        if command.searched and args.multirun:
            raise compose.UsageError(f"--multirun: metarl {command.name} tries several values by itself; leave -m out")
        problems = []
        only_shows = args.help or args.cfg or args.info
        if not (args.shell_completion or args.hydra_help):
            with closing_pipes(), waiting("checking the configuration ..." if only_shows else "loading PyTorch ..."):
                check = None if only_shows else check_values
                problems = compose.find_problems(command, args, check)
                page = manual.page(command, args) if args.help and not problems else ""
            if problems and not traces:
                raise compose.UsageError(*problems)
            if page:
                with closing_pipes():
                    print(page, end="")
                return 0
        elif args.hydra_help:
            compose.Composer(command.name, args.config_dir, command.open_groups).settle(args.overrides)
        task = Task(command, compose.swept_keys(args.overrides) if args.multirun else frozenset())
        args.overrides += [sweep.CALLBACK] if args.multirun else []
        compose.set_version_base()
        compose.register_installed()
        try:
            with closing_pipes() if only_shows else contextlib.nullcontext():
                _run_hydra(args, compose.flags_parser(), task, compose.conf_dir(), command.name)
        except compose.ERRORS as error:
            if traces:
                traceback.print_exc()
            raise compose.UsageError(*(problems or [str(error)])) from error
        except UserError:
            raise
        except Exception as error:
            if not args.multirun or traces:
                raise
            lost = f"the launcher or the sweeper has failed: {type(error).__name__}: {str(error).strip()}"
            raise UserError(f"{lost}; issue the command again: finished jobs are skipped ({FULL})", exit_code=1) from error
        except SystemExit as done:  # Hydra ends --hydra-help this way
            return done.code if isinstance(done.code, int) else int(done.code is not None)
        finally:
            sweep.print_tables(getattr(args, "jobs", []))
        if task.failure:
            if traces:
                traceback.print_exception(task.failure)
            raise task.failure
    return 0


def open_keys(command: Command, words: list[str]) -> list[str]:
    """Write ``task.NAME=VALUE`` as ``++task.NAME=VALUE`` for each open group: a configuration cannot list its keys.

    Of a command that searches, a value that a sweep would try is a range.
    """
    if command.searched:
        words = [compose.as_range(word, command.searched) for word in words]
    if not command.open_groups:
        return words
    groups = "|".join(map(re.escape, command.open_groups))
    return [re.sub(rf"^({groups})(?=[.=])", r"++\1", word) for word in words]


@contextlib.contextmanager
def _errors_raised() -> Iterator[bool]:
    """Have Hydra raise errors instead of printing them; yields whether the user asked for tracebacks."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield before == "1"
    finally:
        del os.environ["HYDRA_FULL_ERROR"]
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


def _key(command: Command, values: Mapping[str, Any], choices: Mapping[str, str | None]) -> str:
    return json.dumps([command.name, values, choices], sort_keys=True, default=str)


def check_values(command: Command, values: dict[str, Any], choices: Mapping[str, str | None]) -> None:
    """Validate a configuration, and keep it for its job."""
    config = _validated(command, values, choices)
    if len(_checked) < KEPT:
        _checked[_key(command, values, choices)] = config


def _validated(command: Command, values: dict[str, Any], choices: Mapping[str, str | None]) -> Any:
    from metarl_cli.config.registry import validate

    packages.allow(values)
    return validate(command.load().Config, values, choices)


def _enter(folder: str) -> None:
    """Make a folder the current one, as it was where the command was given."""
    try:
        os.chdir(folder)
    except OSError as error:
        where = "a sweep over several machines needs a disk that they share"
        raise UserError(f"cannot enter {folder} on {platform.node()}: {error.strerror}; {where}") from error


@dataclass
class Task:
    """One job of a command, wherever a launcher runs it: validates the configuration, then runs the command.

    A single run keeps its failure for :func:`run` to raise: Hydra would print lines of its own about an exception.
    """

    command: Command
    swept: frozenset[str] = frozenset()
    failure: UserError | None = None
    where: str = field(default_factory=os.getcwd)  # the command was given; a launcher's process may be elsewhere

    def __call__(self, config: DictConfig) -> Any:
        """Run the job; returns its objective for sweepers."""
        from metarl_cli.config.compatibility import memory_errors
        from metarl_cli.config.models import Job
        from metarl_cli.runs.folder import RunFolder

        hydra = HydraConfig.get()
        several = hydra.mode == RunMode.MULTIRUN
        number = hydra.job.num if several else 0
        job = Job(compose.group_choices(hydra), list(hydra.overrides.task), number, self.swept, compose.source_flags(hydra))
        entry: dict[str, Any] = {}
        began = time.monotonic()
        try:
            if several and not hydra.job.chdir:
                _enter(self.where)
            module, values = self.command.load(), compose.plain(config)
            checked = _checked.pop(_key(self.command, values, job.choices), None)
            checked = checked or _validated(self.command, values, job.choices)
            done = "finished"
            if several and hasattr(module, "folder"):
                entry["folder"] = str(module.folder(checked, job))
                done = "finished before" if RunFolder(entry["folder"]).finished else done
            if several:
                sweep.keep(hydra, "running", **entry)
            with memory_errors():
                objective = module.run(checked, job)
            if several:
                score = {} if objective is None else {"score": str(objective)}
                columns = module.outcome(checked, job) if hasattr(module, "outcome") else score
                sweep.keep(hydra, done, columns=columns, seconds=time.monotonic() - began, **entry)
            return objective
        except UserError as error:
            if not several:
                self.failure = error
                return None
            failure = error
        except Exception as error:
            if not several:
                raise
            traceback.print_exc()
            entry["traceback"] = traceback.format_exc()
            failure = UserError(f"{type(error).__name__}: {error}", exit_code=1)
        sweep.keep(hydra, "failed", error=str(failure), seconds=time.monotonic() - began, **entry)
        print_error(failure, f"job {hydra.job.num} ({' '.join(job.overrides)}): ")
        raise UserError(exit_code=failure.exit_code)  # printed; Hydra raises it after the last job
