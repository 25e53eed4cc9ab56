"""A family with some of its methods replaced."""

from __future__ import annotations

import copy
from typing import Any

from metarl_cli.interfaces import Family


def mixed_in(family: Family, mixin: type[Any]) -> Any:
    """Return a copy of a family, in which the methods of the class ``mixin`` replace its own; messages name it as before."""
    own = type(family)
    replaced = copy.copy(family)
    replaced.__class__ = type(own.__name__, (mixin, own), {"__module__": own.__module__})
    return replaced
