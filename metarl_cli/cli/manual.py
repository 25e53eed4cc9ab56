"""The text of ``--help``: the options of each group, and every value with its meaning beside it."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator, Mapping
from string import Template
from typing import Any

import yaml
from omegaconf import OmegaConf, open_dict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from metarl_cli.cli.commands import Command
from metarl_cli.cli.compose import Composer, plain
from metarl_cli.cli.terminal import MOST_COLUMNS
from metarl_cli.progress import PLAIN_WIDTH


def page(command: Command, args: Namespace) -> str:
    """Return the help of a command, with the user's overrides, which can be composed."""
    from metarl_cli.config.registry import meanings

    composer = Composer(command.name, args.config_dir, command.open_groups)
    config = composer.compose(args.overrides)
    template = Template(config.hydra.help.template)
    with open_dict(config):
        del config["hydra"]
    meaning, values = meanings(command.load().Config, plain(config)), OmegaConf.to_container(config)
    assert isinstance(values, dict)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for path, text, leaf in _lines(values):
        about, allowed = meaning(path)
        about = "" if len(path) > 1 and about == meaning(path[:-1])[0] else about  # told of the group
        table.add_row(Text(text), Text("; ".join(filter(None, (about, allowed if leaf else "")))))
    console = Console(highlight=False)
    console.width = min(console.width, MOST_COLUMNS) if console.is_terminal else PLAIN_WIDTH
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    return template.safe_substitute(APP_CONFIG_GROUPS="\n".join([*_options(composer, ""), ""]), CONFIG="\n".join([*lines, ""]))


def _options(composer: Composer, group: str) -> Iterator[str]:
    """Yield a line for each config group within ``group``: what there is to choose from."""
    for name in composer.loader.list_groups(group):
        path = f"{group}/{name}".lstrip("/")
        if path != "hydra":
            if options := composer.loader.get_group_options(path):
                yield f"{path}: {', '.join(options)}"
            yield from _options(composer, path)


def _lines(values: Mapping[Any, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str, bool]]:
    """Yield each line of a configuration as yaml: the path of its value, the line, and whether that is no group."""
    for key, value in values.items():
        place, written = (*path, str(key)), f"{'  ' * len(path)}{key}:"
        if isinstance(value, dict) and value:
            yield place, written, False
            yield from _lines(value, place)
        else:
            text = json.dumps(value) if not isinstance(value, str) else yaml.safe_dump(value, width=1000).splitlines()[0]
            yield place, f"{written} {text}", True
