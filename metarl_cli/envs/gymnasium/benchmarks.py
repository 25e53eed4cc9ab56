"""Benchmarks that bring their own training and test tasks, as Meta-World does (Yu and others 2019, arXiv:1910.10897).

A benchmark is a class of a package. It has ``train_tasks`` and ``test_tasks``, lists of tasks with an ``env_name``, and
``train_classes`` and ``test_classes``, the environments by these names, whose method ``set_task`` takes a task.

The tasks of an environment are numbered, those of training first: ML10 has 50 of each of its 15 environments, all of training
or all of test; ML1 has 50 of training and 50 of test, of one environment.
"""

from __future__ import annotations

import importlib
import inspect
import json
from functools import lru_cache
from typing import Any

import gymnasium

from metarl_cli.config.messages import known_options
from metarl_cli.envs import packages

ID = "metarl/Benchmark"
PARTS = "train_classes", "train_tasks", "test_classes", "test_tasks"


def register(name: str) -> None:
    """Register the environment with Gymnasium, if ``name`` is its own."""
    if name == ID and name not in gymnasium.registry:
        gymnasium.register(ID, f"{__name__}:{task_of.__name__}")


def task_of(
    benchmark: str, env_name: str, task: int, arguments: dict[str, Any] | None = None, render_mode: str | None = None
) -> gymnasium.Env[Any, Any]:
    """Return an environment that has been given one of a benchmark's tasks.

    Args:
        benchmark: the class with the package it comes from, such as ``metaworld.ML10``.
        env_name: the environment, one of those of the benchmark.
        task: the number of the task among those of the environment.
        arguments: of the benchmark.
        render_mode: of the environment.

    Raises:
        ValueError: if there is no such benchmark, environment or task, or the package may not be imported.
    """
    classes, tasks = _load(benchmark, json.dumps(arguments or {}, sort_keys=True))
    if env_name not in classes:
        raise ValueError(f"{benchmark} has no environment {env_name}{known_options(env_name, classes)}")
    own = [each for each in tasks if each.env_name == env_name]
    if not 0 <= task < len(own):
        raise ValueError(f"{benchmark} has {len(own)} tasks of {env_name}, from 0 on; got {task}")
    made: Any = classes[env_name](**({"render_mode": render_mode} if render_mode else {}))
    made.set_task(own[task])
    env: gymnasium.Env[Any, Any] = made
    return env


@lru_cache(maxsize=4)
def _load(benchmark: str, arguments: str) -> tuple[dict[str, Any], list[Any]]:
    """Return the environments of a benchmark by their names, and all tasks; drawing these takes seconds."""
    package, _, name = benchmark.rpartition(".")
    if package.count(".") or not package:
        raise ValueError(f"benchmark={benchmark} must be a package and its class, such as metaworld.ML10")
    packages.load(package)
    kind: Any = getattr(importlib.import_module(package), name, None)
    is_class = inspect.isclass(kind)
    if not is_class or not all(hasattr(kind, part) for part in PARTS):
        raise ValueError(f"{benchmark} is no class with {', '.join(PARTS)}")
    made = kind(**json.loads(arguments))
    return {**made.train_classes, **made.test_classes}, [*made.train_tasks, *made.test_tasks]
