"""Memories: step equals scan, torch's own cells are matched, gradients are exact, attention is causal."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from metarl_cli.recurrent import Memory, MemoryConfig, _GRUSequence, _LSTMSequence, build_memory
from metarl_cli.types import Params, State

CELLS = ("gru", "lstm", "transformer")
STEPS, ROWS, INPUTS, SIZE = 7, 3, 5, 8


def config(cell: str, layers: int = 1, **changes) -> MemoryConfig:
    return MemoryConfig(**{"cell": cell, "size": SIZE, "layers": layers, "timescale": 2.0, "heads": 2, "context": 10, **changes})


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(cell: str, layers: int = 1) -> tuple[Memory, Params]:
    """A memory and weights of which none, not even a bias, is zero."""
    memory = build_memory(config(cell, layers), INPUTS)
    params = memory.init(torch.Generator().manual_seed(0))
    return memory, {name: p + 0.1 * draw(*p.shape, seed=i) for i, (name, p) in enumerate(params.items())}


def begun(memory: Memory, rows: int, seed: int = 5) -> State:
    """A state in the middle of a trial, where the cell can learn from one; a transformer's start."""
    state = memory.start(rows, "cpu")
    return state if "keys" in state else {name: 0.5 * draw(*s.shape, seed=seed) for name, s in state.items()}


def steps(memory: Memory, params: Params, x: Tensor, state: State) -> Tensor:
    out = []
    for x_t in x:
        features, state = memory.step(params, x_t, state)
        out.append(features)
    return torch.stack(out)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_steps_equal_the_scan(float64, cell, layers):
    memory, params = build(cell, layers)
    x = draw(STEPS, ROWS, INPUTS)
    scanned = memory.scan(params, x, begun(memory, ROWS))
    assert scanned.shape == (STEPS, ROWS, memory.size)
    torch.testing.assert_close(steps(memory, params, x, begun(memory, ROWS)), scanned, rtol=0, atol=1e-10)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_outputs_and_gradients_equal_torch(float64, cell, layers):
    memory, params = build(cell, layers)
    module = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell](INPUTS, SIZE, layers)
    for name, value in params.items():
        _, index, kind = name.split(".")
        getattr(module, f"{kind}_l{index}").data.copy_(value)
        value.requires_grad_()
    x, direction = draw(STEPS, ROWS, INPUTS).requires_grad_(), draw(STEPS, ROWS, SIZE, seed=1)
    state = {name: s.requires_grad_() for name, s in begun(memory, ROWS).items()}
    mine = memory.scan(params, x, state)
    first = tuple(state[name].transpose(0, 1) for name in ("h", "c") if name in state)
    theirs, _ = module(x, first if cell == "lstm" else first[0])
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)

    mine_grads = torch.autograd.grad(mine, [x, *state.values(), *params.values()], direction)
    weights = [getattr(module, f"{name.split('.')[2]}_l{name.split('.')[1]}") for name in params]
    their_grads = torch.autograd.grad(theirs, [x, *state.values(), *weights], direction)
    for a, b in zip(mine_grads, their_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("function", "states", "gates"), [(_GRUSequence, 1, 3), (_LSTMSequence, 2, 4)])
def test_gradcheck(float64, function, states, gates):
    shapes = [(3, 2, 2), *[(2, 3)] * states, (gates * 3, 2), (gates * 3, 3), (gates * 3,), (gates * 3,)]
    inputs = [draw(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    assert torch.autograd.gradcheck(function.apply, inputs)


@pytest.mark.parametrize("cell", CELLS)
def test_rows_never_meet(cell):
    memory, params = build(cell, layers=2)
    x, state = draw(STEPS, ROWS, INPUTS), begun(memory, ROWS)
    together = memory.scan(params, x, state)
    for row in range(ROWS):
        alone = memory.scan(params, x[:, row : row + 1], {name: s[row : row + 1] for name, s in state.items()})
        torch.testing.assert_close(together[:, row : row + 1], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_nothing_looks_ahead(float64, cell):
    memory, params = build(cell, layers=2)
    x = draw(STEPS, ROWS, INPUTS)
    changed = x.clone()
    changed[4] += 1
    a, b = (memory.scan(params, inputs, memory.start(ROWS, "cpu")) for inputs in (x, changed))
    torch.testing.assert_close(a[:4], b[:4], rtol=0, atol=1e-14)
    assert ((a[4:] - b[4:]).abs().amax((1, 2)) > 1e-4).all()  # and every step after remembers it


def test_a_transformer_refuses_what_it_cannot_remember():
    memory, params = build("transformer")
    x = draw(11, ROWS, INPUTS)
    state = memory.start(ROWS, "cpu")
    with pytest.raises(ValueError, match="11 steps are more than the memory's context of 10"):
        memory.scan(params, x, state)
    with pytest.raises(ValueError, match="context of 10 steps is full"):
        steps(memory, params, x, state)
    _, later = memory.step(params, x[0], memory.start(ROWS, "cpu"))
    with pytest.raises(ValueError, match="whole trials"):
        memory.scan(params, x[:3], later)


def test_heads_must_divide_the_size():
    with pytest.raises(ValidationError, match="size 8 is not a multiple of heads 3"):
        config("transformer", heads=3)
