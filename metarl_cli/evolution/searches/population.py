"""What searches share: usable fitness, utilities by rank, a look at the next draw, and metrics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def check(start: Tensor, scale: Tensor) -> None:
    """See that ``start`` and ``scale`` are two vectors ``[G]`` of one size, kind and place.

    Raises:
        ValueError: if they are not, or a scale is not positive.
    """
    if start.ndim != 1 or (start.shape, start.dtype, start.device) != (scale.shape, scale.dtype, scale.device):
        raise ValueError(f"start and scale must be vectors alike, not {tuple(start.shape)} and {tuple(scale.shape)}")
    if not (scale > 0).all():
        raise ValueError("the scale of every gene must be positive")


def sanitize(fitness: Tensor, genomes: Tensor) -> Tensor:
    """Fitness ``[P]`` in float64, beside ``genomes [P, G]``; what is not finite (a lifetime that diverged) counts as the least.

    Raises:
        ValueError: if it is not one number per genome, or none is finite.
    """
    if fitness.shape != genomes.shape[:1]:
        raise ValueError(f"fitness must be one number for each of {len(genomes)} genomes, not {tuple(fitness.shape)}")
    good = fitness.isfinite()
    if not good.any():
        raise ValueError("no fitness is finite")
    return torch.where(good, fitness, fitness[good].min()).to(genomes.device, torch.float64)


def shape_by_rank(fitness: Tensor, utilities: Tensor) -> Tensor:
    """The utility ``[P]`` of each fitness ``[P]``, from those of the ranks, best first; equals share the mean of theirs."""
    _, group, sizes = torch.unique(fitness.cpu(), return_inverse=True, return_counts=True)  # on the CPU sums keep their order
    total = torch.zeros(len(sizes), dtype=utilities.dtype).index_add(0, group.sort(descending=True).values, utilities.cpu())
    shared: Tensor = (total / sizes)[group]
    return shared.to(fitness.device)


def metrics(fitness: Tensor, genomes: Tensor, scale: Tensor, step: float) -> dict[str, float]:
    """What a generation was: ``fitness [P]`` of ``genomes [P, G]``; diversity and ``step`` are in units of ``scale [G]``."""
    return {
        "search/best": float(fitness.max()),
        "search/mean": float(fitness.mean()),
        "search/diversity": float((genomes.std(0) / scale).mean()),
        "search/step": step,
    }


@contextmanager
def preserve_rng(rng: torch.Generator) -> Iterator[torch.Generator]:
    """Draw from ``rng`` and leave it where it was: the next draw is the same."""
    state = rng.get_state()
    try:
        yield rng
    finally:
        rng.set_state(state)
