"""From a checked configuration to objects; building has no effect on the process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from metarl_cli.compiling import can_compile
from metarl_cli.config.base import Group
from metarl_cli.config.models import Hardware, TrainConfig
from metarl_cli.config.registry import ConfigError
from metarl_cli.errors import Problem, UserError
from metarl_cli.interfaces import Algorithm, Context, Family


class Components(NamedTuple):
    """The objects of a run, on its device."""

    family: Family
    algorithm: Algorithm
    device: torch.device


def choose_device(hardware: Hardware) -> torch.device:
    """Return the device asked for; ``auto`` is the GPU where there is one.

    Raises:
        UserError: if a GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if hardware.device == "cuda" and not available:
        raise UserError("hardware=cuda, but torch finds no CUDA device; use hardware=auto or hardware=cpu")
    return torch.device("cuda" if available and hardware.device != "cpu" else "cpu")


def build(config: TrainConfig) -> Components:
    """Build the family, learner and algorithm of a configuration on its device.

    What validation has built already is used again; a family is on the CPU there, and is built anew for another device.

    Raises:
        ConfigError: if the parts do not fit together.
    """
    device = choose_device(config.hardware)
    env, algo = config.env, config.algo
    on_cpu = env.instance is not None and device.type == "cpu"
    family: Family = env.instance if on_cpu else env.module.Family(env.config, device)
    if compiles := config.hardware.compile and can_compile(device):
        family.compile()
    learner: Any = None if config.learner is None else _learner(config.learner, family)
    try:
        context = Context(family, learner, config.train.iterations, config.seed, device, compiles)
        algorithm = algo.module.Algo(algo.config, context)
    except ValueError as error:
        raise ConfigError(Problem("algo", str(error))) from error
    return Components(family, algorithm, device)


def _learner(group: Group, family: Family) -> Any:
    return group.module.Learner(group.config, family.spec) if group.instance is None else group.instance


@contextlib.contextmanager
def threads(hardware: Hardware) -> Iterator[None]:
    """Compute with the configured number of threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(hardware.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
