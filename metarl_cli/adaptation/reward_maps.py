"""Drawings of rewards that were inferred, beside the true ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_rewards(
    inferred: Tensor, true: Tensor, labels: tuple[str, str], paths: Iterable[Tensor] = (), half: float | None = None
) -> Figure:
    """Draw two maps of rewards beside each other.

    Args:
        inferred: ``[rows, columns]``, the lowest row first.
        true: likewise.
        labels: of the two axes.
        paths: the places ``[T, 2]`` of demonstrations, in the unit of the axes.
        half: of the sides of the square around the origin that is drawn; None: the axes count rows and columns.
    """
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(8, 3.8), layout="constrained")
    extent = None if half is None else (-half, half, -half, half)
    square, lines = half is not None or "column" in labels, [path.tolist() for path in paths]
    panels = zip(drawing.subplots(1, 2), ("inferred reward", "true reward"), (inferred, true), strict=True)
    for axes, title, rows in panels:
        image = axes.imshow(
            rows.cpu().numpy(), origin="lower", cmap="RdYlGn", aspect="equal" if square else "auto", extent=extent
        )
        drawing.colorbar(image, ax=axes)
        axes.set_title(title)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        for line in lines:
            axes.plot(*zip(*line, strict=True), "k-", alpha=0.4)
        if extent:
            axes.set(xlim=extent[:2], ylim=extent[2:])
    return drawing
