"""``metarl envs``: the families of environments, or one in full."""

from __future__ import annotations

from functools import partial

from metarl_cli.cli import listing

run = partial(listing.run, "envs")
complete = partial(listing.complete, "envs")
