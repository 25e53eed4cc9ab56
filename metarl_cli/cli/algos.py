"""``metarl algos``: list the algorithms, or describe one."""

from __future__ import annotations

from functools import partial

from metarl_cli.cli import listing

run = partial(listing.run, "algos")
complete = partial(listing.complete, "algos")
