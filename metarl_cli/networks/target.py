"""Target networks: a slowly updated copy of the weights, which targets are computed from (Mnih 2015; Lillicrap 2016)."""

from __future__ import annotations

import torch
from pydantic import Field

from metarl_cli.config.base import StrictModel
from metarl_cli.interfaces import Params


class TargetConfig(StrictModel):
    """The update of the target network: w^- <- w^- + polyak * (w - w^-), every ``every`` gradient updates."""

    every: int = Field(gt=0, description="gradient updates between updates of the target network")
    polyak: float = Field(gt=0, le=1, description="step size of its update; 1 copies the weights (Mnih 2015)")


@torch.no_grad()
def follow(slow: Params, fast: Params, polyak: float) -> None:
    """Move the ``slow`` weights towards the ``fast`` ones, in place."""
    torch._foreach_lerp_(list(slow.values()), [fast[name] for name in slow], polyak)
