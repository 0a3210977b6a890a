"""The look of the charts: inline SVG whose text takes the font of the page."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qkernels.utils.extras import require

INK, GREY, GRID = "#1c2733", "#66727f", "#e6e9ed"
FLOAT, INT8 = "#8fa3b8", "#d9622b"  # what is float is quiet, what is int8 stands out
VARIANTS = (INT8, "#2f6f9f", "#4f9d69", "#8a63a8", "#b8962e")
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "qkernels",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": INK,
    "xtick.bottom": False,
    "ytick.left": False,
    "legend.frameon": False,
}


@contextmanager
def chart(height: float) -> Iterator[tuple[Any, list[str]]]:
    """Axes to draw on; afterwards the list holds the SVG."""
    figure = require("matplotlib.figure").Figure(figsize=(5.8, height), layout="constrained")
    svg: list[str] = []
    yield figure.subplots(), svg
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    svg.append(text[text.index("<svg") :])
