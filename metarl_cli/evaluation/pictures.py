"""Encoding of figures as PNG and of frames as GIF."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from metarl_cli.errors import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def png(figure: Figure) -> bytes:
    """Encode a matplotlib figure as a PNG at 150 dots per inch; its text is shown as it is, whatever dollars are in it."""
    buffer = io.BytesIO()
    plain_text(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # an empty box stands for it
        figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def plain_text(figure: Figure) -> None:
    """Have titles, labels and legends show names: no mathematics between dollars, no TeX, no characters without a shape."""
    from matplotlib.axis import Axis, Tick
    from matplotlib.text import Text

    numbers = {label for tick in figure.findobj(Tick) for label in (tick.label1, tick.label2)}
    numbers |= {axis.offsetText for axis in figure.findobj(Axis)}
    for text in figure.findobj(Text):
        if text not in numbers:
            text.set_parse_math(False)
            text.set_usetex(False)
            text.set_text("\n".join(map(visible, text.get_text().split("\n"))))


def gif(frames: Sequence[Image.Image]) -> bytes:
    """Encode frames as an endless animated GIF of 25 frames per second."""
    buffer = io.BytesIO()
    first, *rest = frames
    first.save(buffer, format="GIF", save_all=True, append_images=rest, duration=40, loop=0)
    return buffer.getvalue()
