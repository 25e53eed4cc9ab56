"""Completion in the shell: ``metarl --shell-completion install=bash``, and the queries that the installed script makes."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator
from glob import escape, glob

from metarl_cli.cli.commands import Command, commands
from metarl_cli.errors import UserError
from metarl_cli.runs.shipped import PREFIX, entries

BREAKS, WIDER = "COMP_WORDBREAKS//=}", "COMP_WORDBREAKS//[=:]}"  # bash would complete what follows the colon of run=zoo:NAME


def complete(words: list[str]) -> int:
    """Print the script to install, or the candidates for the last word of ``COMP_LINE``; returns the exit code.

    Raises:
        UserError: if the shell is not known.
    """
    if not any(word.startswith("query=") for word in words):
        from metarl_cli.cli.hydra import run

        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output):
                code = run(next(command for command in commands().values() if command.has_config), words)
        except ValueError as error:
            raise UserError(str(error)) from error
        print(output.getvalue().replace(BREAKS, WIDER), end="")
        return code
    line = os.environ.get("COMP_LINE", "")
    typed = line.split()[1:]
    if len(typed) == 0 or (len(typed) == 1 and not line.endswith(" ")):
        print(" ".join(name for name in (*commands(), "--help", "--version") if name.startswith("".join(typed))))
        return 0
    word = "" if line.endswith(" ") else typed[-1]
    given = [w for w in typed[1:] if w != word]
    command = commands().get(typed[0])
    if command is None:
        return 0
    if command.has_config:
        print(*_of_configuration(command, words, line, given, word), sep="\n")
    elif hasattr(module := command.load(), "complete"):
        with contextlib.suppress(UserError):
            names = [*module.complete(given), "--help"]
            print(" ".join(name for name in names if name.startswith(word) and (word or name[0] != "-")))
    return 0


def _of_configuration(command: Command, words: list[str], line: str, given: list[str], word: str) -> Iterator[str]:
    """Yield the candidates for ``word`` among the flags, run folders, options and values of a command."""
    from metarl_cli.cli import compose
    from metarl_cli.cli.hydra import run

    if word.startswith("-"):
        flags = [f for f in compose.flags_parser()._option_string_actions if f.startswith("--")]
        yield from (f for f in flags if f.startswith(word) and f[2:].replace("-", "_") not in compose.REFUSED)
    elif word.startswith("run="):
        folders = sorted(glob(f"{escape(word[4:])}*/"))
        yield from (f"run={f.rstrip('/') if os.path.exists(f'{f}run.json') else f}" for f in folders)
        zoo = [f"{PREFIX}{name}" for name in entries()] if word[4:].startswith(PREFIX) else [PREFIX]
        yield from (f"run={name}" for name in zoo if name.startswith(word[4:]))
    else:
        output = io.StringIO()
        os.environ["COMP_LINE"] = re.sub(r"^(\s*\S+)\s+\S+", r"\1", line, count=1)
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(Exception):
            folder = compose.parse_flags(given).config_dir
            run(command, [*words, *([f"--config-dir={folder}"] if folder else [])])
        yield from (end for name in output.getvalue().split() for end in _endings(name))


def _endings(name: str) -> tuple[str, ...]:
    """Return a completion as a whole; Hydra leaves a group that has both options and groups of its own without an end."""
    return (name,) if set("=./") & {*name} else (f"{name}=", f"{name}/")
