"""Environment steps per second of every family in ``conf/env``, beside Gymnasium's own vector environments.

    python benchmarks/envs.py                                          every family, every shape: some minutes
    python benchmarks/envs.py acrobot_v1 pendulum_v1 --shapes 64x64    some of them
    python benchmarks/envs.py cartpole_v1 --shapes 16x4 64x64 256x256 --out benchmarks/results/envs.json
    python benchmarks/envs.py --seconds 2                              longer, for a busy machine

A shape is tasks x environments of each; Gymnasium runs as many copies of its nominal environment, in the family's wrappers, and
its own vectorised one, where it has one, at its defaults. All take the same random actions, drawn beforehand, one thread
computes, automatic resets included. In one run the contenders take turns in short windows, and medians over the windows count;
a ratio is the median of the ratios in each window. ``--out`` writes the rows with the least and the greatest, too.

Ratios above 1 say that metarl is faster. A dash: Gymnasium has nothing of the kind to compare with. MuJoCo's bodies are beside
bare ``mj_step`` and envpool, with one thread and with two, in a table of their own: ``python benchmarks/speed bodies``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import gymnasium
import torch
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from metarl_cli.cli.compose import conf_dir
from metarl_cli.cli.process import keep_memory
from metarl_cli.config.registry import load
from metarl_cli.envs.gymnasium.build import build
from metarl_cli.seeding import numpy_rng, torch_rng
from metarl_cli.spaces import Spec

# Gymnasium's environment behind each native module; families on simulators name their own
SAME_AS = {  # module, or body -> what steps the same
    **{"cartpole": "CartPole-v1", "mountain_car": "MountainCar-v0", "acrobot": "Acrobot-v1", "pendulum": "Pendulum-v1"},
    **{"half_cheetah": "HalfCheetah-v5", "ant": "Ant-v5", "hopper": "Hopper-v5", "walker2d": "Walker2d-v5"},
    **{"humanoid": "Humanoid-v5", "reacher": "Reacher-v5"},
}
OURS, SYNC, ASYNC, VECTOR = "metarl", "SyncVectorEnv", "AsyncVectorEnv", "its own vectorised"
MOST_PROCESSES = 64  # an AsyncVectorEnv has one for each copy
MOST_SIMULATORS = 64  # copies of a simulator that is not tensors
MOST_OBJECTS = 4096  # copies in a SyncVectorEnv
ACTIONS = 16  # drawn beforehand, for every environment
AIM = 20  # times SyncVectorEnv, native families at the largest shape

Shape = tuple[int, int]  # tasks, envs
Stepper = Callable[[], object]
Found = dict[str, list[float] | str]  # contender -> steps per second in each window, or why there are none
VectorEnv = gymnasium.vector.VectorEnv[Any, Any, Any]


def ours(family: Any, tasks: int, envs: int) -> Stepper:
    """One step of ``tasks x envs`` environments of a family."""
    env = family.make(family.sample_tasks(tasks, "train", numpy_rng(0, "tasks")), envs, torch_rng(0, "env"))
    rng, space = torch_rng(0, "act"), family.spec.actions
    if getattr(space, "masked", False):  # what is legal depends on the observation
        return lambda: env.step(space.random(env.obs, rng))
    actions = itertools.cycle([space.random(env.obs, rng) for _ in range(ACTIONS)])
    return lambda: env.step(next(actions))


def theirs(env: VectorEnv, spec: Spec) -> Stepper:
    """One step of a vector environment of Gymnasium's, with the same actions."""
    env.reset(seed=0)
    rng, like = torch_rng(0, "act"), torch.empty(1, env.num_envs)  # of one task
    actions = itertools.cycle([spec.actions.random(like, rng)[0].numpy() for _ in range(ACTIONS)])
    return lambda: env.step(next(actions))


def speeds(contenders: dict[str, Stepper], copies: int, seconds: float, windows: int) -> dict[str, list[float]]:
    """Steps per second of each contender in each window; they take turns."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for step in contenders.values():
        step()
    for _ in range(windows):
        for name, step in contenders.items():
            steps, begin, elapsed = 0, time.perf_counter(), 0.0
            while elapsed < seconds:
                step()
                steps += 1
                elapsed = time.perf_counter() - begin
            found[name].append(steps * copies / elapsed)
    return found


def rivals(key: str, build: Callable[[], gymnasium.Env[Any, Any]], copies: int) -> tuple[dict[str, VectorEnv], dict[str, str]]:
    """Gymnasium's vector environments of so many copies of what ``build`` gives, and a word for each that there cannot be."""
    make = [build] * copies
    envs: dict[str, VectorEnv] = {}
    words = {SYNC: "too many copies", ASYNC: "too many processes"}
    if copies <= MOST_OBJECTS:
        envs[SYNC] = SyncVectorEnv(make)
    if copies <= MOST_PROCESSES:
        envs[ASYNC] = AsyncVectorEnv(make)
    if gymnasium.spec(key).vector_entry_point is not None:
        envs[VECTOR] = gymnasium.make_vec(key, num_envs=copies, vectorization_mode="vector_entry_point")
    return envs, {name: word for name, word in words.items() if name not in envs}


def measure(values: dict[str, Any], shape: Shape, seconds: float, windows: int) -> Found:
    """Steps per second of a family and of its rivals in each window, or a word where there are none."""
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
        envs, words = rivals(group.config.id, lambda: build(group.config, nominal), copies)
    elif key := SAME_AS.get(values.get("body", values["module"])):
        envs, words = rivals(key, lambda: gymnasium.make(key), copies)
    try:
        steppers = {OURS: ours(family, *shape), **{name: theirs(env, family.spec) for name, env in envs.items()}}
        return {**speeds(steppers, copies, seconds, windows), **words}
    finally:
        for env in envs.values():
            env.close()


def native(values: dict[str, Any]) -> bool:
    """Whether a family's physics are tensors, not a simulator."""
    return values["module"] not in ("gymnasium", "mujoco")


def show(value: list[float] | str | None) -> str:
    """The median with commas between the thousands, a word, or a dash."""
    return "-" if value is None else value if isinstance(value, str) else f"{median(value):,.0f}"


def ratios(found: Found, rival: str) -> list[float]:
    """How many times as fast as a rival in each window; empty where one of the two was not measured."""
    mine, other = found.get(OURS), found.get(rival)
    return [a / b for a, b in zip(mine, other, strict=True)] if isinstance(mine, list) and isinstance(other, list) else []


def spread(values: list[float]) -> dict[str, float]:
    """The median, the least and the greatest."""
    return {"median": median(values), "least": min(values), "greatest": max(values)}


def record(name: str, shape: Shape, found: Found) -> dict[str, Any]:
    """A row of the table for ``--out``."""
    return {
        "family": name,
        "tasks": shape[0],
        "envs": shape[1],
        "steps_per_second": {key: value if isinstance(value, str) else spread(value) for key, value in found.items()},
        "times_as_fast_as": {rival: spread(of) for rival in (SYNC, ASYNC, VECTOR) if (of := ratios(found, rival))},
    }


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
    parser.add_argument("--windows", type=int, default=5, help="of each contender, the median counts")
    parser.add_argument("--out", type=Path, help="a JSON file to write the rows to")
    args = parser.parse_args()
    if unknown := set(args.families) - set(everything):
        parser.error(f"no such family: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    keep_memory()  # as metarl does in a run; all contenders have it
    warnings.filterwarnings("ignore", module="gymnasium")
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        families = {name: values_of(name) for name in args.families}

    versions = f"Gymnasium {gymnasium.__version__}, torch {torch.__version__}"
    machine = f"{platform.machine()}, one thread"
    print(f"Environment steps per second; {versions}, {machine}.\n")
    names = (SYNC, ASYNC, VECTOR)
    columns = ["family", "tasks x envs", OURS, *names, *(f"x {name}" for name in names)]
    print("| " + " | ".join(columns) + " |\n" + "|---|---" + "|---:" * (len(columns) - 2) + "|", flush=True)
    largest = max(args.shapes, key=math.prod)
    summary, rows = [], []
    for name, values in families.items():
        for shape in args.shapes:
            found = measure(values, shape, args.seconds, args.windows)
            rows.append(record(name, shape, found))
            times = [ratios(found, rival) for rival in names]
            cells = [name, "x".join(map(str, shape)), *(show(found.get(k)) for k in (OURS, *names))]
            print("| " + " | ".join(cells + [f"{median(of):.3g}" if of else "-" for of in times]) + " |", flush=True)
            if native(values) and shape == largest and times[0]:
                verdict = "" if median(times[0]) >= AIM else ", short of the aim"
                summary.append(f"- {name}: {median(times[0]):.0f}{verdict}")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        about = {"versions": versions, "machine": machine, "seconds": args.seconds, "windows": args.windows}
        args.out.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")
    if summary:
        print(f"\nNative families at {'x'.join(map(str, largest))}, times {SYNC} (aim: at least {AIM}):")
        print("\n".join(summary))


if __name__ == "__main__":
    main()
