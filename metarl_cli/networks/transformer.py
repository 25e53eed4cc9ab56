"""A causal transformer as a memory network (Vaswani 2017, arXiv:1706.03762).

Layer norm precedes attention and MLP (pre-norm: Xiong 2020, arXiv:2002.04745); position embeddings are fixed sinusoids.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from metarl_cli.errors import UserError
from metarl_cli.interfaces import Params, State
from metarl_cli.networks.memory_config import MemoryConfig
from metarl_cli.networks.products import Linear

SEGMENT = 4096  # rows x steps of a block: few enough for the cache, enough for a fast product


class Transformer:
    """Causal self-attention over the trial so far; a block is attention and an MLP of 4 H GELU units.

    The state is ``{"keys", "values": [R, layers, heads, context, H / heads], "position": [R]}``. ``step`` writes the new keys
    and values into the tensors of its state instead of copying them: only the latest state may be used.

    Weights are named ``memory.embed.{weight,bias}``, ``memory.norm.{weight,bias}`` (after the last block) and
    ``memory.<block>.{norm_attention,attention,merge,norm_mlp,widen,narrow}.{weight,bias}``.
    """

    def __init__(self, config: MemoryConfig, inputs: int):
        self.config, self.inputs, self.size = config, inputs, config.size
        self.context: int | None = config.context

    def init(self, rng: torch.Generator) -> Params:
        """Draw orthogonal weights; layers that add to the residual stream are scaled by 1 / sqrt(2 layers), as in GPT-2."""
        params: Params = {}
        size = self.size

        def linear(name: str, fan_out: int, fan_in: int, gain: float = 1.0) -> None:
            weight = torch.empty(fan_out, fan_in, device=rng.device)
            params[f"{name}.weight"] = torch.nn.init.orthogonal_(weight, gain, generator=rng)
            params[f"{name}.bias"] = torch.zeros(fan_out, device=rng.device)

        def norm(name: str) -> None:
            params[f"{name}.weight"] = torch.ones(size, device=rng.device)
            params[f"{name}.bias"] = torch.zeros(size, device=rng.device)

        residual = 1 / math.sqrt(2 * self.config.layers)
        linear("memory.embed", size, self.inputs)
        for i in range(self.config.layers):
            norm(f"memory.{i}.norm_attention")
            linear(f"memory.{i}.attention", 3 * size, size)
            linear(f"memory.{i}.merge", size, size, residual)
            norm(f"memory.{i}.norm_mlp")
            linear(f"memory.{i}.widen", 4 * size, size)
            linear(f"memory.{i}.narrow", size, 4 * size, residual)
        norm("memory.norm")
        return params

    def start(self, rows: int, device: torch.device | str) -> State:
        """Return an empty state for ``rows`` trials."""
        c = self.config
        shape = (rows, c.layers, c.heads, c.context, c.size // c.heads)
        state: State = {name: torch.zeros(shape, device=device) for name in ("keys", "values")}
        return {**state, "position": torch.zeros(rows, dtype=torch.long, device=device)}

    def step(self, params: Params, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the features ``[R, H]`` of inputs ``[R, I]``, and the next state.

        Raises:
            UserError: if a trial is longer than ``context``.
        """
        position: Tensor = state["position"]
        exported = torch.compiler.is_exporting()  # a graph has no numbers: it attends over the whole context
        last = self.config.context - 1 if exported else int(position.max())
        if last >= self.config.context:
            raise UserError(
                f"the memory's context of {self.config.context} steps is full: "
                "adapt over fewer episodes, or train with a larger algo.memory.context"
            )
        rows = torch.arange(len(position), device=position.device)
        seen = torch.arange(last + 1, device=position.device) <= position[:, None]  # [R, C]

        def attend(block: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = state["keys"][:, block], state["values"][:, block]  # [R, heads, C, H / heads]
            keys[rows, :, position], values[rows, :, position] = key[:, :, 0], value[:, :, 0]
            keys, values = keys[:, :, : last + 1], values[:, :, : last + 1]
            return F.scaled_dot_product_attention(query, keys, values, attn_mask=seen[:, None, None])

        out = self._blocks(params, x[:, None], position[:, None], attend)[:, 0]
        return out, {**state, "position": position + 1}

    def scan(self, params: Params, x: Tensor, state: State) -> Tensor:
        """Return the features ``[T, R, H]`` of whole trials ``[T, R, I]``; once differentiable in ``params`` and ``x``.

        Raises:
            ValueError: if ``state`` is not that of a trial's start, or there are more steps than ``context``.
        """
        if len(x) > self.config.context:
            raise ValueError(f"{len(x)} steps are more than the memory's context of {self.config.context}")
        if state["position"].any():
            raise ValueError("a transformer learns from whole trials only: the state must be that of a trial's start")

        def attend(block: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)

        position = torch.arange(len(x), device=x.device)
        rows = x.shape[1] if x.is_cuda else max(1, SEGMENT // len(x))
        parts = torch.split(x.transpose(0, 1), rows)
        return torch.cat([self._blocks(params, part, position, attend) for part in parts]).transpose(0, 1)

    def _blocks(self, params: Params, x: Tensor, position: Tensor, attend: Any) -> Tensor:
        """Apply the blocks to [R, T, I] at positions [..., T] -> [R, T, H].

        ``attend(block, query, key, value)`` computes attention; its tensors are [R, heads, T, H / heads].
        """
        heads = self.config.heads

        def linear(name: str, x: Tensor) -> Tensor:
            weight, bias = params[f"memory.{name}.weight"], params[f"memory.{name}.bias"]
            plain = x.is_cuda or torch.compiler.is_exporting()
            out: Tensor = F.linear(x, weight, bias) if plain else Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
            return out

        def norm(name: str, x: Tensor) -> Tensor:
            return F.layer_norm(x, (self.size,), params[f"memory.{name}.weight"], params[f"memory.{name}.bias"])

        x = linear("embed", x) + _sinusoids(position, self.size, x.dtype)
        for i in range(self.config.layers):
            projected = linear(f"{i}.attention", norm(f"{i}.norm_attention", x))
            query, key, value = projected.view(*x.shape[:-1], 3, heads, -1).permute(2, 0, 3, 1, 4)
            mixed = attend(i, query, key, value).transpose(1, 2).flatten(2)
            x = x + linear(f"{i}.merge", mixed)
            x = x + linear(f"{i}.narrow", F.gelu(linear(f"{i}.widen", norm(f"{i}.norm_mlp", x))))
        return norm("norm", x)


def _sinusoids(position: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Return position embeddings, [...] -> [..., size]: sinusoids with wavelengths from 2 pi to 10,000 * 2 pi [steps]."""
    index = torch.arange(size, device=position.device)
    angle = position[..., None] * 10000.0 ** -((index // 2 * 2).to(dtype) / size)
    return torch.where(index % 2 == 0, angle.sin(), angle.cos())
