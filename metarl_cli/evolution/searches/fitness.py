"""Shared parts of searches: sanitised fitness, rank shaping, repeatable draws and metrics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def check(start: Tensor, scale: Tensor) -> None:
    """Check that ``start`` and ``scale`` are two vectors ``[G]`` of the same size, dtype and device.

    Raises:
        ValueError: if they are not, or a scale is not positive.
    """
    if start.ndim != 1 or (start.shape, start.dtype, start.device) != (scale.shape, scale.dtype, scale.device):
        raise ValueError(f"start and scale must be vectors alike, not {tuple(start.shape)} and {tuple(scale.shape)}")
    if not (scale > 0).all():
        raise ValueError("the scale of every gene must be positive")


def sanitize(fitness: Tensor, genomes: Tensor) -> Tensor:
    """Return the fitness ``[P]`` of ``genomes [P, G]`` in float64; a non-finite one (a diverged lifetime) is the worst.

    Raises:
        ValueError: if there is not one number per genome, or none is finite.
    """
    if fitness.shape != genomes.shape[:1]:
        raise ValueError(f"fitness must be one number for each of {len(genomes)} genomes, not {tuple(fitness.shape)}")
    finite = fitness.isfinite()
    if not finite.any():
        raise ValueError("no fitness is finite")
    return torch.where(finite, fitness, fitness[finite].min()).to(genomes.device, torch.float64)


def shape_by_rank(fitness: Tensor, utilities: Tensor) -> Tensor:
    """Return the utility ``[P]`` of each fitness ``[P]`` by its rank; ``utilities`` are best first, ties share theirs."""
    _, group, sizes = torch.unique(fitness.cpu(), return_inverse=True, return_counts=True)  # sums on the CPU have a fixed order
    total = torch.zeros(len(sizes), dtype=utilities.dtype).index_add(0, group.sort(descending=True).values, utilities.cpu())
    shared: Tensor = (total / sizes)[group]
    return shared.to(fitness.device)


def metrics(fitness: Tensor, genomes: Tensor, scale: Tensor, step: float) -> dict[str, float]:
    """Return the metrics of ``genomes [P, G]`` with ``fitness [P]``.

    Diversity, the mean standard deviation of a gene, and ``step`` are in units of ``scale [G]``; one genome has no diversity.
    """
    return {
        "search/best": float(fitness.max()),
        "search/mean": float(fitness.mean()),
        "search/diversity": float((genomes.std(0) / scale).mean()) if len(genomes) > 1 else 0.0,
        "search/step": step,
    }


@contextmanager
def preserve_rng(rng: torch.Generator) -> Iterator[torch.Generator]:
    """Draw from ``rng`` and restore its state, so that the next draw repeats."""
    state = rng.get_state()
    try:
        yield rng
    finally:
        rng.set_state(state)
