"""Speed of RL²: its memories alone, and its training iterations, where their time goes and how near they are to the arithmetic.

    python benchmarks/rl2.py                                            both tables, some minutes
    python benchmarks/rl2.py --tables memories                          the memories alone
    python benchmarks/rl2.py --tables iterations --envs bandit --cells gru lstm --sizes 64
    python benchmarks/rl2.py --device cuda --trials 4096

*Memories*: milliseconds of a scan over sequences of 100 steps, forward and backward as in learning, and microseconds of a step
without gradients as in acting, by the rows of a minibatch.

*Iterations*: environment steps per second. An iteration is ``train_step()`` of ``conf/algo/rl2.yaml`` with trials of 100 steps.
Its parts:

    acting      inputs, memory, policy, sampling, keeping what happened
    stepping    drawing tasks, starting and stepping environments
    learning    advantages, and PPO's updates

Two limits, in the same steps per second, from rates measured just before each row. *Products*: the floating-point operations of
the iteration's matrix products at the rate of one large product. *Squashing too*: and its sigmoids and hyperbolic tangents (a
transformer's GELUs and exponentials), forward, at the rate of a sigmoid over a tensor that fits the cache. Neither counts other
element-wise operations, nor that a memory's products are small and wait for one another. A share of a limit is the share of
the iteration that this arithmetic would take alone.

The memories take turns in one process, one thread computes, and medians count; the last column is the speed over that of the
first memory. On CPU seconds are those of the processor, which other work on the machine disturbs less; on a GPU they are the
clock's, and parts wait for its work to end. The memory of freed tensors is kept, as in a run of ``metarl``.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from statistics import median
from typing import Any, NamedTuple
from unittest import mock

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor

from metarl_cli.adaptation.memory import collect_trials
from metarl_cli.algos import rl2
from metarl_cli.cli.compose import conf_dir
from metarl_cli.cli.process import keep_memory
from metarl_cli.config.registry import load
from metarl_cli.interfaces import Context
from metarl_cli.networks.memory import Memory, build_memory
from metarl_cli.networks.memory_config import MemoryConfig
from metarl_cli.networks.stacked import detached

STEPS = 100  # of a trial
ENVS = {"bandit": ["env.arms=5", "algo.episodes=100"], "tabular_mdp": ["algo.episodes=10"]}
TRIALS = {64: 512, 256: 256}  # of an iteration, by the memory's size
INPUTS = 13  # of a memory alone, about those of the experiments
ITERATIONS = 100  # of the run whose schedules it follows


def clock(device: torch.device) -> float:
    """Seconds, with nothing left to do on the device."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class Contender:
    """An algorithm whose iterations are measured, part by part."""

    def __init__(self, algorithm: Any, device: torch.device):
        self.algorithm, self.device = algorithm, device
        self.seconds: dict[str, list[float]] = {}  # by part, of each iteration
        self.parts: dict[str, float] = {}  # of this iteration
        family = algorithm.family
        make, sample_tasks = family.make, family.sample_tasks

        def made(*args: Any) -> Any:
            env = make(*args)
            env.step = self.timed("steps", env.step)
            return env

        family.make = self.timed("steps", made)
        family.sample_tasks = self.timed("tasks", sample_tasks)
        self.collect = self.timed("trials", collect_trials)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, whose time adds to a part."""

        def wrapped(*args: Any) -> Any:
            began = clock(self.device)
            found = function(*args)
            self.parts[name] = self.parts.get(name, 0.0) + clock(self.device) - began
            return found

        return wrapped

    def iterate(self) -> None:
        """One iteration."""
        self.parts = {}
        began = clock(self.device)
        with mock.patch.object(rl2, "collect_trials", self.collect):
            self.algorithm.train_step()
        total, parts = clock(self.device) - began, self.parts
        found = {
            "iteration": total,
            "acting": parts["trials"] - parts["steps"],
            "stepping": parts["steps"] + parts["tasks"],
            "learning": total - parts["trials"] - parts["tasks"],
        }
        for name, value in found.items():
            self.seconds.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        """Seconds of a part."""
        return median(self.seconds[name])


def build(env: str, cell: str, size: int, trials: int, device: torch.device) -> Any:
    """The algorithm of a composed configuration, past its first iteration, which does not learn."""
    shape = [f"algo.memory.cell={cell}", f"algo.memory.size={size}", f"algo.tasks={trials}", "algo.envs=1"]
    composed = compose("train", ["algo=rl2", f"env={env}", *ENVS[env], *shape])
    values: dict[str, Any] = {group: OmegaConf.to_container(composed[group], resolve=True) for group in ("env", "algo")}
    env, algo = (load(kind, group) for kind, group in values.items())
    algorithm = algo.module.Algo(algo.config, Context(env.module.Family(env.config, device), None, ITERATIONS, 0, device))
    algorithm.train_step()
    return algorithm


def memories(cells: list[str], sizes: list[int], rows: list[int], device: torch.device, repeats: int) -> None:
    """Print the table of memories; each cell takes one turn per repeat."""
    columns = ["size", "rows", *(f"{cell}: scan [ms]" for cell in cells), *(f"{cell}: step [us]" for cell in cells)]
    print("| " + " | ".join(columns) + " |\n" + "|---:" * len(columns) + "|", flush=True)
    for size, number in product(sizes, rows):
        x, direction = (torch.randn(STEPS, number, units, device=device) for units in (INPUTS, size))
        scans, steps = [], []
        for cell in cells:
            config = MemoryConfig(cell=cell, size=size, layers=1, timescale=STEPS, heads=4, context=STEPS)
            memory = build_memory(config, INPUTS)
            drawn = memory.init(torch.Generator(device).manual_seed(0))
            scans.append(partial(learn, memory, {k: v.requires_grad_() for k, v in drawn.items()}, x, direction))
            steps.append(partial(act, memory, detached(drawn), x))
        found = [f"{1e3 * seconds:.1f}" for seconds in turns(scans, device, repeats)]
        found += [f"{1e6 * seconds / STEPS:.0f}" for seconds in turns(steps, device, repeats)]
        print("| " + " | ".join([f"{size}", f"{number}", *found]) + " |", flush=True)


def learn(memory: Memory, params: dict[str, Tensor], x: Tensor, direction: Tensor) -> None:
    """Differentiate a scan."""
    features = memory.scan(params, x, memory.start(x.shape[1], x.device))
    torch.autograd.grad(features, list(params.values()), direction)


@torch.no_grad()
def act(memory: Memory, params: dict[str, Tensor], x: Tensor) -> None:
    """Take every step of a trial."""
    state = memory.start(x.shape[1], x.device)
    for x_t in x:
        _, state = memory.step(params, x_t, state)


def turns(functions: list[Callable[[], object]], device: torch.device, repeats: int) -> list[float]:
    """Median seconds of each function; they take turns, after one turn that is not counted."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats + 1):
        for function, found in zip(functions, seconds, strict=True):
            began = clock(device)
            function()
            found.append(clock(device) - began)
    return [median(found[1:]) for found in seconds]


class Work(NamedTuple):
    """What an iteration cannot do without."""

    operations: float  # floating-point, of matrix products
    squashed: float  # numbers


def work(algorithm: Any, trials: int) -> Work:
    """Counted from the weights: each entry of a matrix is a multiplication and an addition at every step.

    Acting goes forward through the memory and the policy. Learning goes forward through the policy and the value function
    once, then in every epoch forward through everything and back, which is twice as much, but for the inputs' own gradient.
    """
    memory, epochs = algorithm.config.memory, algorithm.config.ppo.epochs
    sizes = {name: value.numel() for name, value in algorithm.params.items() if value.dim() == 2}
    remember = float(sum(number for name, number in sizes.items() if name.startswith("memory.")))
    heads = sum(sizes.values()) - remember
    inputs = algorithm.agent.inputs.size * (
        memory.size if memory.cell == "transformer" else sizes["memory.0.weight_hh"] / memory.size
    )
    squashed = {"gru": 3 * memory.size, "lstm": 5 * memory.size, "transformer": 4 * memory.size}[memory.cell]
    if memory.cell == "transformer":
        seen = (STEPS + 1) / 2  # steps attended to, on average
        remember += memory.layers * 2 * seen * memory.size
        squashed += memory.heads * seen
    entries = remember + sizes["policy.weight"] + heads + epochs * (3 * (remember + heads) - inputs)
    return Work(2 * entries * trials * STEPS, memory.layers * squashed * (1 + epochs) * trials * STEPS)


def fastest(function: Callable[[], object], device: torch.device, seconds: float = 0.3) -> float:
    """Seconds of a call, the fastest one: what else the machine does can only slow it down."""
    best, end = float("inf"), clock(device) + seconds
    while (began := clock(device)) < end:
        function()
        best = min(best, clock(device) - began)
    return best


def rates(device: torch.device) -> tuple[float, float]:
    """Floating-point operations per second of a large float32 product, and numbers per second of a sigmoid."""
    size = 1024 if device.type == "cpu" else 8192
    a, b = torch.ones(2, size, size, device=device)
    products: list[Callable[[], object]] = [lambda: a @ b]
    if device.type == "cpu" and hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # oneDNN's, where MKL's is the slower one
        products.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    numbers = torch.ones(2**15 if device.type == "cpu" else 2**26, device=device)
    squashing = fastest(numbers.sigmoid_, device)
    return 2 * size**3 / min(fastest(f, device) for f in products), numbers.numel() / squashing


def iterations(
    cells: list[str], envs: list[str], sizes: list[int], trials: int | None, device: torch.device, repeats: int
) -> None:
    """Print the table of iterations; the memories of a family and a size take turns."""
    columns = ["family", "memory", "trials", "steps/s", "acting", "stepping", "learning"]
    columns += ["Gflop/s possible", "products: steps/s", "share", "squashing too: steps/s", "share", f"x {cells[0]}"]
    print("| " + " | ".join(columns) + " |\n" + "|---|---" + "|---:" * (len(columns) - 2) + "|", flush=True)
    for env, size in product(envs, sizes):
        number = trials or TRIALS.get(size, min(TRIALS.values()))
        with initialize_config_dir(conf_dir(), version_base="1.3"):
            contenders = [Contender(build(env, cell, size, number, device), device) for cell in cells]
        for contender in contenders:
            contender.algorithm.train_step()  # warm
        product_rate, squash_rate = rates(device)
        for _ in range(repeats):
            for contender in contenders:
                contender.iterate()
        for cell, contender in zip(cells, contenders, strict=True):
            needed, steps = work(contender.algorithm, number), number * STEPS
            seconds = contender.median("iteration")
            products = needed.operations / product_rate
            limits = [products, products + needed.squashed / squash_rate]
            row = [env, f"{cell} {size}", f"{number}", f"{steps / seconds:,.0f}"]
            row += [f"{contender.median(part) / seconds:.0%}" for part in ("acting", "stepping", "learning")]
            row += [f"{product_rate / 1e9:.0f}"]
            for limit in limits:
                row += [f"{steps / limit:,.0f}", f"{limit / seconds:.0%}"]
            row.append(f"{contenders[0].median('iteration') / seconds:.2f}")
            print("| " + " | ".join(row) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=["memories", "iterations"], default=["memories", "iterations"])
    parser.add_argument("--envs", nargs="+", choices=ENVS, default=list(ENVS))
    parser.add_argument("--cells", nargs="+", choices=["gru", "lstm", "transformer"], default=["gru", "lstm", "transformer"])
    parser.add_argument("--sizes", nargs="+", type=int, default=list(TRIALS), help="of the memory")
    parser.add_argument("--rows", nargs="+", type=int, default=[8, 16, 64, 256, 512], help="of the table of memories")
    parser.add_argument("--trials", type=int, help="of an iteration; default: 512, of size 256 256")
    parser.add_argument("--repeats", type=int, default=7, help="of each contender, the median counts")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    device = args.device
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()}, one thread"
    print(f"torch {torch.__version__}, {where}")
    if "memories" in args.tables:
        print(f"\nMemories over {STEPS} steps of {INPUTS} inputs.\n")
        memories(args.cells, args.sizes, args.rows, device, args.repeats)
    if "iterations" in args.tables:
        print("\nEnvironment steps per second of a training iteration.\n")
        iterations(args.cells, args.envs, args.sizes, args.trials, device, args.repeats)


if __name__ == "__main__":
    main()
