"""Try an environment out before anything is learned in it: does it answer, does it honour its seed, do its parameters hold.

An attribute that every reset overwrites, or an argument that is not used, makes all tasks the same task.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np

from metarl_cli.config.messages import one_line
from metarl_cli.envs.gymnasium.addresses import same
from metarl_cli.envs.gymnasium.build import held, simulator
from metarl_cli.envs.gymnasium.config import Config, Row
from metarl_cli.envs.gymnasium.conventions import MaskedActions
from metarl_cli.envs.simulator import Answer, Simulator
from metarl_cli.envs.tasks import in_words
from metarl_cli.errors import EnvironmentFault
from metarl_cli.progress import note

REPEATED = 10  # steps of the episode that is played twice
TRIED = 200  # random steps in which a parameter must show an effect


def try_out(config: Config, nominal: Simulator, extremes: list[Row]) -> None:
    """Play a few steps, at the nominal parameters and at the ends of their ranges.

    Args:
        config: the environment.
        nominal: it, with the nominal parameters.
        extremes: tasks with the extreme values of all parameters, each within the tasks' distribution.

    Raises:
        ValueError: if a wrapper needs what the environment does not report, or a parameter does not outlast a reset.
        EnvironmentFault: if the environment fails, or returns what nobody can learn from.
    """
    try:
        check_held(config, nominal)
        _check_seed(nominal)
    except EnvironmentFault as fault:
        if not _in_wrapper(fault.__cause__):
            raise
        names = ", ".join(wrapper.name for wrapper in config.wrappers)
        raise ValueError(f"{config.id} does not report {fault.__cause__}, which a wrapper needs (of {names})") from fault
    for row in extremes:
        with opened(config, row) as simulated:
            _check_spaces(config, nominal, simulated, row)
    if extremes:
        with opened(config, extremes[0]) as lowest:
            for name, value in extremes[-1].items():
                if value != extremes[0][name]:
                    with opened(config, {**extremes[0], name: value}) as other:
                        _check_effect(config, name, lowest, other)


def _in_wrapper(error: BaseException | None) -> bool:
    """Return whether it says that a key is missing, and a wrapper raised it."""
    if not isinstance(error, KeyError):
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return ".wrappers" in frame.f_globals.get("__name__", "")


def _check_spaces(config: Config, nominal: Simulator, other: Simulator, row: Row) -> None:
    """Raises ValueError where a task has other spaces than the nominal one."""
    for what in ("observation", "action"):
        sizes = [_size(getattr(simulated.env, f"{what}_space")) for simulated in (nominal, other)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"all tasks of a family must have the same {what} space: {config.id} has {what}s of the size {sizes[0]}, and "
                f"of the size {sizes[1]} ({in_words(row).removeprefix(', ')})"
            )


def _size(space: gymnasium.Space[Any]) -> list[int] | int:
    """Return the number of actions that can be counted, or the shape of an array."""
    return int(space.n) if isinstance(space, gymnasium.spaces.Discrete) else list(space.shape or ())


@contextmanager
def opened(config: Config, row: Row) -> Iterator[Simulator]:
    """Build an environment for the block, and check that it keeps the parameters of a task; it is closed in any case.

    Raises:
        ValueError: if the simulator rejects a value, or overwrites it.
    """
    simulated = simulator(config, row)
    try:
        check_held(config, simulated)
        yield simulated
    finally:
        simulated.env.close()


def _check_effect(config: Config, name: str, one: Simulator, other: Simulator) -> None:
    """Note where nothing differs between two environments that differ in a parameter."""
    if not any(_differ(a, b) for a, b in zip(_play(one, TRIED), _play(other, TRIED), strict=False)):
        address = config.parameters[name].set
        address = address if isinstance(address, str) else ",".join(address)
        note(
            f"env.parameters.{name}.set={address}: {config.id} showed no effect in {TRIED} random steps; "
            "tasks that differ in it alone may all be the same"
        )


def check_held(config: Config, simulated: Simulator) -> None:
    """Begin an episode, and check that the attributes which were set have kept their values.

    Raises:
        ValueError: if one has not.
    """
    before = held(config, simulated.env)
    simulated.reset(0)
    for path, value in held(config, simulated.env).items():
        if not same(value, before[path]):
            raise ValueError(
                f"attribute {path} has no effect: {config.id} overwrites it at the start of every episode "
                f"({_short(before[path])} was set, {_short(value)} is there after a reset)"
            )


def _check_seed(simulated: Simulator) -> None:
    """Note where an episode with the same seed and actions as before, with others in between, is another one."""
    first = list(_play(simulated, REPEATED, 1))
    list(_play(simulated, REPEATED, 2))
    if any(_differ(a, b) for a, b in zip(first, _play(simulated, REPEATED, 1), strict=False)):
        note(
            f"{simulated.name}: the same seed and actions led elsewhere: it ignores the seed of reset, or keeps something "
            "beyond an episode; no run with it can be repeated, or continued to the same bits"
        )


def _play(simulated: Simulator, steps: int, seed: int = 1) -> Iterator[Answer]:
    """Yield the start and every step of episodes with random actions; both depend on the seed and the step alone."""
    rng, space = np.random.default_rng(seed), simulated.env.action_space
    inner = getattr(simulated.env, "env", None)  # within the time limit
    begun, masked = False, inner.actions if isinstance(inner, MaskedActions) else 0
    for t in range(steps):
        if not begun:
            answer = Answer(simulated.reset(seed + t), 0.0, False, False)
            yield answer
            begun = True
        space.seed(int(rng.integers(2**31)))
        action = np.asarray(space.sample(answer.obs[-masked:].astype(np.int8) if masked else None))
        answer = simulated.step(action if action.ndim else action - simulated.first_action)
        yield answer
        begun = not (answer.terminated or answer.truncated)


def _differ(a: Answer, b: Answer) -> bool:
    return a[1:] != b[1:] or not np.array_equal(a.obs, b.obs)


def _short(value: float | str | np.ndarray) -> str:
    return value if isinstance(value, str) else one_line(np.array2string(np.asarray(value), precision=4, threshold=4))
