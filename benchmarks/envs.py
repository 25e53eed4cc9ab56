"""Environment steps per second of every family in ``conf/env``, beside Gymnasium's own vector environments.

    python benchmarks/envs.py                                          every family, every shape: some minutes
    python benchmarks/envs.py acrobot_v1 pendulum_v1 --shapes 64x64    some of them
    python benchmarks/envs.py --seconds 2 --windows 5                  longer, for a busy machine

A shape is tasks x environments of each; Gymnasium runs as many copies of its nominal environment, in the family's wrappers, and
its own vectorised one, where it has one, at its defaults. All take random actions from the same function, one thread computes,
automatic resets included. In one run the contenders take turns in short windows, and the best window of each counts: what else
the machine does can only slow one down.

Ratios above 1 say that metarl is faster. A dash: Gymnasium has nothing of the kind to compare with.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import torch
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from metarl_cli.cli.compose import conf_dir
from metarl_cli.config.registry import load
from metarl_cli.seeding import numpy_rng, torch_rng
from metarl_cli.spaces import Spec, random_actions

# Gymnasium's environment behind each native module; families on simulators name their own
SAME_AS = {"cartpole": "CartPole-v1", "mountain_car": "MountainCar-v0", "acrobot": "Acrobot-v1", "pendulum": "Pendulum-v1"}
OURS, SYNC, ASYNC, VECTOR = "metarl", "SyncVectorEnv", "AsyncVectorEnv", "its own vectorised"
MOST_PROCESSES = 64  # an AsyncVectorEnv has one for each copy
MOST_SIMULATORS = 64  # copies of a simulator that is not tensors
AIM = 20  # times SyncVectorEnv, native families at the largest shape

Shape = tuple[int, int]  # tasks, envs
Stepper = Callable[[], object]
VectorEnv = gymnasium.vector.VectorEnv[Any, Any, Any]


def ours(family: Any, tasks: int, envs: int) -> Stepper:
    """One step of ``tasks x envs`` environments of a family."""
    env = family.make(family.sample_tasks(tasks, "train", numpy_rng(0, "tasks")), envs, torch_rng(0, "env"))
    rng = torch_rng(0, "act")
    return lambda: env.step(random_actions(family.spec, env.obs, rng))


def theirs(env: VectorEnv, spec: Spec) -> Stepper:
    """One step of a vector environment of Gymnasium's, with the same actions."""
    env.reset(seed=0)
    rng, like = torch_rng(0, "act"), torch.empty(1, env.num_envs)  # of one task
    return lambda: env.step(random_actions(spec, like, rng)[0].numpy())


def speeds(contenders: dict[str, Stepper], copies: int, seconds: float, windows: int) -> dict[str, float]:
    """Steps per second of each contender, the best of its windows; they take turns."""
    best = dict.fromkeys(contenders, 0.0)
    for step in contenders.values():
        step()
    for _ in range(windows):
        for name, step in contenders.items():
            steps, begin, elapsed = 0, time.perf_counter(), 0.0
            while elapsed < seconds:
                step()
                steps += 1
                elapsed = time.perf_counter() - begin
            best[name] = max(best[name], steps * copies / elapsed)
    return best


def rivals(key: str, build: Callable[[], gymnasium.Env[Any, Any]], copies: int) -> tuple[dict[str, VectorEnv], dict[str, str]]:
    """Gymnasium's vector environments of so many copies of what ``build`` gives, and a word for each that there cannot be."""
    make = [build] * copies
    envs: dict[str, VectorEnv] = {SYNC: SyncVectorEnv(make)}
    if copies <= MOST_PROCESSES:
        envs[ASYNC] = AsyncVectorEnv(make)
    if gymnasium.spec(key).vector_entry_point is not None:
        envs[VECTOR] = gymnasium.make_vec(key, num_envs=copies, vectorization_mode="vector_entry_point")
    return envs, {} if ASYNC in envs else {ASYNC: "too many processes"}


def measure(values: dict[str, Any], shape: Shape, seconds: float, windows: int) -> dict[str, float | str]:
    """Steps per second of a family and of its rivals, or a word where there are none."""
    copies = shape[0] * shape[1]
    if not native(values) and copies > MOST_SIMULATORS:
        return {OURS: "too many copies"}
    group = load("env", values)
    try:
        family = group.module.Family(group.config)
    except ValueError as error:
        if "pip install" not in str(error):
            raise
        return {OURS: "not installed"}
    envs: dict[str, VectorEnv] = {}
    words: dict[str, str] = {}
    if not native(values):  # the same environment, in the same wrappers
        nominal = {name: parameter.nominal for name, parameter in group.config.parameters.items()}
        envs, words = rivals(group.config.id, lambda: group.module.build(group.config, nominal), copies)
    elif key := SAME_AS.get(values["module"]):
        envs, words = rivals(key, lambda: gymnasium.make(key), copies)
    try:
        steppers = {OURS: ours(family, *shape), **{name: theirs(env, family.spec) for name, env in envs.items()}}
        return {**speeds(steppers, copies, seconds, windows), **words}
    finally:
        for env in envs.values():
            env.close()


def native(values: dict[str, Any]) -> bool:
    """Whether a family's physics are tensors, not a simulator."""
    return bool(values["module"] != "gymnasium")


def show(value: float | str | None) -> str:
    """A number of the table with thousands apart, a word, or a dash."""
    return "-" if value is None else value if isinstance(value, str) else f"{value:,.0f}"


def ratio(found: dict[str, float | str], rival: str) -> float | None:
    """How many times as fast as a rival."""
    mine, other = found.get(OURS), found.get(rival)
    return mine / other if isinstance(mine, float) and isinstance(other, float) else None


def parse(text: str) -> Shape:
    """``16x4`` as (16, 4)."""
    tasks, envs = text.split("x")
    return int(tasks), int(envs)


def values_of(name: str) -> dict[str, Any]:
    """The plain values of ``conf/env/NAME.yaml``."""
    values: Any = OmegaConf.to_container(compose("train", [f"env={name}"]).env, resolve=True)
    return dict(values)


def main() -> None:
    everything = sorted(p.stem for p in (Path(conf_dir()) / "env").glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=everything, metavar="FAMILY", help=f"of {', '.join(everything)}")
    parser.add_argument("--shapes", nargs="+", type=parse, default=[(1, 1), (16, 4), (64, 64)], help="tasks x envs, as 16x4")
    parser.add_argument("--seconds", type=float, default=0.5, help="of a window")
    parser.add_argument("--windows", type=int, default=3, help="of each contender, the best counts")
    args = parser.parse_args()
    if unknown := set(args.families) - set(everything):
        parser.error(f"no such family: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="gymnasium")
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        families = {name: values_of(name) for name in args.families}

    versions = f"Gymnasium {gymnasium.__version__}, torch {torch.__version__}"
    print(f"Environment steps per second; {versions}, {platform.machine()}, one thread.\n")
    names = (SYNC, ASYNC, VECTOR)
    columns = ["family", "tasks x envs", OURS, *names, *(f"x {name}" for name in names)]
    print("| " + " | ".join(columns) + " |\n" + "|---|---" + "|---:" * (len(columns) - 2) + "|", flush=True)
    largest = max(args.shapes, key=math.prod)
    summary = []
    for name, values in families.items():
        for shape in args.shapes:
            found = measure(values, shape, args.seconds, args.windows)
            ratios = [ratio(found, rival) for rival in names]
            cells = [name, "x".join(map(str, shape)), *(show(found.get(k)) for k in (OURS, *names))]
            print("| " + " | ".join(cells + ["-" if r is None else f"{r:.3g}" for r in ratios]) + " |", flush=True)
            if native(values) and shape == largest and ratios[0] is not None:
                verdict = "" if ratios[0] >= AIM else ", short of the aim"
                summary.append(f"- {name}: {ratios[0]:.0f}{verdict}")
    if summary:
        print(f"\nNative families at {'x'.join(map(str, largest))}, times {SYNC} (aim: at least {AIM}):")
        print("\n".join(summary))


if __name__ == "__main__":
    main()
