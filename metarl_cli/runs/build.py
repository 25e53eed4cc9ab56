"""From a checked configuration to objects; building has no effect on the process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from metarl_cli.config.base import Group
from metarl_cli.config.footprint import (
    bytes_per_task,
    check_memory,
    cost_of_evaluating,
    hidden_layers,
    largest_number,
    out_of_memory,
)
from metarl_cli.config.models import Hardware, TrainConfig
from metarl_cli.config.registry import ConfigError
from metarl_cli.envs.experts import known_by
from metarl_cli.envs.folds import Folds, folded
from metarl_cli.errors import Problem, UserError
from metarl_cli.experience.demonstrations import NO_EXPERT, is_demonstrated
from metarl_cli.interfaces import Algorithm, Context, Family, Footprint, Holding
from metarl_cli.networks.compiling import Compiled, can_compile
from metarl_cli.processes import ALONE, Processes, waiting


class Components(NamedTuple):
    """The objects of a run, on its device."""

    family: Family
    algorithm: Algorithm
    device: torch.device


def choose_device(hardware: Hardware, number: int = 0) -> torch.device:
    """Return the device asked for; ``auto`` is a GPU where there is one.

    Args:
        hardware: names the device; without an index of a GPU, jobs and processes take turns on the GPUs.
        number: of the process among those of all jobs on its machine.

    Raises:
        UserError: if there is no such GPU.
    """
    name, _, index = hardware.device.partition(":")
    count = torch.cuda.device_count()
    if name == "cuda" and not count:
        raise UserError(f"hardware.device={hardware.device}, but torch finds no CUDA device; use hardware=auto or hardware=cpu")
    if index and int(index) >= count:
        raise UserError(f"hardware.device={hardware.device}, but the last of the {count} CUDA devices is cuda:{count - 1}")
    if name == "cpu" or not count:
        return torch.device("cpu")
    return torch.device("cuda", int(index) if index else number % count)


def build(config: TrainConfig, number: int = 0, processes: Processes = ALONE) -> Components:
    """Build the family, learner and algorithm of a configuration on its device.

    What validation has built already is used again; a family is on the CPU there, and is built anew for another device.

    Args:
        config: the configuration.
        number: of the process among those of all jobs on its machine, to choose a GPU by.
        processes: those that share the run.

    Raises:
        ConfigError: if the parts do not fit together.
        UserError: if there is no such GPU, several processes would share one, or it would not fit the memory.
    """
    if processes.size > 1 and ":" in config.hardware.device:
        raise UserError(
            f"hardware.device={config.hardware.device} is one GPU, and {processes.size} processes share the run; "
            "use hardware.device=cuda, with which they take turns on the GPUs"
        )
    device = choose_device(config.hardware, number)
    env, algo = config.env, config.algo
    on_cpu = env.instance is not None and device.type == "cpu"
    family: Family = env.instance if on_cpu else env.module.Family(env.config, device)
    if compiles := config.hardware.compile and can_compile(device):
        family.compile(Compiled)
    with _naming_the_largest(config):
        family = _demonstrated(_in_folds(family, config), config)
        learner: Any = None if config.learner is None else _learner(config.learner, family)
        try:
            context = Context(family, learner, config.train.iterations, config.seed, device, processes, compiles)
            held, passing = algo.module.Algo.cost_of_building(algo.config, context)
            tasks = Holding("algo.tasks", getattr(algo.config, "tasks", 0) * bytes_per_task(family))
            check_memory(Footprint([tasks, *held, *hidden_layers(algo.config, "algo")], passing), device)
            with waiting(config.hardware.patience):  # some start environments
                algorithm = algo.module.Algo(algo.config, context)
        except ValueError as error:
            raise ConfigError(Problem("algo", f"algo.module={algo.name}: {error}")) from error
    if algorithm.adapts_by == "demonstrations" and not is_demonstrated(family):
        raise ConfigError(Problem("env", f"env.module={env.name}: it {NO_EXPERT}"))
    return Components(family, algorithm, device)


def _demonstrated(family: Family, config: TrainConfig) -> Family:
    """Return the family with a trained policy as its expert, where the configuration names one."""
    if config.demonstrator is None:
        return family
    from metarl_cli.runs.demonstrator import trained_expert  # it builds a run in its turn

    return known_by(family, trained_expert(config.demonstrator, family, config.hardware))


def _in_folds(family: Family, config: TrainConfig) -> Family:
    """Return the family with the tasks of a cross-validation, where the configuration asks for one."""
    train = config.train
    if train.folds is None:
        return family
    folds = Folds(train.folds, train.fold, train.pool, config.tasks_seed)
    for key, num in {"eval.tasks": config.eval.tasks, "test.tasks": config.test.tasks}.items():
        if num > folds.size:
            text = f"a fold has {folds.size} tasks, train.pool ({folds.pool}) over train.folds ({folds.num})"
            raise ConfigError(Problem(key, f"{key}={num}: {text}; lower {key} or raise train.pool"))
    try:
        return folded(family, folds)
    except ValueError as error:
        raise ConfigError(Problem("train.pool", str(error))) from error


def _learner(group: Group, family: Family) -> Any:
    return group.module.Learner(group.config, family.spec) if group.instance is None else group.instance


def check_training_memory(config: TrainConfig, components: Components) -> None:
    """Check that training, and the evaluations after it, fit the memory.

    Raises:
        UserError: if they do not; it names the key to lower.
    """
    family, algorithm, device = components
    evaluations = {"eval": config.eval, "test": config.test}
    with _naming_the_largest(config):
        cost = algorithm.cost_of_training()
        measured = [cost_of_evaluating(algorithm, family, e.tasks, e.episodes, name) for name, e in evaluations.items()]
    check_memory(Footprint(cost.held, [*cost.passing, *measured]), device)


@contextlib.contextmanager
def _naming_the_largest(config: TrainConfig) -> Iterator[None]:
    """Raise UserError with the largest number of the configuration where memory runs out within the block."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not out_of_memory(error):
            raise
        parts = {"algo": config.algo, "learner": config.learner, "env": config.env, "eval": config.eval, "test": config.test}
        number, key = largest_number(parts | {"train.pool": config.train.pool}, "")
        text = "the run would hold more than the memory, and this is its largest number; lower it, or what else is large"
        raise UserError(Problem(key, f"{key}={number:g}: {text}")) from error


@contextlib.contextmanager
def using(hardware: Hardware) -> Iterator[None]:
    """Compute with the configured threads within the block, and wait for other processes no longer than configured."""
    before = torch.get_num_threads()
    torch.set_num_threads(hardware.threads)
    try:
        with waiting(hardware.patience):
            yield
    finally:
        torch.set_num_threads(before)
