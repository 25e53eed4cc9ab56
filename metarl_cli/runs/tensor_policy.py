"""A policy as one function of tensors, without a state of its own: what can be exported.

    without memory:   action [B] = f(obs [B, O])
    with memory:      action, *memory' = f(obs, reward, ended, *memory)        one trial, B = 1

It is :meth:`AdaptedPolicy.__call__`: the policy observes what came of its last action, then acts. So the memory holds the last
observation and action, and whether there were any, beside the tensors of the policy's own state. Which of these the actions
depend on is read off the traced graph; the others are no part of the memory, and constants become constants.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from typing_extensions import override

from metarl_cli.config.messages import one_line
from metarl_cli.errors import UserError
from metarl_cli.interfaces import State, Step
from metarl_cli.runs.policy import AdaptedPolicy
from metarl_cli.spaces import Discrete

OBS, REWARD, ENDED, ACTION = "obs", "reward", "ended", "action"
STARTED, LAST_OBS, LAST_ACTION = "started", "last.obs", "last.action"  # of the memory, before the policy's own state
BATCH = "batch"  # the first axis of a function without memory


class Traced(NamedTuple):
    """The function of a policy as a graph."""

    program: ExportedProgram
    memory: dict[str, Tensor]  # by name, in the order of the arguments; the values at the start. Empty: the function has none

    @property
    def inputs(self) -> list[str]:
        """The names of the arguments."""
        return [OBS, REWARD, ENDED, *self.memory] if self.memory else [OBS]

    @property
    def outputs(self) -> list[str]:
        """The names of what is returned."""
        return [ACTION, *(f"next.{name}" for name in self.memory)]


class TensorPolicy(torch.nn.Module):
    """The function of a policy.

    Args:
        policy: the policy, on the CPU.
        fixed: entries of its state that are constants, by dotted name.
        memory: names of the entries that are arguments.
    """

    def __init__(self, policy: AdaptedPolicy, fixed: Mapping[str, Any], memory: list[str]):
        super().__init__()
        self.policy, self.actions, self.first_action = policy.policy, policy.spec.actions, policy.first_action
        self.fixed, self.memory = fixed, memory

    @override
    def forward(self, obs: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """Return the action ``[B, ...]`` for ``obs [B, ...]``, and the next values of the memory."""
        now, state = obs[None], dict(self.fixed)
        if self.memory:
            reward, ended, *values = rest
            memory = dict(zip(self.memory, values, strict=True))
            started, seen, taken = (memory.pop(name, self.fixed[name]) for name in (STARTED, LAST_OBS, LAST_ACTION))
            state |= memory
            observed = flatten(self._observe(state, seen, taken, now, reward, ended))
            state |= {name: torch.where(started[0], observed[name], value) for name, value in memory.items()}
        action, after = self.policy.act(nest(_own(state)), now)
        taken = self.actions.clip(action)[0]
        taken = taken + self.first_action if isinstance(self.actions, Discrete) else taken
        followed = flatten(after) | {STARTED: torch.ones_like(self.fixed[STARTED]), LAST_OBS: obs, LAST_ACTION: action[0]}
        return taken, *(followed[name].clone() for name in self.memory)

    def _observe(self, state: State, obs: Tensor, action: Tensor, now: Tensor, reward: Tensor, ended: Tensor) -> State:
        """Return the state after the last action; what a policy writes into is its own copy."""
        own = {name: value.clone() if isinstance(value, Tensor) else value for name, value in _own(state).items()}
        step = Step(now, reward[None], ended[None], torch.zeros_like(ended)[None], now)
        return self.policy.observe(nest(own), obs[None], action[None], step)


@torch.no_grad()
def trace(policy: AdaptedPolicy, obs: Tensor) -> Traced:
    """Return the function of a policy as a graph.

    Args:
        policy: the policy, on the CPU.
        obs: one observation ``[1, ...]``, for its shape and type.

    Raises:
        UserError: if the policy samples actions, or what it computes is no graph.
    """
    start, moving = _first_steps(policy, obs)
    names = [STARTED, LAST_OBS, LAST_ACTION, *moving] if moving else []
    while True:
        fixed = {name: value for name, value in start.items() if name not in names or name in (STARTED, LAST_OBS, LAST_ACTION)}
        program = _graph(TensorPolicy(policy, fixed, names), obs, [start[name] for name in names])
        used = _used(program, names)
        if used == names:
            return Traced(program, {name: start[name] for name in names})
        names = used


def _first_steps(policy: AdaptedPolicy, obs: Tensor) -> tuple[dict[str, Any], list[str]]:
    """Return the state before the first step, and the names of its entries that change.

    Raises:
        UserError: if something else than tensors changes.
    """
    start = flatten(policy.adapted)
    if any(isinstance(value, torch.Generator) for value in start.values()):
        raise UserError("this policy draws random numbers at every step, which an exported function cannot")
    before = {name: value.clone() if isinstance(value, Tensor) else value for name, value in start.items()}
    versions = {name: value._version for name, value in before.items() if isinstance(value, Tensor)}
    number = torch.zeros(1, 1)
    now, flag = obs[None], number > 0
    action, first = policy.policy.act(nest(before), now)
    _, second = policy.policy.act(policy.policy.observe(first, now, action, Step(now, number, flag, flag, now)), now)
    after, later, moving = flatten(first), flatten(second), []
    if after.keys() != later.keys():
        raise UserError("the form of this policy's state changes from step to step: it cannot be exported")
    for name, value in later.items():
        if not isinstance(value, Tensor):
            if value != before.get(name, after[name]):
                raise UserError(
                    f"this policy's state has a number that changes and is no tensor ({name}): it cannot be exported"
                )
        elif value is not before.get(name) or versions[name] != value._version:  # another tensor, or written into
            moving.append(name)
            start.setdefault(name, torch.zeros_like(value))  # of an entry that appears with the first action
    last = {
        STARTED: torch.zeros(1, dtype=torch.bool),
        LAST_OBS: torch.zeros_like(obs),
        LAST_ACTION: torch.zeros_like(action[0]),
    }
    # copies: where two entries are one tensor, the tracer would take one argument for both
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in {**last, **start}.items()}, moving


def _graph(function: TensorPolicy, obs: Tensor, memory: list[Tensor]) -> ExportedProgram:
    """Trace a function; without memory for any number of observations.

    Raises:
        UserError: if it is no graph.
    """
    if memory:
        arguments = (obs, torch.zeros(1), torch.zeros(1, dtype=torch.bool), *memory)
        shapes: Any = None
    else:
        arguments, shapes = (torch.cat([obs, obs]),), ({0: Dim(BATCH)},)
    try:
        with quiet():
            program: ExportedProgram = torch.export.export(function, arguments, dynamic_shapes=shapes).run_decompositions({})
    except Exception as error:  # the tracer passes on whatever a policy raises on tensors without values
        raise UserError(f"this policy cannot be exported: {type(error).__name__}: {one_line(error)[:300]}") from error
    return without_places(program)


def without_places(program: ExportedProgram) -> ExportedProgram:
    """Return a program without the places in the source that its nodes came from: they name folders of this machine."""
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node"):
            node.meta.pop(key, None)
    return program


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what an exporter says of its own inside back: its log, and warnings of its own use of others."""
    names = ("torch.export", "torch._export", "torch.onnx", "onnx_ir", "onnxscript")
    before = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _used(program: ExportedProgram, names: list[str]) -> list[str]:
    """Return the names of the entries of the memory that actions depend on, now or later."""
    if not names:
        return []
    nodes = {node.name: node for node in program.graph.nodes}
    inputs = [x.arg.name for x in program.graph_signature.input_specs if x.kind is InputKind.USER_INPUT]
    outputs = [x.arg.name for x in program.graph_signature.output_specs if x.kind is OutputKind.USER_OUTPUT]
    places = dict(zip(inputs[-len(names) :], names, strict=True))
    following = dict(zip(names, outputs[1:], strict=True))
    left, seen, used = [nodes[outputs[0]]], set[torch.fx.Node](), set[str]()
    while left:
        node = left.pop()
        if node in seen:
            continue
        seen.add(node)
        left += node.all_input_nodes
        if name := places.get(node.name):
            used.add(name)
            left.append(nodes[following[name]])
    return [name for name in names if name in used]


def flatten(state: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Return a nested state by dotted name."""
    return dict(_entries(state, place))


def _entries(state: Mapping[str, Any], place: str) -> Iterator[tuple[str, Any]]:
    for name, value in state.items():
        if isinstance(value, dict):
            yield from _entries(value, f"{place}{name}.")
        else:
            yield f"{place}{name}", value


def nest(flat: Mapping[str, Any]) -> State:
    """Return the state that :func:`flatten` flattened."""
    state: State = {}
    for name, value in flat.items():
        *groups, last = name.split(".")
        holder = state
        for group in groups:
            holder = holder.setdefault(group, {})
        holder[last] = value
    return state


def _own(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of the policy's own state."""
    return {name: value for name, value in state.items() if name not in (STARTED, LAST_OBS, LAST_ACTION)}
