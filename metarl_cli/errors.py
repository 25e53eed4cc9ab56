"""Errors that a user can mend, and text of any origin on a screen."""

from __future__ import annotations

from typing import NamedTuple


def visible(text: str) -> str:
    """Return a text with everything that is no printable character written out, as in ``\\x1b``: a terminal obeys it."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class Problem(NamedTuple):
    """One thing that is wrong, and the dotted key at fault; the key is empty where no single one is."""

    key: str
    text: str


class UserError(Exception):
    """An error that a user can mend: every problem is printed as one line, without a traceback.

    Args:
        problems: texts, or :class:`Problem` where the key at fault is known; none where they are printed already.
        exit_code: of the command.
    """

    def __init__(self, *problems: str | Problem, exit_code: int = 2):
        super().__init__(*problems)
        self.problems = [p if isinstance(p, Problem) else Problem("", p) for p in problems]
        self.exit_code = exit_code

    def __str__(self) -> str:
        return "\n".join(problem.text for problem in self.problems)


class ProcessLost(UserError):
    """A process that others wait for has ended, or does not answer; every process that notices may print it."""

    def __init__(self, *problems: str | Problem):
        super().__init__(*problems, exit_code=1)


class PeerLost(BaseException):
    """A process of those that share a run has ended: raised by a signal, between any two steps of whatever runs then.

    As a KeyboardInterrupt it is no Exception, so that no code takes it for an error of its own, of a damaged file say.
    """


class EnvironmentFault(UserError):
    """An environment fails, or returns what nobody can learn from; the text begins with its name."""


class DiskFault(UserError):
    """A file cannot be written: the disk is full, or there is no permission."""
