"""Compiled functions of tensors: with ``hardware.compile=true`` torch's inductor turns the hot ones into machine code.

A function is traced once for each shape, stride and type of its arguments, the derivatives within it included (``make_fx``),
and the graph of plain operations is compiled. What cannot be traced or compiled runs as it is, and one line says so. Compiled
code lies in inductor's cache on disk (``TORCHINDUCTOR_CACHE_DIR``), where the next job and the next process find it.

A traced function must read every tensor that changes from its arguments; it must change none and draw no random numbers.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metarl_cli.progress import note, report, timed, timing

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def can_compile(device: torch.device) -> bool:
    """Whether there is a C++ compiler, for code of the CPU; says so in one line where there is none."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    available = device.type != "cpu" or shutil.which(compiler) is not None
    if not available:
        note(f"hardware.compile: there is no C++ compiler ({compiler}); everything runs uncompiled")
    return available


def compiled(function: Callable[Arguments, Result], what: str, enabled: bool) -> Callable[Arguments, Result]:
    """Return ``function``, or with ``enabled`` a function that compiles it when it is first called.

    Args:
        function: of tensors in lists, tuples and dicts; returns such, too. See the module's docstring for what it must not do.
        what: it is, for the messages: ``the meta-gradient``.
        enabled: whether to compile.
    """
    return cast(Callable[Arguments, Result], Compiled(function, what)) if enabled else function


Run = Callable[..., Any]


class Compiled:
    """A function that is compiled when it is called; see :func:`compiled` for the arguments."""

    def __init__(self, function: Run, what: str):
        self.plain, self.what = function, what
        self.ready: dict[Any, Run] = {}  # what runs, by the shapes, strides and types of the arguments
        self.failed = False

    @timed("compiled code")
    def __call__(self, *args: Any) -> Any:
        """Call the function."""
        return self.prepared(*args)(*args)

    def prepared(self, *args: Any) -> Run:
        """Return the function for arguments like these in shape, strides and type, for callers to whom they never change."""
        key = tuple((x.shape, x.stride(), x.dtype) for x in _leaves(args))
        if key not in self.ready:
            self.ready[key] = self._prepare(args)
        return self.ready[key]

    def _prepare(self, args: tuple[Any, ...]) -> Run:
        """Return the compiled function, or where that fails the plain one, for all arguments to come."""
        if not self.failed:
            began = time.monotonic()
            report(f"compiling {self.what}")
            try:
                with warnings.catch_warnings(), timing(None):
                    warnings.simplefilter("ignore")  # of torch about itself
                    run = _compile(self.plain, args)
                report(f"compiled {self.what} in {time.monotonic() - began:.0f} s")
                return run
            except Exception as error:
                self.failed = True
                note(f"hardware.compile: {self.what} runs uncompiled: {_reason(error)}")
        return self.plain


def _compile(function: Run, args: tuple[Any, ...]) -> Run:
    """Compile the function for arguments of these shapes, with the derivatives that it takes, and run it once.

    Inductor gets the graph directly: the guards of ``torch.compile`` would cost as much as a step of 64 environments.
    """
    from torch._inductor import compile as inductor
    from torch.fx.experimental.proxy_tensor import make_fx

    places = pytree.tree_structure(args)
    structure: list[pytree.TreeSpec] = []

    def flat(*values: Tensor) -> list[Tensor]:
        results, spec = pytree.tree_flatten(function(*pytree.tree_unflatten(values, places)))
        structure.append(spec)
        return [result.detach() for result in results]

    # none is another here, so that each stays an input, also where some are the same at the first call
    inputs: list[Any] = [x.detach() for x in _leaves(args)]
    graph = make_fx(flat)(*(x.detach().requires_grad_(y.requires_grad) for x, y in zip(inputs, _leaves(args), strict=True)))
    _check(graph)
    with torch.no_grad():  # the derivatives are in the graph
        code = inductor(graph, inputs, OPTIONS)
    plain = structure[0] == pytree.tree_structure((0,) * structure[0].num_leaves)  # a tuple of tensors, as most return

    def run(*args: Any) -> Any:
        with torch.no_grad():
            results = code(*_leaves(args))
        return tuple(results) if plain else structure[0].unflatten(results)

    run(*args)
    return run


# One thread, as everything else here: the compiler runs once for each kernel, one after another.
OPTIONS: dict[str, Any] = {"compile_threads": 1}


class Untraceable(Exception):
    """A function does what a graph cannot repeat."""


def _check(graph: torch.fx.GraphModule) -> None:
    """Raise Untraceable where the graph would not be the function: weights kept as constants, random numbers."""
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            constant = functools.reduce(getattr, node.target.split("."), graph)
            if constant.requires_grad:
                raise Untraceable("it reads weights that are not among its arguments")
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise Untraceable("it draws random numbers")


def _leaves(value: Any) -> list[Tensor]:
    """Return the tensors in a value, in the order of ``torch.utils._pytree`` and faster."""
    if isinstance(value, Tensor):
        return [value]
    return [leaf for inner in (value.values() if isinstance(value, dict) else value) for leaf in _leaves(inner)]


def _reason(error: BaseException) -> str:
    """Describe in a few words why a function was not compiled."""
    chain: list[BaseException] = []
    while error not in chain:
        chain.append(error)
        error = getattr(error, "inner_exception", None) or error.__cause__ or error.__context__ or error
    if isinstance(chain[-1], Untraceable):
        return str(chain[-1])
    lines = [line.strip() for line in str(chain[-1]).splitlines() if line.strip()] or [""]
    return f"{type(chain[-1]).__name__}: {lines[0]}"[:200]
