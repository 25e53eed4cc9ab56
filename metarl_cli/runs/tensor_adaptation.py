"""An adaptation as two functions of tensors, without a state of its own: what a device needs to adapt alone.

    action, *numbers = act(obs [B, O], *weights)            numbers: action values, logits, or a mean and a deviation
    *weights' = adapt(step, *support [T, N, ...], *weights)             one support, in the fields of :class:`Transitions`

The weights are what the adaptation changes: of a network, or what a network is given of the task; all else is constant. A
gradient becomes a part of the graph: what autograd computes is traced, down to products and sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions
from torch.export import Dim, ExportedProgram
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from typing_extensions import override

from metarl_cli.adaptation.learning import Learning
from metarl_cli.config.messages import one_line
from metarl_cli.errors import UserError
from metarl_cli.interfaces import Params, Transitions
from metarl_cli.runs.tensor_policy import ACTION, BATCH, OBS, quiet, without_places
from metarl_cli.spaces import Discrete, Spec

STEP, FIELDS = "step", Transitions._fields
WEIGHTS = "weights.npz"  # the file of those that the adaptation begins with
Function = Callable[..., tuple[Tensor, ...]]


def adaptation_file(policy: str) -> str:
    """Return the name of the file of an adaptation, from that of a policy."""
    return policy.replace("policy", "adaptation")


class Graph(NamedTuple):
    """A function of tensors as a graph."""

    program: ExportedProgram
    inputs: list[str]
    outputs: list[str]


class TracedAdaptation(NamedTuple):
    """Both functions of an adaptation, and the weights that it begins with, by name."""

    act: Graph
    adapt: Graph
    start: Params


class _Module(torch.nn.Module):
    """A function in the form that ``torch.export`` takes."""

    def __init__(self, function: Function):
        super().__init__()
        self.function = function

    @override
    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.function(*tensors))


@torch.no_grad()
def trace_adaptation(learning: Learning, support: Transitions, spec: Spec, first_action: int) -> TracedAdaptation:
    """Return the functions of an adaptation as graphs.

    Args:
        learning: what it learns from supports.
        support: one of one task, ``[1, T, N, ...]``, for its shapes and types.
        spec: the family's.
        first_action: the number that the environment gives its first action.

    Raises:
        UserError: if what it computes is no graph.
    """
    names, start = list(learning.start), {name: value[0].clone() for name, value in learning.start.items()}
    shift = first_action if isinstance(spec.actions, Discrete) else 0

    def moved(values: tuple[Tensor, ...]) -> Params:
        return {name: value[None] for name, value in zip(names, values, strict=True)}

    def act(obs: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        distribution = learning.act(moved(weights), obs[None])
        return spec.actions.clip(distribution.mode())[0] + shift, *(value[0] for value in distribution.numbers().values())

    def adapt(step: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        experience = Transitions(*(value[None] for value in rest[: len(FIELDS)]))
        experience = experience._replace(action=experience.action - shift) if shift else experience
        after = learning.step(step, moved(rest[len(FIELDS) :]), experience)
        return tuple(after[name][0] for name in names)

    obs = support.obs[0, :2, 0]
    numbers = list(learning.act(learning.start, obs[None]).numbers())
    fields = [value[0].clone() for value in support]
    shapes = ({0: Dim(BATCH)}, *({} for _ in names))
    return TracedAdaptation(
        Graph(_exported(act, [obs, *start.values()], shapes), [OBS, *names], [ACTION, *numbers]),
        Graph(
            _exported(adapt, [torch.tensor(1), *fields, *start.values()], None, gradient=True),
            [STEP, *FIELDS, *names],
            [f"next.{name}" for name in names],
        ),
        start,
    )


def _exported(function: Function, arguments: list[Tensor], shapes: Any, gradient: bool = False) -> ExportedProgram:
    """Trace a function; first what autograd does in it, if it takes a gradient.

    Raises:
        UserError: if it is no graph.
    """
    try:
        with quiet():
            if gradient:
                function = make_fx(function, decomposition_table=AS_SUMS)(*arguments)
                function = make_fx(functionalize(function, remove="mutations"))(*arguments)
            program: ExportedProgram = torch.export.export(
                _Module(function), tuple(arguments), dynamic_shapes=shapes and (shapes,), strict=False
            )
            program = program.run_decompositions()
    except Exception as error:  # the tracer passes on whatever an adaptation raises
        raise UserError(f"this adaptation cannot be exported: {type(error).__name__}: {one_line(error)[:300]}") from error
    return without_places(program)


def solved(square: Tensor, right: Tensor) -> Tensor:
    """Solve ``square [..., n, n] x = right [..., n, k]`` for x by Gauss-Jordan elimination.

    It takes no pivots: ``square`` must be positive definite, as the equations of least squares are.
    """
    size, rows = square.shape[-1], torch.cat([square, right], -1)
    places = torch.eye(size, dtype=rows.dtype, device=rows.device)
    for k in range(size):
        row = rows[..., k : k + 1, :] / rows[..., k : k + 1, k : k + 1]
        rows = rows - (rows[..., k : k + 1] - places[:, k : k + 1]) * row
    return rows[..., size:]


def _solve_ex(square: Tensor, right: Tensor, *, left: bool = True, check_errors: bool = False) -> tuple[Tensor, ...]:
    """Return what ``torch.linalg.solve`` computes by; what it gives beside the solution is not used."""
    info = torch.zeros(square.shape[:-2], dtype=torch.int32)
    return solved(square, right), square, torch.zeros(square.shape[:-1], dtype=torch.int32), info


KNOWN: Any = core_aten_decompositions()
AS_SUMS: dict[Any, Callable[..., Any]] = {  # what ONNX has no operator for
    **{operator: rule for operator, rule in KNOWN.items() if "backward" in operator.name()},
    torch.ops.aten._linalg_solve_ex.default: _solve_ex,
    torch.ops.aten._linalg_check_errors.default: lambda *arguments, **options: None,
    torch.ops.aten.empty_like.default: lambda like, **options: torch.zeros_like(like),
}
