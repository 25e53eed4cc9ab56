"""Evolution to look at: how settings changed from generation to generation, and along the winner's line of descent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_lineage(lines: dict[str, Tensor], winner: dict[str, Tensor]) -> Figure:
    """A panel for each setting over the generations: ``lines [S, P]`` of those alive now, the ``winner [S]`` in colour."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(lines))
    shown = Figure(figsize=(3.6 * columns, 2.2 * -(-len(lines) // columns)), layout="constrained")
    FigureCanvasAgg(shown)
    panels = np.atleast_1d(shown.subplots(-(-len(lines) // columns), columns, sharex=True)).ravel()
    for axes in panels[len(lines) :]:
        axes.set_visible(False)
    for axes, (name, values) in zip(panels, lines.items(), strict=False):
        axes.plot(values.double().cpu().numpy(), color="grey", alpha=0.3, linewidth=0.8)
        axes.plot(winner[name].double().cpu().numpy(), color="tab:blue", linewidth=2)
        low, high = float(values.min()), float(values.max())
        if low > 0 and high > 20 * low:
            axes.set_yscale("log")
            axes.minorticks_off()  # most of the time it takes to draw
        axes.set_title(name, fontsize=9)
        axes.grid(alpha=0.3)
    for axes in panels[max(len(lines) - columns, 0) : len(lines)]:
        axes.set_xlabel("generation")
        axes.tick_params(labelbottom=True)  # hidden above an empty place
    return shown


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
