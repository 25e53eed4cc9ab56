"""Configuration of memory networks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from metarl_cli.config.base import StrictModel


class MemoryConfig(StrictModel):
    """The architecture of a memory network."""

    cell: Literal["gru", "lstm", "transformer"] = Field(description="type of the memory network")
    size: int = Field(gt=0, description="H, units of each layer, and the number of features")
    layers: int = Field(gt=0, description="stacked recurrent layers or transformer blocks")
    timescale: float = Field(
        ge=2, description="initial time scales are drawn from 2 to this [steps] (gru, lstm); 2: zero biases"
    )
    heads: int = Field(gt=0, description="attention heads of a block (transformer only); divides size")
    context: int = Field(gt=0, description="longest trial [steps] (transformer only)")

    @model_validator(mode="after")
    def _heads_divide_size(self) -> MemoryConfig:
        if self.cell == "transformer" and self.size % self.heads:
            raise ValueError(f"size {self.size} is not a multiple of heads {self.heads}")
        return self
