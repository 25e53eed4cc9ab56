"""From a checked configuration to objects."""

from __future__ import annotations

import ctypes
import platform
from typing import NamedTuple

import torch

from metarl_cli.config.models import Hardware, TrainConfig
from metarl_cli.config.registry import ConfigError, load
from metarl_cli.errors import UserError
from metarl_cli.interfaces import Algorithm, Context, Family


class Parts(NamedTuple):
    """What a configuration stands for."""

    family: Family
    algorithm: Algorithm
    device: torch.device


def choose_device(hardware: Hardware) -> torch.device:
    """The device asked for; ``auto`` is the GPU where there is one.

    Raises:
        UserError: if a GPU is asked for and there is none.
    """
    found = torch.cuda.is_available()
    if hardware.device == "cuda" and not found:
        raise UserError("hardware=cuda, but torch finds no CUDA device; use hardware=auto or hardware=cpu")
    torch.set_num_threads(hardware.threads)
    return torch.device("cuda" if found and hardware.device != "cpu" else "cpu")


def keep_memory() -> None:
    """Have the C library, where it is glibc, keep the memory of freed tensors for the next ones.

    It gives large blocks back at once, and then the system clears them page by page whenever they are asked for again: most of
    the time of a large population (docs/throughput.md). The process stays as large as it once was.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no block on its own
        mallopt(-1, -1)  # M_TRIM_THRESHOLD [bytes]: the heap never shrinks


def build(config: TrainConfig) -> Parts:
    """The family, learner and algorithm of a configuration, on its device."""
    device = choose_device(config.hardware)
    keep_memory()
    env_module, env_config = load("env", config.env)
    learner_module, learner_config = load("learner", config.learner)
    algo_module, algo_config = load("algo", config.algo)
    family = env_module.Family(env_config, device)
    learner = learner_module.Learner(learner_config, family.spec)
    try:
        context = Context(family, learner, config.train.iterations, config.seed, device)
        algorithm = algo_module.Algo(algo_config, context)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    return Parts(family, algorithm, device)
