"""Figures and tables of evolution: the settings of each generation, and of the winner's lineage."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from metarl_cli.errors import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_lineage(lines: dict[str, Tensor], winner: dict[str, Tensor]) -> Figure:
    """Plot each setting over the generations: the lineages ``lines [S, P]`` of the population, the ``winner [S]`` in colour."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(lines))
    figure = Figure(figsize=(3.6 * columns, 2.2 * -(-len(lines) // columns)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = np.atleast_1d(figure.subplots(-(-len(lines) // columns), columns, sharex=True)).ravel()
    for axes in panels[len(lines) :]:
        axes.set_visible(False)
    for axes, (name, values) in zip(panels, lines.items(), strict=False):
        axes.plot(values.double().cpu().numpy(), color="grey", alpha=0.3, linewidth=0.8)
        axes.plot(winner[name].double().cpu().numpy(), color="tab:blue", linewidth=2)
        low, high = float(values.min()), float(values.max())
        if low > 0 and high > 20 * low:  # more than a decade: small values vanish on a linear axis
            axes.set_yscale("log")
            axes.minorticks_off()  # they take most of the drawing time
        axes.set_title(name, fontsize=9)
        axes.grid(alpha=0.3)
    for axes in panels[max(len(lines) - columns, 0) : len(lines)]:
        axes.set_xlabel("generation")
        axes.tick_params(labelbottom=True)  # shared axes hide it above an empty panel
    return figure


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table in Markdown, whose cells are shown as they are."""
    lines = [map(_cell, heads), ["---"] * len(heads), *(map(_cell, row) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(text: str) -> str:
    """Return a text of which Markdown and HTML make nothing else."""
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(visible(text)))
