"""The name of a run: what was chosen, what was overridden, the seed, and a hash of every value that can change the result."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from metarl_cli.config import messages
from metarl_cli.config.base import operational_keys, result_values
from metarl_cli.config.models import Job, TrainConfig
from metarl_cli.errors import visible

IN_THE_NAME = {"algo", "env", "experiment", "seed"}  # of a run anyway
LEAST_TELLING = ("train", "eval", "test")  # groups whose overrides come last in a run's name
LONGEST_NAME = 100  # [characters] of a name that a report gives
LONGEST_CHANGES = 60  # [characters] of the overrides in a run's name; a file name has room for 255


def default_name(config: TrainConfig, job: Job) -> str:
    """Return ``<algo>-<env>-<key>_<value>-...-seed<n>-<hash>``; what a sweep varies is the first of what was overridden."""
    text = json.dumps(result_values(config), sort_keys=True)
    algo, env, experiment = (job.choices.get(group) or "" for group in ("algo", "env", "experiment"))
    names = [experiment, *([] if algo in experiment else [algo])] if experiment else [algo, env]
    values = overridden(config, job.overrides)
    keys = sorted(values, key=lambda key: (key not in job.swept, within(key, LEAST_TELLING)))
    changes = [_telling(f"{key.removeprefix('algo.')}_{values[key]}") for key in keys]
    while len("-".join(changes)) > LONGEST_CHANGES:
        changes.pop()
    return file_name("-".join([*names, *changes, f"seed{config.seed}", hashlib.sha256(text.encode()).hexdigest()[:8]]))


def group_hash(config: TrainConfig) -> str:
    """Return the hash of every value that can change the result, but the seed."""
    values = {key: value for key, value in result_values(config).items() if key != "seed"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def default_path(config: TrainConfig, job: Job) -> Path:
    """Return where a run goes that is not told where.

    The same experiment has the same folder, so a sweep can be run again, on another machine too: a run whose values are the
    same is found, though other overrides led to them.
    """
    outputs = Path(config.outputs)
    first, *last = default_name(config, job._replace(overrides=[])).rsplit("-", 2)
    for path in sorted(outputs.glob(f"*-{'-'.join(last)}")):
        if path.name.startswith(f"{first}-") and (path / "run.json").is_file():
            return path
    return outputs / default_name(config, job)


def file_name(text: str) -> str:
    """Return a text as the name of one file, not of several folders."""
    return visible(text).replace("/", "_")


def short_names(texts: Sequence[str]) -> list[str]:
    """Return each text as the name of one file that any folder takes; long ones are cut, and no two are the same."""
    names = [_telling(text.replace("env.", "")).strip(".")[:LONGEST_NAME] or "_" for text in texts]
    return [name if names.count(name) == 1 else f"{name}-{number}" for number, name in enumerate(names, 1)]


def _telling(text: str) -> str:
    """Return a text without what means something to a shell or to Hydra."""
    return re.sub(r"_{2,}", "_", re.sub(r"[^A-Za-z0-9.+-]", "_", text)).strip("_")


def environment(config: TrainConfig) -> dict[str, Any]:
    """Return the values of the environment that can change a result."""
    values: dict[str, Any] = result_values(config)["env"]
    return values


def overridden(config: TrainConfig, overrides: Iterable[str]) -> dict[str, str]:
    """Return the overrides that can change the result, as text by key; those that are in the name anyway are left out."""
    pairs = (override.lstrip("+~").partition("=") for override in overrides)
    values = {key.replace("/", "."): value for key, _, value in pairs}
    free = {"hydra", *operational_keys(config)}
    return {key: value for key, value in values.items() if key not in IN_THE_NAME and not within(key, free)}


def hparams(config: TrainConfig, choices: Mapping[str, str | None], overrides: Collection[str]) -> dict[str, Any]:
    """Return what distinguishes a run from others: its options, its seed, and the values of the overridden keys."""
    options = {name.replace("/", "."): option for name, option in choices.items()}
    named = [key for key in options if key in {*overrides, "algo", "env", "experiment"}]
    values = {key: value for key, value in leaves(config.model_dump()) if within(key, set(overrides) - options.keys())}
    return {key: options[key] for key in named} | {"seed": config.seed} | values


def leaves(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of everything that is not a group itself."""
    return ((".".join(map(str, path)), value) for path, value in messages.leaves(values))


def within(key: str, groups: Collection[str]) -> bool:
    """Whether a dotted key is one of ``groups``, or lies in one."""
    return any(key == group or key.startswith(f"{group}.") for group in groups)
