"""Errors that a user can mend."""

from __future__ import annotations


class UserError(Exception):
    """What went wrong in words for the user: printed as one line, exit code 2."""
