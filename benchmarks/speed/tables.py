"""What is compared: every table is data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

OURS, COMPILED, THREADS = "metarl", "metarl, compiled", "metarl, 2 threads"
REFERENCES = {COMPILED: "compiled over it", THREADS: "2 threads over it"}  # contenders with a column -> its name
COMPILE = "hardware.compile=true"
OLD = "12eab77"  # the revision that iterations are compared with


@dataclass(frozen=True)
class Entry:
    """A contender: a script of ``contenders/`` in an environment, with its options."""

    name: str
    environment: str  # metarl: the one that runs the benchmarks; else a file of benchmarks/peers
    script: str
    options: dict[str, Any] = field(default_factory=dict)
    revision: str | None = None  # of metarl; none: the working tree
    processes: int = 0  # under torchrun; 0: without it
    cores: int = 1  # that it may use, where it is not under torchrun


@dataclass(frozen=True)
class Case:
    """Contenders that do the same work."""

    name: str
    entries: list[Entry]
    count: int | None = None  # units of a repetition; none: as many as take long enough
    unit: str = ""  # of the work, where the table's cases differ


@dataclass(frozen=True)
class Table:
    """Cases that are shown together."""

    title: str
    unit: str  # of the work
    cases: list[Case]
    milliseconds: bool = False  # show those of a unit instead of units per second
    limit: str = ""  # the contender that does nothing but the arithmetic; its unit is an operation


def ours(name: str = OURS, processes: int = 0, **options: Any) -> Entry:
    """metarl as a contender."""
    return Entry(name, "metarl", "ours", options, processes=processes)


def compiled(entry: Entry) -> Entry:
    """The same with ``hardware.compile``."""
    return replace(entry, name=COMPILED, options={**entry.options, "overrides": [*entry.options["overrides"], COMPILE]})


def dqn(networks: int) -> Case:
    endless = "train.iterations=100000"  # so that learning rates do not reach their end
    overrides = ["experiment=dqn_cartpole_v1", f"algo.tasks={networks}", "learner.double=false", endless]
    mine = ours(kind="training", overrides=overrides, unit="env steps", warm=5)
    peers = [Entry("Stable-Baselines3", "torch", "dqn_sb3"), Entry("Rejax", "jax", "dqn_rejax", {"networks": networks})]
    return Case("1 network" if networks == 1 else f"{networks} networks", [mine, compiled(mine), *peers])


def meta_gradient(tasks: int) -> Case:
    shape = {"tasks": tasks, "steps": 1, "length": 32, "envs": 8, "query": 64, "hidden": 64}
    mine = ours(kind="meta_gradient", overrides=[], **shape)
    entries = [mine, compiled(mine)]
    entries += [Entry(name, "torch", "meta_peers", {**shape, "library": name.lower()}) for name in ("TorchOpt", "higher")]
    return Case(f"M = {tasks}", [*entries, Entry("large products", "metarl", "product")])


def iteration(name: str, unit: str, revision: str, overrides: list[str] | None = None, count: int = 1, warm: int = 2) -> Case:
    mine = ours(kind="training", overrides=overrides or [f"experiment={name}"], unit=unit, warm=warm)
    old = replace(mine, name=f"metarl {revision}", revision=revision)
    return Case(name, [mine, compiled(mine), old], count, unit)


def recurrent_ppo(work: str, *more: str, trials: int = 256, minibatches: int = 4) -> Case:
    overrides = ["experiment=rl2_bandit_n100_k5", f"algo.tasks={trials}", f"algo.ppo.minibatches={minibatches}", *more]
    mine = ours(kind="training", overrides=overrides, unit="env steps", warm=1)
    peer = Entry("RecurrentPPO", "torch", "recurrent_ppo", {"trials": trials, "minibatches": minibatches})
    return Case(work, [mine, compiled(mine), peer], 1)


def evolution(population: int) -> Case:
    parts = ["algo/genome=[init]", "algo/lifetime=none", "algo/search=snes", "algo.tasks=8", "algo.validation.candidates=0"]
    network = ["learner.network.hidden=[32,32]", f"algo.search.population={population}"]
    overrides = ["algo=es_dqn", "env=cartpole_family", *parts, *network]
    shape = {"population": population}
    mine = ours(kind="evolution", overrides=overrides)
    entries = [
        mine,
        compiled(mine),
        Entry("evosax", "jax", "evolution_evosax", shape),
        Entry("EvoTorch, one tensor", "torch", "evolution_evotorch", {**shape, "kind": "tensor"}),
        Entry("EvoTorch, VecGymNE", "torch", "evolution_evotorch", {**shape, "kind": "gymnasium"}),
    ]
    return Case(f"{population:,} individuals", entries, 2)


def stepping(tasks: int, envs: int) -> Case:
    shape = {"shape": [tasks, envs], "steps": 64}
    mine = ours(kind="stepping", overrides=["algo=dqn", "env=cartpole_v1"], **shape)
    peers = [
        Entry("Gymnasium, vectorised", "torch", "stepping_gymnasium", shape),
        Entry("gymnax, one scan", "jax", "stepping_gymnax", shape),
    ]
    return Case(f"{tasks * envs:,} CartPoles", [mine, compiled(mine), *peers])


EPISODE = 50  # control steps of a body


def bodies(name: str, family: str) -> Case:
    """Control steps of 64 copies of a body, in episodes of 50 steps that a fall does not end."""
    shape = {"id": name, "copies": 64, "steps": EPISODE}
    overrides = ["algo=robust_pg", f"env={family}", f"env.horizon={EPISODE}", "env.terminate=false"]
    mine = ours(kind="stepping", overrides=overrides, shape=[1, 64], steps=EPISODE, nominal=True)
    threaded = {**mine.options, "overrides": [*overrides, "hardware.threads=2"]}
    entries = [mine, replace(mine, name=THREADS, options=threaded, cores=2)]
    for kind in ("mj_step", "mj_step, warm start", "gymnasium.make", "SyncVectorEnv", "AsyncVectorEnv"):
        entries.append(Entry(kind, "metarl", "stepping_bodies", {**shape, "kind": kind}))
    pool = Entry("envpool", "envpool", "stepping_envpool", {**shape, "threads": 1})
    twice = replace(pool, name="envpool, 2 threads", options={**shape, "threads": 2}, cores=2)
    return Case(name, [*entries, pool, twice])


def processes(name: str, overrides: list[str], most: int = 2) -> Case:
    options = {"kind": "training", "overrides": overrides, "unit": "iterations", "warm": 2}
    many = ours(f"{most} processes", processes=most, **options)
    return Case(name, [many, ours("1 process", processes=1, **options)], 1)


GROWTH = {  # what grows -> its values, and the options that it sets
    "M, tasks": [1, 2, 4, 8, 16, 32, 64, 128],
    "N, support transitions": [8, 16, 32, 64, 128, 256, 512, 1024],
    "K, inner steps": [1, 2, 4, 8, 16],
    "units of a layer": [16, 32, 64, 128, 256, 512],
    "P, individuals": [16, 32, 64, 128, 256, 512],
}


def growth(axis: str, value: int) -> Case:
    """One point of a curve; what does not grow is 8 tasks, 1 step, 256 transitions and 64 units."""
    name = f"{axis} = {value}"
    if axis.startswith("P"):
        overrides = ["experiment=evo_dqn_cartpole", f"algo.search.population={value}", "algo.validation.candidates=0"]
        return Case(name, [ours(kind="training", overrides=overrides, unit="iterations")])
    shape = {"tasks": 8, "steps": 1, "length": 32, "envs": 8, "query": 64, "hidden": 64}
    shape |= {"M": {"tasks": value}, "N": {"length": value // 8}, "K": {"steps": value}, "u": {"hidden": value}}[axis[0]]
    return Case(name, [ours(kind="meta_gradient", overrides=[], **shape)])


def tables(revision: str = OLD) -> dict[str, Table]:
    """Every table by the word that is typed for it."""
    first = ["algo=maml_dqn", "env=cartpole_family"]
    return {
        "dqn": Table("DQN on CartPole-v1, networks of 64 x 64", "env steps", [dqn(1), dqn(16)]),
        "meta_gradient": Table(
            "The meta-gradient of MAML-DQN", "meta-gradients", [meta_gradient(4), meta_gradient(20)], True, "large products"
        ),
        "iteration": Table(
            f"Whole iterations, beside revision {revision}",
            "",
            [
                iteration("README's first command", "iterations", revision, first),
                iteration("maml_dqn_cartpole", "iterations", revision),
                iteration("rl2_bandit_n100_k5", "env steps", revision),
                iteration("rl2_cartpole", "env steps", revision),
                iteration("es_dqn_cartpole", "env steps", revision, count=10),
                iteration("evo_dqn_cartpole", "env steps", revision, count=4),
            ],
        ),
        "recurrent_ppo": Table(
            "RL² on bandits",
            "env steps",
            [
                recurrent_ppo("256 trials of 100 pulls"),
                recurrent_ppo("the same, without the prediction of rewards", "algo.ppo.predict_weight=0"),
            ],
        ),
        "evolution": Table("Evolution of policies that do not learn", "lifetimes", [evolution(64), evolution(1024)]),
        "stepping": Table("Stepping CartPoles", "env steps", [stepping(16, 4), stepping(64, 64), stepping(256, 256)]),
        "bodies": Table(
            "Stepping MuJoCo's bodies",
            "control steps",
            [
                bodies("HalfCheetah-v5", "half_cheetah_vel"),
                bodies("Ant-v5", "ant_dir"),
                bodies("Hopper-v5", "hopper_params"),
                bodies("Walker2d-v5", "walker_params"),
                bodies("Humanoid-v5", "humanoid_dir"),
                bodies("Reacher-v5", "reacher_goal"),
            ],
        ),
        "processes": Table(
            "Several processes in one run",
            "iterations",
            [
                processes("maml_dqn_cartpole, 32 tasks an update", ["experiment=maml_dqn_cartpole", "algo.outer.tasks=32"]),
                processes("rl2_bandit_n100_k5", ["experiment=rl2_bandit_n100_k5"]),
                processes("the same, a memory of 256 units", ["experiment=rl2_bandit_n100_k5", "algo.memory.size=256"]),
            ],
        ),
        "growth": Table(
            "Growth of time and memory",
            "computations",
            [growth(axis, value) for axis, values in GROWTH.items() for value in values],
            milliseconds=True,
        ),
    }
