"""``metarl``: one word chooses the command, the rest is Hydra's.

Nothing slow is imported before it is needed: ``metarl --help`` loads no Hydra, and a configuration is shown without torch.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import signal
import sys
import traceback
from glob import escape, glob
from typing import TYPE_CHECKING

from metarl_cli import __version__

if TYPE_CHECKING:
    from omegaconf import DictConfig

# command -> the module whose ``run`` does it, and what it does
COMMANDS = {
    "train": ("train", "meta-train, select on validation tasks, test on held-out tasks"),
    "test": ("test", "adaptation curves of a saved run on held-out tasks, with baselines"),
    "adapt": ("adapt", "adapt a saved run to one task you name, in a few gradient steps"),
}
LISTS = {  # what only shows what there is
    "envs": "the families of environments, or one in full",
    "algos": "the algorithms, or one in full",
}
WORDS = {name: line for name, (_, line) in COMMANDS.items()} | LISTS

HELP = f"""\
metarl {__version__}: meta-reinforcement learning from one command.

usage: metarl COMMAND [key=value ...] [flags]

commands
{chr(10).join(f"  {name:<6} {line}" for name, line in WORDS.items())}

examples
  metarl train                                             MAML-DQN on a family of CartPoles
  metarl train algo=dqn env=navigation_2d seed=1           another algorithm, another family
  metarl train -m algo=maml_dqn,dqn 'seed=range(5)'        a sweep; run it again and finished runs are skipped
  metarl test run=outputs/RUN split=ood                    test a run again, on tasks beyond the training ranges
  metarl adapt run=outputs/RUN task.gravity=20 steps=5     adapt to one task
  tensorboard --logdir outputs                             curves of all runs

where to look next
  metarl envs NAME             a family in full; without NAME, one line for each (metarl algos does the same)
  metarl COMMAND --help        what a command can be told: options to choose from, every value, examples
  metarl COMMAND --cfg job     the configuration as it would run, with your overrides
  metarl COMMAND --hydra-help  Hydra's own flags and groups
  eval "$(metarl --shell-completion install=bash)"         completion of commands, options and values (also fish, zsh)
  metarl --version
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command line; returns the exit code: 0 done, 2 bad input, 130 interrupted, 1 a fault of the program."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if "--version" in words:
        print(f"metarl {__version__}")
        return 0
    if words[0] in ("-sc", "--shell-completion"):
        return complete(words)
    command, *rest = words
    if command in LISTS:
        return show(command, rest)
    if command not in COMMANDS:
        from metarl_cli.config.messages import choose

        hint = "; the command comes first" if set(words) & set(WORDS) else choose(command, WORDS)
        return fail([f"{command}: no such command{hint} (see metarl --help)"])
    if command == "adapt":  # the task's names are the family's: the configuration cannot list them
        rest = [re.sub(r"^task(?=[.=])", "++task", word) for word in rest]
    try:
        return hydra(command, rest)
    except KeyboardInterrupt:
        print("metarl: interrupted", file=sys.stderr)
        return 130


def show(command: str, words: list[str]) -> int:
    """One of the commands that only show what there is; returns the exit code."""
    from metarl_cli.cli import compose as composing
    from metarl_cli.cli import listing

    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # "| head" ends it without a traceback
    try:
        listing.run(command, LISTS[command], words)
        return 0
    except composing.UsageError as error:
        return fail(error.problems)


class BadInput(BaseException):
    """Ends a run for what the user can put right; not an ``Exception``, which Hydra would comment on."""

    def __init__(self, problems: list[str]):
        super().__init__(problems)
        self.problems = problems


def hydra(command: str, words: list[str]) -> int:
    """Check everything the command line asks for, then hand it to Hydra; returns the exit code."""
    from hydra import version
    from hydra._internal.utils import _run_hydra

    from metarl_cli.cli import compose as composing

    traces = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach this function instead of being printed by Hydra
    problems: list[str] = []
    try:
        args = composing.parse_flags(words)
        if not (args.shell_completion or args.hydra_help):
            shown = args.help or args.cfg or args.info
            if shown and hasattr(signal, "SIGPIPE"):
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # "| head" ends it without a traceback
            problems = composing.find_problems(command, args, None if shown else _validate)
            if problems and traces != "1":
                return fail(problems)
        version.setbase(composing.BASE)
        _run_hydra(args, composing.flags_parser(), task, composing.conf_dir(), command)
        return 0
    except composing.UsageError as error:
        return fail(error.problems)
    except composing.ERRORS as error:
        if traces == "1":
            traceback.print_exc()
        return fail(problems or [str(error)])
    except BadInput as error:
        if traces == "1":
            traceback.print_exc()
        return fail(error.problems)
    except SystemExit as done:  # Hydra's way to end --help
        return int(done.code or 0)
    except Exception as error:
        if not hasattr(error, "metarl_exit_code"):  # told already, when its job of a sweep failed
            raise
        return int(error.metarl_exit_code)
    finally:
        del os.environ["HYDRA_FULL_ERROR"]
        if traces is not None:
            os.environ["HYDRA_FULL_ERROR"] = traces


def _validate(command: str, values: dict[str, object]) -> object:
    from metarl_cli.config.registry import validate

    return validate(command, values)


def task(config: DictConfig) -> float | None:
    """One job, wherever a launcher runs it: validate, then run the command; returns its objective for sweepers."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from metarl_cli.cli.compose import UsageError, plain
    from metarl_cli.errors import UserError

    job = HydraConfig.get()
    command = str(job.job.config_name)
    try:
        values = _validate(command, plain(config))
        run = importlib.import_module(f"metarl_cli.cli.{COMMANDS[command][0]}").run
        if command != "train":
            return run(values)  # type: ignore[no-any-return]
        choices = {name: option for name, option in job.runtime.choices.items() if not name.startswith("hydra/")}
        return run(values, choices, list(job.overrides.task))  # type: ignore[no-any-return]
    except Exception as error:
        bad_input = isinstance(error, UserError | UsageError)
        problems = getattr(error, "problems", [str(error)])
        if job.mode != RunMode.MULTIRUN:
            if bad_input:
                raise BadInput(problems) from error
            raise
        if not bad_input:
            traceback.print_exc()
            problems = [f"{type(error).__name__}: {error}"]
        fail([f"job {job.job.num} ({' '.join(job.overrides.task)}): {problem}" for problem in problems])
        error.metarl_exit_code = 2 if bad_input else 1  # type: ignore[attr-defined]  # Hydra raises it after the last job
        raise


def fail(problems: list[str]) -> int:
    """Say what is wrong, one line each; returns the exit code of bad input."""
    for problem in problems if os.environ.get("RANK", "0") == "0" else ():  # of several processes, one speaks
        print(f"metarl: error: {' '.join(problem.split())}", file=sys.stderr)
    return 2


def complete(words: list[str]) -> int:
    """``metarl --shell-completion install=bash``, and the queries that the installed script makes."""
    if not any(word.startswith("query=") for word in words):
        try:
            return hydra("train", words)
        except ValueError as error:
            return fail([str(error)])
    line = os.environ.get("COMP_LINE", "")
    typed = line.split()[1:]
    command = typed[0] if typed else ""
    if len(typed) == 0 or (len(typed) == 1 and not line.endswith(" ")):
        print(" ".join(name for name in (*WORDS, "--help", "--version") if name.startswith(command)))
        return 0
    word = "" if line.endswith(" ") else typed[-1]
    if command not in WORDS:
        return 0
    from metarl_cli.cli import compose as composing

    if command in LISTS:
        from metarl_cli.cli import listing

        with contextlib.suppress(composing.UsageError):
            given = composing.parse_flags([w for w in typed[1:] if w != word])
            known = [*listing.names(command, given.config_dir), "--config-dir", "--help"]
            print(" ".join(name for name in known if name.startswith(word) and (word or name[0] != "-")))
    elif word.startswith("-"):
        flags = [f for f in composing.flags_parser()._option_string_actions if f.startswith("--")]
        print(" ".join(f for f in flags if f.startswith(word) and f[2:].replace("-", "_") not in composing.REFUSED))
    elif word.startswith("run="):
        folders = sorted(glob(f"{escape(word[4:])}*/"))
        print(" ".join(f"run={f.rstrip('/') if os.path.exists(f'{f}run.json') else f}" for f in folders))
    else:
        found = io.StringIO()
        os.environ["COMP_LINE"] = re.sub(r"^(\s*\S+)\s+\S+", r"\1", line, count=1)
        with contextlib.redirect_stdout(found), contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(Exception):
            given = composing.parse_flags([w for w in typed[1:] if w != word])
            folder = [f"--config-dir={given.config_dir}"] if given.config_dir else []
            hydra(command, [*words, *folder])
        print(*(end for name in found.getvalue().split() for end in _endings(name)), sep="\n")
    return 0


def _endings(name: str) -> tuple[str, ...]:
    """A completion; Hydra leaves a group that has both options and groups of its own without an end."""
    return (name,) if set("=./") & {*name} else (f"{name}=", f"{name}/")
