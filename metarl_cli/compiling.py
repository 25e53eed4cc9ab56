"""Compiled functions of tensors: with ``hardware.compile=true`` torch's inductor turns the hot ones into machine code.

A function is traced once for each shape of its arguments, the derivatives within it included (``make_fx``), and the graph of
plain operations is compiled. What cannot be traced or compiled runs as it is, and one line says so. Compiled code lies in
inductor's cache on disk (``TORCHINDUCTOR_CACHE_DIR``), where the next job and the next process find it.

A traced function must read every tensor that changes from its arguments; it must change none and draw no random numbers.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from typing_extensions import override

from metarl_cli.progress import note, report, timed

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def can_compile(device: torch.device) -> bool:
    """Whether there is a C++ compiler, for code of the CPU; says so in one line where there is none."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    found = device.type != "cpu" or shutil.which(compiler) is not None
    if not found:
        note(f"hardware.compile: there is no C++ compiler ({compiler}); everything runs uncompiled")
    return found


def compiled(
    function: Callable[Arguments, Result], what: str, enabled: bool, any_shape: bool = False
) -> Callable[Arguments, Result]:
    """Return ``function``, or with ``enabled`` a function that compiles it when it is first called.

    Args:
        function: of tensors in lists, tuples and dicts; returns such, too. See the module's docstring for what it must not do.
        what: it is, for the messages: ``the meta-gradient``.
        enabled: whether to compile.
        any_shape: compile it once for all shapes; no derivatives then. Otherwise each shape of the arguments has its own code.
    """
    kind = AnyShape if any_shape else Traced
    return cast(Callable[Arguments, Result], kind(function, what)) if enabled else function


Run = Callable[..., Any]


class Compiled(ABC):
    """A function that is compiled when it is called; see :func:`compiled` for the arguments."""

    def __init__(self, function: Run, what: str):
        self.plain, self.what = function, what
        self.ready: dict[Any, Run] = {}  # what runs, by the key of the arguments
        self.failed = False

    @abstractmethod
    def key(self, args: tuple[Any, ...]) -> Any:
        """Return what the code depends on."""

    @abstractmethod
    def compile(self, args: tuple[Any, ...]) -> Run:
        """Compile the function for arguments like these, and run it once."""

    @timed("compiled code")
    def __call__(self, *args: Any) -> Any:
        """Call the function."""
        key = self.key(args)
        if key not in self.ready:
            self.ready[key] = self._prepared(args)
        return self.ready[key](*args)

    def _prepared(self, args: tuple[Any, ...]) -> Run:
        """Return the compiled function, or where that fails the plain one, for all arguments to come."""
        if not self.failed:
            began = time.monotonic()
            report(f"compiling {self.what}")
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of torch about itself
                    run = self.compile(args)
                report(f"compiled {self.what} in {time.monotonic() - began:.0f} s")
                return run
            except Exception as error:
                self.failed = True
                note(f"hardware.compile: {self.what} runs uncompiled: {_reason(error)}")
        return self.plain


class Traced(Compiled):
    """Compiles a graph of plain operations for each shape, with the derivatives that the function takes."""

    @override
    def key(self, args: tuple[Any, ...]) -> Any:
        return tuple((x.shape, x.dtype) for x in _leaves(args))

    @override
    def compile(self, args: tuple[Any, ...]) -> Run:
        from torch.fx.experimental.proxy_tensor import make_fx

        places = pytree.tree_structure(args)
        structure: list[pytree.TreeSpec] = []

        def flat(*values: Tensor) -> list[Tensor]:
            results, spec = pytree.tree_flatten(self.plain(*pytree.tree_unflatten(values, places)))
            structure.append(spec)
            return [result.detach() for result in results]

        # none is another here, so that each stays an input, also where some are the same at the first call
        graph = make_fx(flat)(*(x.detach().requires_grad_(x.requires_grad) for x in _leaves(args)))
        _check(graph)
        code = torch.compile(graph, dynamic=False, options=OPTIONS)

        def run(*args: Any) -> Any:
            with torch.no_grad():  # the derivatives are in the graph
                return pytree.tree_unflatten(code(*_leaves(args)), structure[0])

        run(*args)
        return run


class AnyShape(Compiled):
    """Compiles a function without derivatives once for all shapes."""

    @override
    def key(self, args: tuple[Any, ...]) -> Any:
        return None

    @override
    def compile(self, args: tuple[Any, ...]) -> Run:
        code = torch.compile(self.plain, dynamic=True, options=OPTIONS)
        code(*args)
        return code


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
