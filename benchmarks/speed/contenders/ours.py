"""metarl as a contender: the checkout that PYTHONPATH names, of today's layout or of the flat one before it (12eab77)."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import cartpole
import meta_learning
import numpy as np
import torch
from serving import Contender, Unavailable, serve

WORLD = int(os.environ.get("WORLD_SIZE", "1"))  # processes, under torchrun


def build_run(options: dict[str, Any], *more: str) -> Any:
    """The family and the algorithm of the composed and checked configuration, as ``metarl train`` builds them."""
    overrides = [*options["overrides"], f"hardware.device={options['device']}", *more]
    try:
        from metarl_cli.runs.build import build
    except ModuleNotFoundError:
        return build_flat(overrides)
    from metarl_cli.cli.compose import compose_train
    from metarl_cli.cli.process import tune_process
    from metarl_cli.errors import UserError
    from metarl_cli.processes import Watch, gpu_number, join

    try:
        config, _ = compose_train(overrides)
    except UserError as error:
        raise Unavailable(str(error)) from error
    tune_process(config.hardware)
    watch = Watch(join(config.hardware.patience), config.hardware.patience)  # as in a run: it shares memory
    processes = watch.__enter__()

    def leave() -> None:
        if processes.rank > 0:
            processes.wait()
        watch.__exit__(None, None, None)

    atexit.register(leave)
    return build(config, gpu_number(0), processes)


def build_flat(overrides: list[str]) -> Any:
    """The same of the flat layout."""
    from metarl_cli.building import validate
    from metarl_cli.composing import Composer, plain
    from metarl_cli.run_folder import build

    torch.set_num_threads(1)
    values = plain(Composer("train", None).settle(overrides))
    return build(validate("train", {k: v for k, v in values.items() if k not in ("hydra", "experiment")}))


def wait(device: str) -> None:
    """Wait until everything is computed, here and in the other processes."""
    if device == "cuda":
        torch.cuda.synchronize()
    if WORLD > 1:
        torch.distributed.barrier()


def training(options: dict[str, Any]) -> Contender:
    """Whole iterations, ``train_step()``; the work is iterations or environment steps."""
    algorithm = build_run(options).algorithm
    for _ in range(options.get("warm", 0)):
        algorithm.train_step()

    def run(count: int) -> float:
        before = algorithm.env_steps
        for _ in range(count):
            algorithm.train_step()
        wait(options["device"])
        return float(algorithm.env_steps - before if options["unit"] == "env steps" else count)

    return Contender(run)


def meta_gradient(options: dict[str, Any]) -> Contender:
    """Meta-gradients of MAML-DQN on the shared experience."""
    tasks, steps, hidden = (options[name] for name in ("tasks", "steps", "hidden"))
    envs, length, query_size = (options[name] for name in ("envs", "length", "query"))
    shape = [f"algo.tasks={tasks}", f"algo.inner.steps={steps}", f"learner.network.hidden=[{hidden},{hidden}]"]
    shape += [f"algo.inner.support.rollouts={envs}", f"algo.inner.support.steps={length}"]
    shape += [f"algo.outer.tasks={tasks}", f"algo.outer.batch={query_size}"]
    algorithm = build_run(options, "algo=maml_dqn", "env=cartpole_family", "algo.inner.rates=fixed", *shape).algorithm
    state = algorithm.weights()
    for saved, seed in ((state["meta"]["init"], 0), (state["slow"]["init"], 1)):
        saved.update({name: torch.as_tensor(value) for name, value in meta_learning.weights(hidden, seed).items()})
    algorithm.load_weights(state)
    try:
        from metarl_cli.interfaces import Transitions
    except ModuleNotFoundError:  # the flat layout
        from metarl_cli.types import Transitions

    def batch(length: int, envs: int, seed: int) -> Any:
        arrays = meta_learning.experience(tasks, length, envs, seed)
        return Transitions(**{name: torch.as_tensor(value, device=options["device"]) for name, value in arrays.items()})

    supports, query = [batch(length, envs, 2)] * steps, batch(1, query_size, 3)
    loss = torch.zeros(())

    def run(count: int) -> float:
        nonlocal loss
        for _ in range(count):
            loss, _ = algorithm.meta_gradient(supports, query)
        wait(options["device"])
        return float(count)

    operations = meta_learning.operations(tasks, steps, length * envs, query_size, hidden)
    return Contender(run, facts={"operations": operations}, extras=lambda: {"loss": float(loss)})


WARMUP = 6  # generations


def evolution(options: dict[str, Any]) -> Contender:
    """Generations of SNES over policies that do not learn, on the shared tasks and from the shared start."""
    algorithm, before = build_run(options).algorithm, 0
    for _ in range(WARMUP):  # compile for the numbers of individuals to which generations fall
        algorithm.train_step()

    def start(number: int) -> None:
        nonlocal algorithm, before
        code = algorithm.measure_fitness
        algorithm = build_run(options, f"seed={number}").algorithm
        algorithm.measure_fitness = code
        mean, deviations = (torch.as_tensor(x, device=options["device"]) for x in cartpole.start(number))
        algorithm.search.mean, algorithm.search.sigma = mean, deviations
        algorithm.task = {k: torch.tensor(v, device=options["device"]) for k, v in cartpole.PHYSICS.items()}
        algorithm.train_step()
        before = algorithm.env_steps

    def run(count: int) -> float:
        for _ in range(count):
            algorithm.train_step()
        wait(options["device"])
        return float(count * algorithm.search.config.population * cartpole.TASKS)

    return Contender(run, start, extras=lambda: {"env_steps": algorithm.env_steps - before})


def stepping(options: dict[str, Any]) -> Contender:
    """Steps of a family's environments with random actions that are prepared; of nominal tasks, or of drawn ones."""
    from metarl_cli.seeding import numpy_rng, torch_rng

    family, (tasks, envs) = build_run(options).family, options["shape"]
    rng = torch_rng(0, "env", device=torch.device(options["device"]))
    task = family.named_task({}) if options.get("nominal") else family.sample_tasks(tasks, "train", numpy_rng(0, "tasks"))
    env, space, draws = family.make(task, envs, rng), family.spec.actions, np.random.default_rng(0)
    shape = (options["steps"], tasks, envs)
    if hasattr(space, "low"):
        low, high = np.asarray(space.low), np.asarray(space.high)
        drawn = draws.uniform(low, high, (*shape, len(low))).astype(np.float32)
    else:
        drawn = draws.integers(0, 2, shape)
    actions = list(torch.as_tensor(drawn, device=options["device"]))

    def run(count: int) -> float:
        for _ in range(count):
            for action in actions:
                env.step(action)
        wait(options["device"])
        return float(count * len(actions) * tasks * envs)

    return Contender(run)


KINDS: dict[str, Callable[[dict[str, Any]], Contender]] = {
    "training": training,
    "meta_gradient": meta_gradient,
    "evolution": evolution,
    "stepping": stepping,
}


def build(options: dict[str, Any]) -> Contender:
    return KINDS[options["kind"]](options)


def received() -> Iterator[str]:
    """The requests that the first process reads, in the others; an empty one ends them."""
    while True:
        found: list[Any] = [None]
        torch.distributed.broadcast_object_list(found, 0)
        if not found[0]:
            return
        yield found[0]


def sent() -> Iterator[str]:
    """The requests, which the others get too."""
    for line in sys.stdin:
        torch.distributed.broadcast_object_list([line], 0)
        yield line
    torch.distributed.broadcast_object_list([""], 0)


if WORLD == 1:
    serve(build, ["torch"])
else:
    first = os.environ["RANK"] == "0"
    serve(build, ["torch"], sent() if first else received(), silent=not first)
