"""The memory of a configuration, judged before it is taken: what it will hold against what is free.

Sizes that follow from the configuration are computed. The memory of a computation is measured by running it on torch's ``meta``
device, where tensors have shapes and no content: every operation of a meta-gradient of second order, with what autograd keeps
for it, is counted as it comes and goes, and nothing is taken.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import math
import os
import platform
import resource
import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from typing_extensions import override

from metarl_cli.config.base import Group
from metarl_cli.errors import Problem, UserError
from metarl_cli.interfaces import Algorithm, Family, Footprint, Holding, Params, Transitions
from metarl_cli.spaces import Continuous, Spec

META = torch.device("meta")
BYTES = 4  # of a number
PYTHON = 200  # [bytes] of a task as a tuple of Python's numbers
COPIES = 2  # of all that a checkpoint saves, while it is written: one of what is filled, and one in the file's format
UNLIMITED = 2**60  # [bytes] a limit at or above means that there is none
OUT = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "std::bad_alloc",
    "storage size calculation overflowed",
    "integer multiplication overflow",
)


def total_of(footprint: Footprint) -> float:
    """Return the bytes of a footprint at its peak."""
    return sum(each.bytes for each in footprint.held) + max((each.bytes for each in footprint.passing), default=0.0)


def joined(other: Footprint | None, held: Sequence[Holding], passing: Sequence[Holding]) -> Footprint:
    """Return the footprint of what is held and what passes, and of another part, if there is one."""
    return Footprint(held, passing) if other is None else Footprint([*held, *other.held], [*passing, *other.passing])


def factor(**numbers: int) -> str:
    """Return the key of the largest of some numbers whose product memory grows with; ``__`` stands for a dot in a key."""
    return max(numbers, key=lambda key: numbers[key]).replace("__", ".")


LENGTHS = (200, 400)  # steps, from whose costs those of longer episodes are extrapolated: returns take a loop over the steps


def extrapolated(cost: Callable[[int], float], num: int, few: tuple[int, int] = (3, 6)) -> float:
    """Return what ``num`` steps cost [bytes]; of many it is extrapolated linearly from the costs of a few."""
    if num <= few[1]:
        return cost(num)
    small, large = map(cost, few)
    return large + max(large - small, 0.0) / (few[1] - few[0]) * (num - few[1])


def check_memory(footprint: Footprint, device: torch.device, what: str = "the run") -> None:
    """Compare a footprint with what is free on a device.

    Raises:
        UserError: if it does not fit; it names the key that decides over most of it.
    """
    available, total = _share(device), total_of(footprint)
    if available is not None and total > available:
        release()  # what an earlier job of this process held
        available = _share(device)
    if available is None or total <= available:
        return
    most = max([*footprint.held, *footprint.passing], key=lambda each: each.bytes)
    where = f" on {device}" if device.type != "cpu" else ""
    share = "" if most.bytes == total else f", {in_words(most.bytes)} of them by {most.key}"
    text = f"{what} would hold about {in_words(total)} of memory{share}, and {in_words(available)} are free{where}"
    raise UserError(Problem(most.key, f"{most.key}: {text}; lower {most.key}"))


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error is that memory has run out, on the CPU or on a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM  # a process that could not be started
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in OUT)


def first_line(error: BaseException) -> str:
    """Return what an error says first; its class where it says nothing."""
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def in_words(number: float) -> str:
    """Return a number of bytes in words."""
    if number < 1e18:
        for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
            if number >= size or unit == "MB":
                return f"{number / size:.3g} {unit}"
    return "more bytes than any machine has"


# -- what is free


def free(device: torch.device, root: Path = Path("/")) -> int | None:
    """Return the bytes that this process can still take on a device; None where nobody says.

    On the CPU it is the least of the machine's available memory, the limits of the control groups that the process is in (of
    both versions: containers and Slurm set them) and its own limit of addresses.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # kept for the next tensors
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    try:
        words = {line.split(":")[0]: line.split()[1] for line in (root / "proc/meminfo").read_text().splitlines()}
        bounds = [int(words["MemAvailable"]) * 1024]
    except (OSError, KeyError, IndexError, ValueError):
        return None
    bounds += _left_in_groups(root)
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most != resource.RLIM_INFINITY:
        pages = int((root / "proc/self/statm").read_text().split()[0])
        bounds.append(most - pages * resource.getpagesize())
    return max(min(bounds), 0)


def sharing(device: torch.device) -> int:
    """Return how many processes of a run, as torchrun started them on this machine, take their memory from the same device."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return processes if device.type == "cpu" else -(-processes // torch.cuda.device_count())


def _share(device: torch.device) -> int | None:
    """Return the part of what is free on a device that this process may take; None where nobody says."""
    available = free(device)
    return None if available is None else available // sharing(device)


def release() -> None:
    """Give what freed tensors have left back to the system, where the C library is glibc; it may have kept it for the next."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _left_in_groups(root: Path) -> Iterator[int]:
    """Yield what each control group of the process leaves it, from its own group up to the root."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("memory" if kinds else "")
        limit, usage = ("memory.limit_in_bytes", "memory.usage_in_bytes") if kinds else ("memory.max", "memory.current")
        group = mount / path.strip("/")
        for place in [group, *group.parents]:
            if mount in (place, *place.parents):
                yield from _left(place, limit, usage)


def _left(group: Path, limit: str, usage: str) -> Iterator[int]:
    try:
        most = int((group / limit).read_text())  # "max" where there is none
        used = int((group / usage).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return
    if most < UNLIMITED:
        yield most - used + int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))  # a cache gives way


# -- what a computation takes


class _Blank(TorchFunctionMode):
    """Creates every tensor on the ``meta`` device, random ones too."""

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = {name: META if name == "device" else value for name, value in (kwargs or {}).items() if name != "generator"}
        return func(*args, **kwargs)


class _Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch gives it no types
    """Counts the bytes of the tensors that live at the same time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.alive: dict[int, int] = {}
        self.bytes = self.peak = 0

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (key := (storage := tensor.untyped_storage())._cdata) not in self.alive:
                self.alive[key] = storage.nbytes()
                self.bytes += self.alive[key]
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(storage, self._end, key)
        return out

    def _end(self, key: int) -> None:
        self.bytes -= self.alive.pop(key)


def size_of(tensors: Any) -> float:
    """Return the bytes of all tensors in nested dicts, lists and tuples."""
    return sum(x.numel() * x.element_size() for x in tree_leaves(tensors) if isinstance(x, Tensor))


def blank(create: Callable[[], Any]) -> Any:
    """Return what a function creates as tensors without content; None where that cannot be done."""
    try:
        with _Blank(), META:
            return create()
    except Exception:  # a function may look at its numbers, which are not there
        return None


class Network(Protocol):
    """What has weights: a learner, or a memory."""

    def init(self, rng: torch.Generator) -> Params:
        """Draw the initial weights."""
        ...


def blank_network(network: Network) -> Params:
    """Return the weights of one network without content; none where they cannot be had so."""
    weights: Params | None = blank(lambda: network.init(torch.Generator()))
    return weights or {}


def without_content(tensors: Any) -> Any:
    """Return nested tensors as tensors of the same shapes without content; those that learn go on learning."""
    return tree_map(lambda x: x.detach().to(META).requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x, tensors)


def peak(compute: Callable[[], object]) -> float:
    """Return the bytes that a computation on tensors without content takes at its peak; 0 where it needs the content."""
    count = _Peak()
    try:
        with count:
            result = compute()
            del result
    except RuntimeError as error:
        return math.inf if "overflow" in str(error) else 0.0
    except (NotImplementedError, TypeError, ValueError):  # a value was read that a tensor without content lacks
        return 0.0
    return float(count.peak)


def hidden_layers(config: object, key: str) -> list[Holding]:
    """Return what the hidden layers take of every network in a configuration: their weights, a gradient and Adam's two moments.

    Args:
        config: a model, a group, or a dict of these.
        key: of the configuration.
    """
    if isinstance(config, Group):
        return hidden_layers(config.config, key)
    parts = config.items() if isinstance(config, dict) else config if isinstance(config, BaseModel) else ()
    found = [holding for name, value in parts for holding in hidden_layers(value, f"{key}.{name}")]
    if isinstance(config, BaseModel) and (units := getattr(config, "hidden", None)):
        units = units if isinstance(units, list) else [units]
        weights = sum(units) + sum(below * above for below, above in pairwise(units))
        found.append(Holding(f"{key}.hidden", 4 * BYTES * weights))
    return found


def largest_number(config: object, key: str) -> tuple[int, str]:
    """Return the largest whole number in a configuration, and its key.

    Args:
        config: a model, a group, a dict of these, or a value.
        key: of the configuration.
    """
    if isinstance(config, Group):
        return largest_number(config.config, key)
    if isinstance(config, int):
        return config, key
    if isinstance(config, list):
        return max((largest_number(value, key) for value in config), default=(0, key))
    parts = config.items() if isinstance(config, dict) else config if isinstance(config, BaseModel) else ()
    return max((largest_number(value, f"{key}.{name}" if key else name) for name, value in parts), default=(0, key))


def bytes_per_task(family: Family) -> float:
    """Return the bytes of a task while it is drawn, checked and kept."""
    return 4 * size_of(family.sample_tasks(1, "train", np.random.default_rng(0))) + PYTHON


def bytes_per_env(family: Family) -> float:
    """Return the bytes of one running environment, with a step of its experience."""
    return 8 * family.spec.bytes_per_obs + 64 + family.simulator_bytes


def cost_of_evaluating(algorithm: Algorithm, family: Family, tasks: int, episodes: int, budget: str = "") -> Holding:
    """Return the memory of measuring adaptation to so many tasks, with so many episodes of each at a time.

    Args:
        algorithm: what adapts.
        family: of the tasks.
        tasks: M.
        episodes: E.
        budget: the group of the configuration with these numbers; none: they are the command's own.
    """
    numbers = {"tasks": tasks, "episodes": episodes}
    if budget:
        numbers = {f"{budget}.{name}": number for name, number in numbers.items()}
    adapting, envs = algorithm.cost_of_adapting(tasks, episodes), tasks * episodes * bytes_per_env(family)
    if budget and adapting > envs:
        numbers |= algorithm.numbers_of_adapting()
    key = factor(**numbers)
    return Holding(key, tasks * bytes_per_task(family) + max(adapting, envs))


def blank_transitions(spec: Spec, *shape: int) -> Transitions:
    """Return transitions ``[M, T, N]`` without content."""
    obs = torch.zeros(*shape, *spec.obs_shape, device=META, dtype=torch.uint8 if spec.pixels else None)
    vector = isinstance(spec.actions, Continuous)
    action = (
        torch.zeros(*shape, spec.actions.size, device=META) if vector else torch.zeros(shape, dtype=torch.long, device=META)
    )
    number = torch.zeros(shape, device=META)
    return Transitions(obs, action, number, obs, number.bool(), number.bool(), number)
