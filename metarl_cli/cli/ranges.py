"""What a command line of ``metarl tune`` searches: ranges in Hydra's words, and what all runs share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, RangeSweep
from hydra.errors import HydraException

from metarl_cli.cli.compose import compose_train
from metarl_cli.config.base import operational_keys
from metarl_cli.config.messages import flatten, no_such_key, one_line, quoted
from metarl_cli.config.models import Job, TrainConfig, TuneConfig
from metarl_cli.errors import Problem, UserError
from metarl_cli.runs.naming import leaves, within
from metarl_cli.tuning.ranges import Options, Range, numbers

OWN = {*(TuneConfig.model_fields.keys() - TrainConfig.model_fields.keys()), "tune"}  # keys that metarl train does not have
NOT_SEARCHED = {
    "seed": "seeds=N has a trial run on several",
    **dict.fromkeys(("tasks_seed", "train.folds", "train.fold", "train.pool"), "scores on different tasks cannot be compared"),
    **dict.fromkeys(
        ("train.iterations", "train.eval_every"), "trials that train for longer, or are looked at more often, score more"
    ),
    "env": "scores on different tasks cannot be compared",
    "eval": "scores measured in different ways cannot be compared",
    "test": "the search sees no test",
}


class Setting(NamedTuple):
    """What is searched, and what all its runs share."""

    flags: tuple[str, ...]
    fixed: list[str]  # overrides of the command line
    base: TrainConfig
    job: Job  # of the base
    ranges: dict[str, Range]
    defaults: dict[str, Any]

    def compose(self, values: Mapping[str, str], seed: int, folder: Path) -> tuple[TrainConfig, Job]:
        """Return the configuration of a run.

        Raises:
            UserError: if it cannot run.
        """
        config, job = compose_train([*self.flags, *self.overrides(values), f"seed={seed}", f"outputs={quoted(str(folder))}"])
        return config, job._replace(swept=frozenset(self.ranges))

    def overrides(self, values: Mapping[str, str]) -> list[str]:
        """Return the overrides that give these values to the keys that are searched."""
        return [*self.fixed, *(f"{key}={value}" for key, value in values.items())]

    def changes_nothing(self, values: Mapping[str, str]) -> bool:
        """Whether these values are the defaults."""
        held = all(each.has(self.defaults[key]) for key, each in self.ranges.items())
        return held and values == self.start()

    def start(self) -> dict[str, str]:
        """Return a value of each range: the default where it lies within."""
        return {
            key: each.written(each.start(self.defaults[key])) if each.has(self.defaults[key]) else each.ends()[0]
            for key, each in self.ranges.items()
        }


def setting_of(config: TuneConfig, job: Job) -> Setting:
    """Return what a command line searches.

    Raises:
        UserError: if that is nothing, or a range is wrong.
    """
    own = [word for word in job.overrides if key_of(word).partition(".")[0].partition("/")[0] in OWN]
    fixed = [word for word in job.overrides if word not in own and key_of(word) != "outputs"]
    if config.run is not None:
        raise UserError(Problem("run", f"run={config.run}: metarl tune trains many; study=FOLDER names the folder of all"))
    base, base_job = compose_train([*job.flags, *fixed])
    named = {key_of(word).replace("/", ".") for word in fixed if key_of(word) not in base_job.choices}
    asked = {key for word in own if word.startswith("++ranges={") for key in value_of(word)}
    if twice := [key for key in asked if key_of(key) in {key_of(word) for word in fixed}]:
        raise UserError(*(f"{key}: is both given and searched" for key in twice))
    texts = {key: text for key, text in config.ranges.items() if key in asked or not within(key, named)}
    if not texts:
        brought = f"tune={job.choices.get('tune')} brings no ranges"
        why = "the command line gives every key a value" if config.ranges else brought
        raise UserError(f"there is nothing to search: {why}; give one: 'KEY=interval(LOW,HIGH)'")
    values = base.model_dump()
    known: dict[str, Any] = {**dict.fromkeys(flatten(values)), **dict(leaves(values))}
    ranges = read_ranges(texts, known, base_job.choices, operational_keys(base))
    defaults = {key: base_job.choices[key] if key in base_job.choices else known[key] for key in ranges}
    return Setting(job.flags, fixed, base, base_job, ranges, defaults)


def check_ends(setting: Setting) -> None:
    """Compose the ends of every range, the others at their default.

    Raises:
        UserError: for each that cannot run.
    """
    start, problems = setting.start(), dict[str, None]()
    for key, each in setting.ranges.items():
        for end in each.ends():
            try:
                config, _ = setting.compose({**start, key: end}, 0, Path("outputs"))
                if changed := sorted(_unlike(config, setting.base)):
                    raise UserError(f"{key}={end}: gives other values to {', '.join(changed[:3])}, which all trials must share")
            except UserError as error:
                problems |= dict.fromkeys(f"range of {key}: {problem.text}" for problem in error.problems)
    if problems:
        raise UserError(*problems)


def _unlike(config: TrainConfig, base: TrainConfig) -> set[str]:
    """Return the keys that trials must share and do not, in two configurations."""
    one, two = (dict(leaves(each.model_dump())) for each in (config, base))
    shared = {"env", "tasks_seed", "train.iterations", "train.eval_every", "train.folds", "train.fold", "train.pool"}
    return {key for key in one.keys() | two.keys() if within(key, shared) and one.get(key) != two.get(key)}


def read_ranges(
    texts: Mapping[str, str], values: Mapping[str, Any], choices: Mapping[str, str | None], free: set[str]
) -> dict[str, Range]:
    """Return the range of each key.

    Args:
        texts: the ranges in Hydra's words.
        values: of the configuration, by dotted key, groups included.
        choices: the option of each config group.
        free: the keys that change no result.

    Raises:
        UserError: for each that is no range, or of a key that there is not or that cannot be searched.
    """
    ranges, problems = dict[str, Range](), list[str]()
    for key, text in texts.items():
        where = f"{key}={text}"
        refused = next((why for name, why in NOT_SEARCHED.items() if within(key, {name})), None)
        if within(key, free):
            refused = "it changes no result"
        if refused:
            problems.append(f"{where}: cannot be searched; {refused}")
        elif key not in values and key not in choices:
            problems.append(f"{where}: {no_such_key(key, values)}")
        else:
            try:
                ranges[key] = _range(f"{key}={text}", choices[key] if key in choices else values[key])
            except HydraException as error:
                problems.append(f"{where}: cannot be read ({one_line(str(error).splitlines()[0])})")
            except ValueError as error:
                problems.append(f"{where}: {error}")
    if problems:
        raise UserError(*problems)
    return ranges


def _range(text: str, default: Any) -> Range:
    override = OverridesParser.create().parse_override(text)
    sweep = override.value()
    if not override.is_sweep_override():
        raise ValueError("is no range; write interval(LOW,HIGH), tag(log,interval(LOW,HIGH)), range(START,STOP) or A,B,C")
    if isinstance(sweep, IntervalSweep | RangeSweep):
        known = {"log"} if isinstance(sweep, IntervalSweep) else set[str]()
        if wrong := sweep.tags - known:
            raise ValueError(f"tag {', '.join(sorted(wrong))} means nothing here; write tag(log,interval(LOW,HIGH))")
    if isinstance(sweep, IntervalSweep):
        assert sweep.start is not None
        assert sweep.end is not None
        return numbers(sweep.start, sweep.end, "log" in sweep.tags, default)
    if isinstance(sweep, RangeSweep) and not sweep.shuffle:
        tried = list(sweep.range())
        if len(tried) < 2:
            raise ValueError("has fewer than two values")
        return numbers(tried[0], tried[-1], False, default, sweep.step)
    if isinstance(sweep, Glob):
        raise ValueError("name the options: A,B,C")
    texts = list(dict.fromkeys(override.sweep_string_iterator()))
    if len(texts) < 2:
        raise ValueError("has fewer than two values")
    return Options(tuple(map(str, texts)), tuple(value_of(f"key={option}") for option in texts))


def value_of(override: str) -> Any:
    """Return the value that an override gives its key."""
    return OverridesParser.create().parse_override(override).value()


def key_of(override: str) -> str:
    """Return the key of an override, or the name of its group."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0]
