"""Encoding of figures as PNG and of frames as GIF."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def png(figure: Figure) -> bytes:
    """Encode a matplotlib figure as a PNG at 150 dots per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def gif(frames: Sequence[Image.Image]) -> bytes:
    """Encode frames as an endless animated GIF of 25 frames per second."""
    buffer = io.BytesIO()
    first, *rest = frames
    first.save(buffer, format="GIF", save_all=True, append_images=rest, duration=40, loop=0)
    return buffer.getvalue()
