"""Shared by all tests: one thread, small configurations, every yaml of ``conf/``."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from metarl_cli.config import registry
from metarl_cli.config.base import Group
from metarl_cli.config.models import TrainConfig

CONF = Path(__file__).resolve().parent.parent / "conf"
torch.set_num_threads(1)

# The smallest run that still goes through every part of a command.
TINY = [
    "train.iterations=4",
    "train.eval_every=2",
    "train.log_every=1",
    "eval.tasks=3",
    "eval.episodes=2",
    "eval.steps=1",
    "test.tasks=4",
    "test.episodes=2",
    "test.steps=2",
    "learner.network.hidden=[8,8]",
    "env.horizon=20",
    "hardware=cpu",
]
TINY_MAML = [
    "algo.tasks=4",
    "algo.outer.tasks=2",
    "algo.outer.updates=2",
    "algo.outer.batch=8",
    "algo.inner.support.rollouts=2",
    "algo.inner.support.steps=6",
    "algo.query.envs=2",
    "algo.query.steps=5",
    "algo.query.capacity=60",
]
TINY_MEMORY = [o for o in TINY if not o.startswith(("learner.", "eval.steps", "test.steps"))]  # no learner, no gradient steps
TINY_REFERENCE = [override for override in TINY_MEMORY if not override.startswith("env.")]
TINY_DQN = ["algo.tasks=3", "algo.envs=2", "algo.steps=5", "algo.updates=2", "algo.batch=8", "algo.warmup=1"]
TINY_RL2 = [
    "algo.episodes=2",
    "algo.tasks=3",
    "algo.envs=2",
    "algo.memory.size=8",
    "algo.ppo.epochs=2",
    "algo.ppo.minibatches=2",
]
TINY_RL2_DQN = [
    "algo.episodes=2",
    "algo.tasks=3",
    "algo.envs=2",
    "algo.memory.size=8",
    "algo.head.hidden=[8]",
    "algo.replay.capacity=12",
    "algo.replay.batch=4",
    "algo.replay.segment=6",
    "algo.dqn.updates=2",
]
TINY_EVOLUTION = [
    "algo.search.population=6",
    "algo.fitness.tasks=2",
    "algo.fitness.episodes=1",
    "algo.validation.tasks=2",
    "algo.validation.every=2",
    "algo.validation.candidates=0",
]
TINY_LIFE = {  # by the lifetime of evolution
    "gradient": ["algo.lifetime.support.rollouts=2", "algo.lifetime.support.steps=6"],
    "dqn": [
        "algo.lifetime.iterations=2",
        "algo.lifetime.envs=2",
        "algo.lifetime.env_steps=4",
        "algo.lifetime.updates=2",
        "algo.lifetime.largest_batch=8",
        "algo.lifetime.hyper.batch=8",
        "algo.lifetime.capacity=64",
    ],
    "none": [],
}
TINY_GENOME = {
    "architecture": ["algo.genome.architecture.narrowest=4"],
    "hyper": ["algo.genome.hyper.ranges.batch.low=4", "algo.genome.hyper.ranges.batch.high=8"],
}
TINY_ALGO = {  # by module
    "evolve": ["algo.tasks=4", *TINY_EVOLUTION],
    "adrl": [*TINY_EVOLUTION, "algo.search.elites=4", "algo.search.patience=0"],
    "maml": TINY_MAML,
    "dqn": TINY_DQN,
    "rl2": TINY_RL2,
    "rl2_dqn": TINY_RL2_DQN,
}


def options(group: str) -> list[str]:
    """The names one can choose in a config group."""
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))


@cache
def module(algo: str) -> ModuleType:
    """The code of an option of ``conf/algo``."""
    return load("algo", compose_values("train", [f"algo={algo}"])["algo"])[0]


def load(kind: str, values: dict[str, Any] | Group, place: str = "") -> tuple[ModuleType, Any]:
    """The module of a group and its ``Config``."""
    group = values if isinstance(values, Group) else registry.load(kind, values, place)
    return group.module, group.config


def tiny(algo: str) -> list[str]:
    """Overrides that make a run of ``algo`` small."""
    name = module(algo).__name__.rpartition(".")[2]
    more = []
    if name in ("evolve", "adrl"):
        values = compose_values("train", [f"algo={algo}"])["algo"]
        more = TINY_LIFE[values["lifetime"]["module"]] + [o for part in values["genome"] for o in TINY_GENOME.get(part, [])]
    return [*(TINY if module(algo).Algo.uses_learner else TINY_MEMORY), *TINY_ALGO[name], *more]


def algorithms(learns: bool = True, in_trial: bool | None = None) -> list[str]:
    """The algorithms that learn across tasks, or the references, which have nothing to learn.

    With ``in_trial`` those alone that adapt within a trial, or those that adapt by gradient steps.
    """
    found = {name: module(name).Algo for name in options("algo")}
    return [
        name
        for name, algorithm in found.items()
        if algorithm.learns == learns and in_trial in (None, hasattr(algorithm, "begin"))
    ]


def flat(state: object) -> list[torch.Tensor]:
    """Every tensor of a nested state, in order."""
    if isinstance(state, torch.Tensor):
        return [state]
    if isinstance(state, dict):
        return [x for k in sorted(state, key=str) for x in flat(state[k])]
    if isinstance(state, list | tuple):
        return [x for item in state for x in flat(item)]
    return []


def compose_values(command: str, overrides: list[str]) -> dict[str, Any]:
    """A composed configuration as plain values."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        values = OmegaConf.to_container(compose(command, overrides), resolve=True)
    assert isinstance(values, dict)
    return copy.deepcopy(values)  # type: ignore[arg-type]


def compose_train(*overrides: str) -> TrainConfig:
    """A validated ``metarl train`` configuration."""
    return registry.validate(TrainConfig, compose_values("train", list(overrides)))


@pytest.fixture
def float64():
    """Everything new is float64 within the test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
