"""Target networks: a slow copy of the weights that targets come from (Mnih 2015; Polyak averaging: Lillicrap 2016)."""

from __future__ import annotations

import torch
from pydantic import Field

from metarl_cli.config.base import StrictModel
from metarl_cli.interfaces import Params


class TargetConfig(StrictModel):
    """How the target network follows: w^- <- w^- + polyak * (w - w^-), every so many updates."""

    every: int = Field(gt=0, description="gradient updates between moves of the target network")
    polyak: float = Field(gt=0, le=1, description="size of the move; 1 copies the weights (Mnih 2015)")


@torch.no_grad()
def follow(slow: Params, fast: Params, polyak: float) -> None:
    """Move the ``slow`` weights towards the ``fast`` ones, in place."""
    torch._foreach_lerp_(list(slow.values()), [fast[name] for name in slow], polyak)
