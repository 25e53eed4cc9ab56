"""Experts: who demonstrates the tasks of a family in the place of the family itself."""

from __future__ import annotations

from collections.abc import Callable

from typing_extensions import override

from metarl_cli.envs.mixins import mixed_in
from metarl_cli.interfaces import Family, Policy, Task


class _Known(Family):
    """What replaces the family's expert."""

    other: Callable[[Task], Policy]

    @override
    def expert(self, task: Task) -> Policy:
        return self.other(task)


def known_by(family: Family, expert: Callable[[Task], Policy]) -> Family:
    """Return the family with another expert."""
    known: _Known = mixed_in(family, _Known)
    known.other = expert
    return known
