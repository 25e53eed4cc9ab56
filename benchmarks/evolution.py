"""Lifetimes per second of evolution as the population grows, beside EvoTorch on the same problem.

    python benchmarks/evolution.py                              both tables, some minutes
    python benchmarks/evolution.py policies --populations 16    some of it
    python benchmarks/evolution.py learners --algos evo_dqn

A lifetime is one individual's on one task, with the episode that its fitness is taken from.

*policies*: networks that do not learn, 4-32-32-2 with SiLU, greedy, judged by one episode of at most 500 steps on each of eight
tasks of ``cartpole_family``; SNES moves them. All contenders start from the same mean and deviations on the same tasks:

    metarl              algo=es_dqn algo/genome=[init] algo/lifetime=none algo/search=snes
    EvoTorch, native    its SNES, population and policy; fitness by metarl's CartPole, all episodes as one tensor until all end
    EvoTorch, dropping  the same, but that individuals whose episodes are over are left out as metarl does: its best case
    EvoTorch VecGymNE   Gymnasium's CartPole-v1 with the tasks' physics, in its vector environment: a copy for each individual
    EvoTorch GymNE      the same environment, one individual after another

Policies get better, and then their episodes longer. So a turn is a new search with the round's seed, one generation to warm up,
and a few that are timed. Contenders take turns and medians over all generations count; "x metarl" is the factor by which metarl
is faster, below 1 it is slower. Steps per lifetime say whether they had the same work. Where all episodes are one tensor, a
generation takes as long as its longest episode, a matter of chance: "sweeps/s" are steps of all that still run, at once.
Gymnasium's contenders, slower and steadier, take part in the first rounds alone.

*learners*: what EvoTorch has nothing of; ``conf/algo`` as it is but for the population, the network, and validation, which is
left out. A chunk is how many individuals are evaluated at once (``algo.chunk``).

Seconds are those of the processor, which other work on the machine disturbs less; one thread computes. EvoTorch is not needed
for metarl: install it in an environment of its own (``pip install evotorch`` beside this package); without it there is only
metarl's part.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import platform
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from statistics import median
from typing import Any, NamedTuple

import gymnasium
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn

from metarl_cli.cli.compose import conf_dir
from metarl_cli.cli.process import keep_memory
from metarl_cli.config.registry import load
from metarl_cli.interfaces import Context, Task
from metarl_cli.seeding import torch_rng

OURS, NATIVE, DROPPING = "metarl", "EvoTorch, native", "EvoTorch, dropping"
VECTOR, SINGLE = "EvoTorch VecGymNE", "EvoTorch GymNE"
TASKS = 8  # of a policy
HIDDEN = 32  # units of both layers
POLICIES = ["algo=es_dqn", "algo/genome=[init]", "algo/lifetime=none", "algo/search=snes", f"algo.tasks={TASKS}"]
POPULATIONS = [16, 64, 256, 1024]
LEARNERS = {"evo_dqn": POPULATIONS, "evo_hyper": [16, 64]}
CHUNK = 64  # individuals
CPU = torch.device("cpu")


class Contender(NamedTuple):
    """A search whose generations are timed."""

    generation: Callable[[], object]  # lives through one
    steps: Callable[[], int]  # of environments so far
    sweeps: Callable[[], int] = int  # steps of all environments at once so far; 0: they are not one tensor


class Speed(NamedTuple):
    """Medians over generations."""

    lifetimes: float  # per second
    steps: float  # of environments, per second
    length: float  # steps of a lifetime
    longest: float  # sweeps of a generation
    sweeps: float  # per second


def build(options: list[str], population: int, seed: int) -> Any:
    """The algorithm of a composed configuration on ``cartpole_family``, without validation."""
    shared = ["env=cartpole_family", f"learner.network.hidden=[{HIDDEN},{HIDDEN}]"]
    sizes = [f"algo.search.population={population}", "algo.validation.candidates=0"]
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        composed = compose("train", [*options, *shared, *sizes])
    values: dict[str, Any] = {k: OmegaConf.to_container(composed[k], resolve=True) for k in ("env", "learner", "algo")}
    env, learner, algo = (load(kind, group) for kind, group in values.items())
    family = env.module.Family(env.config, CPU)
    return algo.module.Algo(algo.config, Context(family, learner.module.Learner(learner.config, family.spec), 1, seed, CPU))


def ours(algorithm: Any, sweeps: Callable[[], int] = int) -> Contender:
    """metarl's own generations."""
    return Contender(algorithm.train_step, lambda: algorithm.env_steps, sweeps)


def counted(family: Any) -> Callable[[], int]:
    """How often any environments of a family have been stepped from now on."""
    make, steps = family.make, 0

    def made(*args: Any) -> Any:
        env = make(*args)
        step = env.step

        def counting(action: Tensor) -> Any:
            nonlocal steps
            steps += 1
            return step(action)

        env.step = counting
        return env

    family.make = made
    return lambda: steps


# -- EvoTorch


def network() -> nn.Sequential:
    """The policy of metarl's learner as a module: its parameters come in the order of the genes."""
    return nn.Sequential(nn.Linear(4, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, 2))


def rivals(algorithm: Any, seed: int, sweeps: Callable[[], int], all_of_them: bool) -> dict[str, Contender]:
    """EvoTorch's generations, on the tasks and from the start of an algorithm that has done nothing yet.

    Args:
        algorithm: metarl's.
        seed: of the search.
        sweeps: counts those of the algorithm's family.
        all_of_them: with those on Gymnasium's environments.
    """
    from evotorch import Problem
    from evotorch.algorithms import SNES
    from evotorch.neuroevolution import GymNE, VecGymNE
    from evotorch.neuroevolution.net.vecrl import Policy, SyncVectorEnv

    search, family, task = algorithm.search, algorithm.family, algorithm.task
    check_same(algorithm, Policy(network()))

    def native(drop: bool) -> Contender:
        policy, rng, spent = Policy(network()), torch_rng(seed, "episodes"), 0

        @torch.no_grad()
        def fitness(genomes: Tensor) -> Tensor:
            nonlocal spent
            genomes = genomes.as_subclass(torch.Tensor)  # it hands out a slower subclass
            policy.set_parameters(genomes)
            alive, returns = torch.arange(len(genomes)), torch.zeros(len(genomes), TASKS)
            env = family.make({name: value.repeat(len(genomes)) for name, value in task.items()}, 1, rng)
            total, running = returns.clone(), torch.ones_like(returns, dtype=torch.bool)  # of those alive
            for _ in range(family.spec.horizon):
                step = env.step(policy(env.obs.reshape(len(alive), TASKS, -1)).argmax(-1).reshape(-1, 1))
                total += step.reward.view_as(total) * running
                running &= ~(step.terminated | step.truncated).view_as(running)
                left = running.any(1)
                num = int(left.sum())
                if num == 0:
                    break
                if drop and 2 * num <= len(alive):
                    returns[alive] = total
                    alive, total, running = alive[left], total[left], running[left]
                    env.select_rows(left.repeat_interleave(TASKS))
                    policy.set_parameters(genomes[alive])
            returns[alive] = total
            spent += int(returns.sum())  # a reward of 1 for each step
            return returns.mean(1)

        size = len(search.mean)
        problem = Problem("max", fitness, solution_length=size, vectorized=True, dtype=torch.float32, seed=seed)
        return searching(problem, lambda: spent, sweeps)

    def copies(num_envs: int) -> SyncVectorEnv:  # as VecGymNE makes them of a name
        return SyncVectorEnv([lambda: Tasks(task)] * num_envs, empty_info=True, num_episodes=TASKS)

    def searching(problem: Problem, steps: Callable[[], int], sweeps: Callable[[], int] = int) -> Contender:
        problem.manual_seed(seed)
        searcher = SNES(problem, popsize=search.config.population, center_init=search.mean, stdev_init=search.sigma)
        return Contender(searcher.step, steps, sweeps)

    found = {NATIVE: native(drop=False), DROPPING: native(drop=True)}
    if all_of_them:
        vector = VecGymNE(copies, network, num_episodes=TASKS)
        single = GymNE(lambda: Tasks(task), network, num_episodes=TASKS)
        found[VECTOR] = searching(vector, lambda: vector.interaction_count)
        found[SINGLE] = searching(single, lambda: single.interaction_count)
    return found


class Tasks(gymnasium.Wrapper[Any, Any, Any, Any]):
    """CartPole-v1 whose physics are those of one task after another."""

    def __init__(self, task: Task):
        super().__init__(gymnasium.make("CartPole-v1"))
        rows = zip(*(value.tolist() for value in task.values()), strict=True)
        self.tasks = itertools.cycle([dict(zip(task, row, strict=True)) for row in rows])

    def reset(self, **options: Any) -> Any:
        physics = next(self.tasks)
        env: Any = self.unwrapped
        for name, value in physics.items():
            setattr(env, name, value)
        env.total_mass = physics["masspole"] + physics["masscart"]
        env.polemass_length = physics["masspole"] * physics["length"]
        return super().reset(**options)


def check_same(algorithm: Any, policy: Any) -> None:
    """Raises AssertionError where the genes do not mean the same policy to both."""
    rng = torch_rng(0, "check")
    genomes, obs = torch.randn(8, len(algorithm.search.mean), generator=rng), torch.randn(8, 64, 4, generator=rng)
    policy.set_parameters(genomes)
    mine = algorithm.learner.policy(algorithm.genome.decode(genomes)["init"], obs).mode()
    assert torch.equal(policy(obs).argmax(-1), mine)


# -- measuring


def measure(
    build_all: Callable[[int], dict[str, Contender]], lifetimes: int, rounds: int, timed: int, warm: int
) -> dict[str, Speed]:
    """Speeds of contenders that take turns.

    Args:
        build_all: makes them anew for a round, given its seed.
        lifetimes: of a generation.
        rounds: turns of each.
        timed: generations of a turn that count.
        warm: generations before those.
    """
    found: dict[str, list[tuple[float, int, int]]] = {}  # seconds, steps and sweeps of each generation
    for seed in range(rounds):
        for name, contender in build_all(seed).items():
            for _ in range(warm):
                contender.generation()
            for _ in range(timed):
                before = contender.steps(), contender.sweeps()
                began = time.process_time()
                contender.generation()
                took = time.process_time() - began
                found.setdefault(name, []).append((took, contender.steps() - before[0], contender.sweeps() - before[1]))
    return {
        name: Speed(
            lifetimes / median(seconds for seconds, _, _ in rows),
            median(steps / seconds for seconds, steps, _ in rows),
            median(steps for _, steps, _ in rows) / lifetimes,
            median(sweeps for _, _, sweeps in rows),
            median(sweeps / seconds for seconds, _, sweeps in rows),
        )
        for name, rows in found.items()
    }


def policies(populations: list[int], rounds: int, slow_rounds: int, timed: int) -> None:
    """The table beside EvoTorch."""
    there = find_spec("evotorch") is not None
    if there:
        import evotorch
        from evotorch.tools import set_default_logger_config

        set_default_logger_config(logger_level=logging.WARNING, override=True)
        version = f"EvoTorch {evotorch.__version__}"
    else:
        version = "EvoTorch is not installed (pip install evotorch, in an environment of its own): metarl alone"
    print(f"Policies that do not learn, {TASKS} tasks each; {version}, {machine()}.\n")
    head(
        "population", "contender", "lifetimes/s", "env steps/s", "steps per lifetime", "longest episode", "sweeps/s", "x metarl"
    )
    for population in populations:

        def build_all(seed: int, population: int = population) -> dict[str, Contender]:
            algorithm = build(POLICIES, population, seed)
            sweeps = counted(algorithm.family)
            others = rivals(algorithm, seed, sweeps, seed < slow_rounds) if there else {}
            return {OURS: ours(algorithm, sweeps), **others}

        found = measure(build_all, population * TASKS, rounds, timed, warm=1)
        for name, speed in found.items():
            sweeps = [f"{speed.longest:.0f}", f"{speed.sweeps:,.0f}"] if speed.longest else ["-", "-"]
            row(population, name, speed, *sweeps, f"{found[OURS].lifetimes / speed.lifetimes:.3g}")


def learners(algos: list[str], populations: list[int] | None, rounds: int) -> None:
    """The table of lifetimes in which something is learned."""
    print(f"Learners; {machine()}.\n")
    head("population", "algorithm", "lifetimes/s", "env steps/s", "steps per lifetime", "tasks", "chunk")
    for name in algos:
        brief = name != "evo_hyper"  # a generation takes seconds, not minutes
        for population, chunk in itertools.product(populations or LEARNERS[name], [None, CHUNK]):
            if chunk is not None and (population <= chunk or not brief):
                continue
            options = [f"algo={name}", f"algo.chunk={chunk or 'null'}"]
            tasks = build(options, population, 0).config.fitness.tasks

            def build_all(
                seed: int, name: str = name, options: list[str] = options, population: int = population
            ) -> dict[str, Contender]:
                return {name: ours(build(options, population, seed))}

            turns = min(rounds, max(1, 256 // population)) if brief else 1
            found = measure(build_all, population * tasks, turns, timed=1, warm=int(brief))
            row(population, name, found[name], f"{tasks}", f"{chunk or 'all'}")


def machine() -> str:
    return f"torch {torch.__version__}, {platform.machine()}, one thread"


def head(*columns: str) -> None:
    print("| " + " | ".join(columns) + " |\n|---:|---|" + "---:|" * (len(columns) - 2), flush=True)


def row(population: int, name: str, speed: Speed, *more: str) -> None:
    digits = 1 if speed.lifetimes < 100 else 0
    cells = [f"{population}", name, f"{speed.lifetimes:,.{digits}f}", f"{speed.steps:,.0f}", f"{speed.length:,.0f}", *more]
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", default=["policies", "learners"], metavar="TABLE", help="policies, learners")
    parser.add_argument(
        "--populations", nargs="+", type=int, help=f"default: {POPULATIONS}, of evo_hyper {LEARNERS['evo_hyper']}"
    )
    parser.add_argument("--algos", nargs="+", choices=LEARNERS, default=list(LEARNERS), help="learners")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each contender")
    parser.add_argument("--gymnasium-rounds", type=int, default=2, help="of these, with Gymnasium's environments")
    parser.add_argument("--generations", type=int, default=2, help="timed in a turn, of policies")
    args = parser.parse_args()
    if unknown := set(args.tables) - {"policies", "learners"}:
        parser.error(f"no such table: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    keep_memory()  # as metarl does in a run; all contenders have it
    warnings.filterwarnings("ignore", module="gymnasium")
    if "policies" in args.tables:
        policies(args.populations or POPULATIONS, args.rounds, args.gymnasium_rounds, args.generations)
        print()
    if "learners" in args.tables:
        learners(args.algos, args.populations, min(args.rounds, 3))


if __name__ == "__main__":
    main()
