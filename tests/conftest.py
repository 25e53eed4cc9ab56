"""Shared by all tests: one thread, small configurations, every yaml of ``conf/``."""

from __future__ import annotations

import copy
import importlib
import signal
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from PIL import Image

from metarl_cli.config import registry
from metarl_cli.config.base import Group
from metarl_cli.config.models import TrainConfig

CONF = Path(__file__).resolve().parent.parent / "conf"
torch.set_num_threads(1)
# A shell starts background commands with Ctrl-C ignored, and the commands under test inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

encode = Figure.savefig


def blank(figure: Figure, file: Any, **options: Any) -> None:
    """Save a few grey dots in the place of a PNG."""
    if options.get("format") == "png":
        Image.new("L", (4, 4)).save(file, "PNG")
    else:
        encode(figure, file, **options)


@pytest.fixture(autouse=True)
def _few_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encode figures as PNG only in tests that ask for ``pictures``: the encoding is two fifths of the time of a small run."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(Figure, "savefig", blank)


@pytest.fixture
def pictures() -> None:
    """Figures are encoded as they are."""


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
    "algo.outer.episodes=1",
    "algo.inner.support.rollouts=2",
    "algo.inner.support.steps=6",
    "algo.query.envs=2",
    "algo.query.steps=5",
    "algo.query.capacity=60",
]
TINY_MEMORY = [o for o in TINY if not o.startswith(("learner.", "eval.steps", "test.steps"))]  # no learner, no gradient steps
TINY_REFERENCE = [o for o in TINY_MEMORY if not o.startswith(("env.", "train."))]  # nothing to train
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
TINY_GENOME = {  # by the part of the genome
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


# The same for an algorithm without an entry above: the largest value of each well-known size, by its key.
SIZES = {
    "batch": 8,
    "candidates": 2,
    "capacity": 60,
    "elites": 2,
    "env_steps": 4,
    "envs": 2,
    "episodes": 2,
    "epochs": 2,
    "hidden": 8,
    "iterations": 2,
    "minibatches": 2,
    "population": 6,
    "rollouts": 2,
    "segment": 6,
    "size": 8,
    "steps": 6,
    "tasks": 4,
    "update_tasks": 3,
    "updates": 2,
    "warmup": 1,
}
# One family of each kind of space: few and many numbers, actions as vectors, masked actions, an image, pixels as bytes.
KINDS = ("bandit", "cartpole_family", "pendulum_family", "classic_mix", "minigrid_four_rooms", "atari_flavours")


def options(group: str) -> list[str]:
    """The names one can choose in a config group."""
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))


ENVS = options("env")
VECTORS = {"cartpole_family": "pendulum_family", "navigation_2d": "navigation_2d_continuous"}


@cache
def written(group: str, option: str) -> dict[str, Any]:
    """The values of an option as its own file has them."""
    text = (CONF / group / f"{option}.yaml").read_text()
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}


def bases(group: str, option: str) -> list[str]:
    """What an option inherits from: other options, or a base that is none itself."""
    names = [name.removesuffix("@_here_") for name in written(group, option).get("defaults", []) if isinstance(name, str)]
    return [name for name in names if (CONF / group / f"{name}.yaml").is_file()]


@cache
def inherited(group: str, option: str) -> dict[str, Any]:
    """The values of an option over those of what it inherits from; read, not composed: collection has no time for that."""
    values: dict[str, Any] = {}
    for base in bases(group, option):
        values |= inherited(group, base)
    return values | written(group, option)


def variant(group: str, option: str) -> bool:
    """Whether an option is another one with a few values changed: it names no module, but inherits it."""
    return "module" not in written(group, option) and not {*bases(group, option)}.isdisjoint(options(group))


def slow_if(cases: Iterable[Any], slow: Callable[[Any], bool]) -> list[Any]:
    """Parameters of a test, those marked slow for which ``slow`` holds."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=[pytest.mark.slow] if slow(case) else [])
        for case in cases
    ]


def proof_if(cases: Iterable[Any], proof: Callable[[Any], bool]) -> list[Any]:
    """Parameters of a slow test, those marked as proofs for which ``proof`` holds."""
    return [pytest.param(case, marks=[pytest.mark.proof] if proof(case) else []) for case in cases]


def variants_slow(names: list[str]) -> list[Any]:
    """Algorithms as parameters of a test, variants of another one marked slow."""
    return slow_if(names, lambda name: variant("algo", name))


def fitting(algo: str, env: str = "cartpole_family") -> str:
    """The family ``env``, or one like it whose actions are vectors, where the learner of ``algo`` draws them; or a table."""
    if module(algo).Algo.adapts_by == "demonstrations":
        return "navigation_2d_continuous" if module(algo).Algo.uses_learner else "sprite_grid"
    learner = compose_values("train", [f"algo={algo}"]).get("learner")
    return VECTORS[env] if learner is not None and load("learner", learner)[0].Learner.draws else env


@cache
def module(algo: str) -> ModuleType:
    """The code of an option of ``conf/algo``."""
    return importlib.import_module(f"metarl_cli.algos.{inherited('algo', algo)['module']}")


def load(kind: str, values: dict[str, Any] | Group, place: str = "") -> tuple[ModuleType, Any]:
    """The module of a group and its ``Config``."""
    group = values if isinstance(values, Group) else registry.load(kind, values, place)
    return group.module, group.config


def tiny(algo: str) -> list[str]:
    """Overrides that make a run of ``algo`` small, whatever it has of what can be made small."""
    values = compose_values("train", [f"algo={algo}"])
    own = dict(values["algo"])
    life, genome = own.pop("lifetime", {}), own.pop("genome", {})
    more = TINY_ALGO[own["module"]] if own["module"] in TINY_ALGO else list(shrunk(own, "algo"))
    if life:
        more = [*more, *(TINY_LIFE[life["module"]] if life["module"] in TINY_LIFE else shrunk(life, "algo.lifetime"))]
    more = [*more, *(o for part in genome for o in TINY_GENOME.get(part, []))]
    return [override for override in [*TINY, *more] if has(values, override.split("=")[0])]


def has(values: Any, key: str) -> bool:
    """Whether a configuration uses a value, by its dotted key: it is there, and not null."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values is not None


def shrunk(values: dict[str, Any], place: str) -> Iterator[str]:
    """Overrides that make every well-known size in ``values`` as small as in ``SIZES``."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from shrunk(value, f"{place}.{key}")
        elif type(value) is int and value > SIZES.get(key, value):
            yield f"{place}.{key}={SIZES[key]}"


def algorithms(learns: bool = True, by: str | None = None) -> list[str]:
    """The algorithms that learn across tasks, or the references, which have nothing to learn; ``by`` one way to adapt alone."""
    found = {name: module(name).Algo for name in options("algo")}
    return [name for name, algorithm in found.items() if algorithm.learns == learns and by in (None, algorithm.adapts_by)]


def shortened(values):
    """The same family with episodes of at most 20 steps."""
    if isinstance(values, dict):
        return {k: min(v, 20) if k == "horizon" else shortened(v) for k, v in values.items()}
    return values


def short(name: str, native: bool = True):
    """A family of short episodes (``native`` ones too); skips the test where its simulator is not installed."""
    values = compose_values("train", [f"env={name}"])["env"]
    module, config = load("env", shortened(values) if native or values["module"] == "gymnasium" else values)
    try:
        return module.Family(config)
    except ValueError as error:
        if "pip install" not in str(error):
            raise
        pytest.skip(str(error))


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
    """A composed configuration as plain values, the caller's own."""
    return copy.deepcopy(_composed(command, tuple(overrides)))


@cache
def _composed(command: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        values = OmegaConf.to_container(compose(command, list(overrides)), resolve=True)
    assert isinstance(values, dict)
    return values  # type: ignore[return-value]


def compose_train(*overrides: str) -> TrainConfig:
    """A validated ``metarl train`` configuration."""
    return registry.validate(TrainConfig, compose_values("train", list(overrides)))


@pytest.fixture
def float64():
    """Everything new is float64 within the test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
