"""The shape of a memory."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from metarl_cli.config.base import StrictModel


class MemoryConfig(StrictModel):
    """The shape of a memory."""

    cell: Literal["gru", "lstm", "transformer"] = Field(description="what remembers")
    size: int = Field(gt=0, description="H, units of each layer and features out")
    layers: int = Field(gt=0, description="recurrent layers or transformer blocks, one on another")
    timescale: float = Field(ge=2, description="fresh units remember for 2 to this many steps (gru, lstm); 2: zero biases")
    heads: int = Field(gt=0, description="attention heads of a block (transformer only); divides size")
    context: int = Field(gt=0, description="longest trial that can be remembered [steps] (transformer only)")

    @model_validator(mode="after")
    def _heads_divide_size(self) -> MemoryConfig:
        if self.cell == "transformer" and self.size % self.heads:
            raise ValueError(f"size {self.size} is not a multiple of heads {self.heads}")
        return self
