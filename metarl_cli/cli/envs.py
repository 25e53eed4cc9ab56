"""``metarl envs``: list the families of environments, or describe one."""

from __future__ import annotations

from functools import partial

from metarl_cli.cli import listing

run = partial(listing.run, "envs")
complete = partial(listing.complete, "envs")
