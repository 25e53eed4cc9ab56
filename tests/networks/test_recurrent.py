"""Memories: step equals scan, features and gradients equal the equations, attention is causal."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from metarl_cli.errors import UserError
from metarl_cli.interfaces import Params, State
from metarl_cli.networks import products, transformer
from metarl_cli.networks.memory import Memory, build_memory
from metarl_cli.networks.memory_config import MemoryConfig
from metarl_cli.networks.products import Linear
from metarl_cli.networks.recurrent import GRUSequence

CELLS = ("gru", "lstm", "transformer")
STEPS, ROWS, INPUTS, SIZE = 7, 3, 5, 8


def config(cell: str, layers: int = 1, **changes) -> MemoryConfig:
    return MemoryConfig(
        **{"cell": cell, "size": SIZE, "layers": layers, "timescale": 2.0, "heads": 2, "context": 10, **changes}
    )


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


@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_steps_equal_the_scan(float64, cell, layers, learning):
    memory, params = build(cell, layers)
    x = draw(STEPS, ROWS, INPUTS)
    scanned = memory.scan(params, x, begun(memory, ROWS))
    assert scanned.shape == (STEPS, ROWS, memory.size)
    with torch.set_grad_enabled(learning):
        stepped = steps(memory, params, x, begun(memory, ROWS))
    torch.testing.assert_close(stepped, scanned, rtol=0, atol=1e-10)


def gru(x: Tensor, state: State, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> State:
    """The equations of a GRU (Cho 2014, arXiv:1406.1078; reset after the product), in plain operations."""
    (r_x, z_x, n_x), (r_h, z_h, n_h) = (x @ w_ih.t() + b_ih).chunk(3, 1), (state["h"] @ w_hh.t() + b_hh).chunk(3, 1)
    z, n = torch.sigmoid(z_x + z_h), torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
    return {"h": (1 - z) * n + z * state["h"]}


def lstm(x: Tensor, state: State, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> State:
    """The equations of an LSTM (Gers 2000, no peepholes), in plain operations."""
    i, f, g, o = (x @ w_ih.t() + b_ih + state["h"] @ w_hh.t() + b_hh).chunk(4, 1)
    c = torch.sigmoid(f) * state["c"] + torch.sigmoid(i) * torch.tanh(g)
    return {"h": torch.sigmoid(o) * torch.tanh(c), "c": c}


def plain_scan(cell: str, layers: int, params: Params, x: Tensor, state: State) -> Tensor:
    """The features of a sequence, layer by layer and step by step."""
    for layer in range(layers):
        now, features = {name: s[:, layer] for name, s in state.items()}, []
        weights = [params[f"memory.{layer}.{name}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        for x_t in x:
            now = {"gru": gru, "lstm": lstm}[cell](x_t, now, *weights)
            features.append(now["h"])
        x = torch.stack(features)
    return x


def learned(scan: Callable[[Params, Tensor, State], Tensor], dtype: torch.dtype, *given: Params | Tensor) -> list[Tensor]:
    """The features of a scan, then their gradients in a random direction: of the inputs, the state and the weights."""
    params, x, state = (
        {k: v.to(dtype).requires_grad_() for k, v in g.items()} if isinstance(g, dict) else g.to(dtype).requires_grad_()
        for g in given
    )
    features = scan(params, x, state)
    direction = draw(*features.shape, seed=9).to(dtype)
    return [features.detach(), *torch.autograd.grad(features, [x, *state.values(), *params.values()], direction)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
@pytest.mark.parametrize(("rows", "length", "block"), [(1, STEPS, 2**16), (16, 100, 2**16), (16, 100, 2000)])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_features_and_gradients_equal_the_equations(monkeypatch, cell, layers, rows, length, block, dtype, tolerance):
    monkeypatch.setattr(GRUSequence, "BLOCK", block)  # 2,000: six blocks of fifteen steps and one of ten
    memory, params = build(cell, layers)
    x = draw(rows, length, INPUTS).transpose(0, 1)  # rows first in memory, as a caller may hold them
    given = params, x, begun(memory, rows)
    plain = learned(partial(plain_scan, cell, layers), torch.float64, *given)
    for mine, exact in zip(learned(memory.scan, dtype, *given), plain, strict=True):
        assert float((mine - exact).norm()) <= tolerance * float(exact.norm())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 5e-5)])
def test_the_transformer_equals_torch(monkeypatch, dtype, tolerance):
    """A block is torch's encoder layer with layer norm first, GELU and a causal mask, over inputs plus sinusoids."""
    monkeypatch.setattr(transformer, "SEGMENT", 5 * STEPS)  # 16 rows: blocks of 5, 5, 5 and 1
    memory, params = build("transformer")
    layer = torch.nn.TransformerEncoderLayer(SIZE, 2, 4 * SIZE, 0.0, "gelu", batch_first=True, norm_first=True)
    named = {
        "norm_attention": layer.norm1,
        "merge": layer.self_attn.out_proj,
        "norm_mlp": layer.norm2,
        "widen": layer.linear1,
        "narrow": layer.linear2,
    }
    weights = {
        f"memory.0.{name}.{kind}": getattr(module, kind) for name, module in named.items() for kind in ("weight", "bias")
    }
    weights["memory.0.attention.weight"] = layer.self_attn.in_proj_weight
    weights["memory.0.attention.bias"] = layer.self_attn.in_proj_bias
    for name, weight in weights.items():
        weight.data.copy_(params[name])
    layer.to(dtype)
    params = {name: value.to(dtype).requires_grad_() for name, value in params.items()}
    x, direction = draw(STEPS, 16, INPUTS).to(dtype), draw(STEPS, 16, SIZE, seed=1).to(dtype)
    mine = memory.scan(params, x, memory.start(16, "cpu"))

    angles = torch.arange(STEPS, dtype=dtype)[:, None] / 10000 ** (torch.arange(0, SIZE, 2, dtype=dtype) / SIZE)  # [T, H / 2]
    positions = torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
    embedded = x.transpose(0, 1) @ params["memory.embed.weight"].t() + params["memory.embed.bias"] + positions
    mask = torch.nn.Transformer.generate_square_subsequent_mask(STEPS, dtype=dtype)
    theirs = layer(embedded, src_mask=mask)
    theirs = torch.nn.functional.layer_norm(theirs, (SIZE,), params["memory.norm.weight"], params["memory.norm.bias"])
    theirs = theirs.transpose(0, 1)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance)
    mine_grads = torch.autograd.grad(mine, list(params.values()), direction)
    their_grads = torch.autograd.grad(theirs, [weights.get(name, p) for name, p in params.items()], direction)
    for a, b in zip(mine_grads, their_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def test_gradcheck_of_linear(float64):
    inputs = [draw(*shape, seed=i).requires_grad_() for i, shape in enumerate([(3, 2, 2), (3, 2), (3,)])]
    assert torch.autograd.gradcheck(Linear.apply, inputs)


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="torch is built without oneDNN")
def test_linear_is_the_same_with_the_products_of_onednn(monkeypatch):
    inputs = [draw(*shape, seed=i).requires_grad_() for i, shape in enumerate([(4, 8, 6), (5, 6), (5,)])]
    results = []
    for onednn in (False, True):
        monkeypatch.setattr(products, "_ONEDNN", onednn)
        out = Linear.apply(*inputs)
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_fresh_weights(cell):
    memory = build_memory(config(cell, layers=2, timescale=100.0), INPUTS)
    params = memory.init(torch.Generator().manual_seed(0))
    for i in range(2):
        for block in params[f"memory.{i}.weight_hh"].split(SIZE):
            torch.testing.assert_close(block @ block.t(), torch.eye(SIZE))
        keep = params[f"memory.{i}.bias_ih"].sigmoid()[SIZE : 2 * SIZE]  # with no input: the share kept each step
        steps_kept = 1 / (1 - keep)
        assert 2 <= steps_kept.min() < steps_kept.max() <= 100
    again = memory.init(torch.Generator().manual_seed(0))
    assert all(torch.equal(value, again[name]) for name, value in params.items())


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
    with pytest.raises(UserError, match="context of 10 steps is full"):
        steps(memory, params, x, state)
    _, later = memory.step(params, x[0], memory.start(ROWS, "cpu"))
    with pytest.raises(ValueError, match="whole trials"):
        memory.scan(params, x[:3], later)


def test_heads_must_divide_the_size():
    with pytest.raises(ValidationError, match="size 8 is not a multiple of heads 3"):
        config("transformer", heads=3)
