"""Compatibility of the parts of a training run: family with learner, and the algorithm with what it does not use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from metarl_cli.config.base import Group
from metarl_cli.config.messages import flatten, one_line, show
from metarl_cli.errors import Problem, UserError


def check_run(
    values: dict[str, Any], problems: list[Problem], choices: Mapping[str, str | None]
) -> tuple[dict[str, Any], list[Problem]]:
    """Build the family and the learner, and refuse values that the algorithm does not use.

    Args:
        values: of ``metarl train``, with a :class:`Group` for each group that could be parsed.
        problems: those of the checks so far.
        choices: the option of each config group.

    Returns:
        ``values`` with the family and the learner in their groups, and all problems.
    """
    values, problems = dict(values), list(problems)
    algo, env, learner = (values.get(name) for name in ("algo", "env", "learner"))
    name = f"algo={choices['algo']}" if choices.get("algo") else f"algo.module={algo.name}" if isinstance(algo, Group) else ""
    if isinstance(algo, Group):
        problems += _check_steps(values, algo, name)
        problems += _check_training(values, algo, name)
        if (demonstrator := values.get("demonstrator")) is not None and algo.module.Algo.adapts_by != "demonstrations":
            problems.append(
                Problem("demonstrator", f"demonstrator={show(demonstrator)}: {name} does not learn from demonstrations")
            )
        if not algo.module.Algo.uses_learner:
            if learner is not None:
                problems = [p for p in problems if p.key.split(".")[0] != "learner"]
                problems += _unused_learner(learner, choices.get("learner"), name)
                learner = values["learner"] = None
        else:
            problems += _check_learner(learner, algo, name)
    if isinstance(env, Group):
        try:
            with memory_errors():
                values["env"] = env = replace(env, instance=env.module.Family(env.config))
        except (ValueError, UserError) as error:
            text = one_line(error)
            problems.append(Problem("env", text if text.startswith("env.") else f"env: {text}"))
            return values, problems
        if isinstance(learner, Group):
            try:
                built = learner.module.Learner(learner.config, env.instance.spec)
                values["learner"] = replace(learner, instance=built)
            except (ValueError, UserError) as error:
                problems.append(Problem("learner", f"learner: {one_line(error)}"))
    return values, problems


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raise UserError where memory runs out within the block."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        from metarl_cli.config.footprint import first_line, out_of_memory  # brings torch, which most of the checks do without

        if not out_of_memory(error):
            raise
        raise UserError(f"out of memory: {first_line(error)}") from error


STEPS = {
    "gradient": "gradient steps",
    "inference": "supports",
    "demonstrations": "demonstrations",
}  # what ``steps`` count, by how an algorithm adapts
OTHERWISE = {"memory": "adapts within trials of algo.episodes, not by gradient steps", "nothing": "does not adapt"}


def _check_steps(values: Mapping[str, Any], algo: Group, name: str) -> Iterator[Problem]:
    """Yield a problem where steps are given to an algorithm that takes none, or none to one that does."""
    way = algo.module.Algo.adapts_by
    for budget in ("eval", "test"):
        key, group = f"{budget}.steps", values.get(budget)
        steps = group.get("steps") if isinstance(group, Mapping) else None
        if way in STEPS and steps is None and isinstance(group, Mapping):
            yield Problem(key, f"{key}: missing; must be an integer > 0, as {name} adapts by {STEPS[way]}")
        elif way in OTHERWISE and steps is not None:
            yield Problem(key, f"{key}={show(steps)}: {name} {OTHERWISE[way]}")


def _check_training(values: Mapping[str, Any], algo: Group, name: str) -> Iterator[Problem]:
    """Yield a problem for each iteration number of training that is given to an algorithm with nothing to train."""
    loop = values.get("train")
    if algo.module.Algo.learns or not isinstance(loop, Mapping):
        return
    for key in ("iterations", "eval_every", "log_every"):
        if loop.get(key, 1) != 1:
            yield Problem(f"train.{key}", f"train.{key}={show(loop[key])}: {name} has nothing to train; leave it at 1")


def _check_learner(learner: Any, algo: Group, name: str) -> Iterator[Problem]:
    """Yield a problem where an algorithm has no learner, or one that it cannot train."""
    if learner is None:
        yield Problem("learner", f"learner: missing; {name} needs one, say learner=dqn")
    elif isinstance(learner, Group) and algo.module.Algo.replays and not learner.module.Learner.off_policy:
        text = f"{name} replays single transitions, and this learner needs its own trajectories"
        yield Problem("learner", f"learner.module={learner.name}: {text}")
    elif isinstance(learner, Group) and learner.module.Learner.draws and not algo.module.Algo.gives_noise:
        text = f"{name} gives no noise to draw actions with, which this learner needs; algo=pearl does"
        yield Problem("learner", f"learner.module={learner.name}: {text}")


def _unused_learner(learner: Any, choice: str | None, name: str) -> Iterator[Problem]:
    """Yield a problem for the chosen learner, or else for each of the values given for one."""
    if choice or not isinstance(learner, Mapping):
        yield Problem("learner", f"learner={choice or show(learner)}: {name} has no learner")
        return
    keys = list(flatten(learner))
    for key in keys:
        if not any(other.startswith(f"{key}.") for other in keys):
            value: Any = learner
            for part in key.split("."):
                value = value[part]
            yield Problem(f"learner.{key}", f"learner.{key}={show(value)}: {name} has no learner")


def check_budget(algo: Group, steps: int | None, trial: int | None) -> None:
    """Check the budget of ``metarl test`` and ``metarl adapt`` against the algorithm of the saved run.

    Raises:
        UserError: for steps of an algorithm that takes none, or a trial of one that does not adapt within trials.
    """
    way = algo.module.Algo.adapts_by
    if steps is not None and way not in STEPS:
        text = "does not adapt" if way == "nothing" else "adapts within trials; give trial=EPISODES"
        raise UserError(Problem("steps", f"steps={steps}: the run's algorithm {text}"))
    if trial is not None and way != "memory":
        text = "does not adapt" if way == "nothing" else f"adapts by {STEPS[way]}; give steps=NUMBER"
        raise UserError(Problem("trial", f"trial={trial}: the run's algorithm {text}"))
