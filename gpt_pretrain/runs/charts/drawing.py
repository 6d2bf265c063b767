"""What all pictures share: paper, colours, lines that stay small, and the way into files and pages.

Each picture is a figure that belongs to nobody else; `write` and `svg` make files and text of it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe & Ito 2008, "Color universal design": told apart by colour-blind readers too. Its yellow is too pale for white paper.
BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000"
COLORS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK)
GREY = "#999999"
STYLES = ("-", "--")  # with the colours, 14 lines that differ
POINTS = 1_000  # of one line at most, which is more than a picture has columns
DIVERGED = 50.0  # nats a token, far above what guessing among all tokens costs: 12.2 for 200,000 of them
NATS = "loss (nats per token)"

# Text stays text, which makes small pictures (30 kB instead of 51 kB for a loss curve); equal figures have equal ids.
SVG: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "gpt-pretrain"}


def write(figure: Figure, *files: Path) -> None:
    """Write a figure into each of some files, whose names tell the format."""
    for file in files:
        figure.savefig(file, dpi=150)


def svg(figure: Figure) -> str:
    """A figure as the text of an SVG file; figures drawn anew from the same numbers give the same text."""
    text = io.StringIO()
    with rc_context(SVG):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()


def data_uri(figure: Figure) -> str:
    """A figure as the address of an image that needs no file."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg(figure).encode()).decode()


def thinned_line(x: Sequence[float], y: Sequence[float], most: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most so many points of a line, the ends, the peaks and the valleys among them."""
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(xs) <= most:
        return xs, ys
    edges = np.linspace(1, len(xs) - 1, max(1, (most - 2) // 2) + 1).astype(int)
    kept = {0, len(xs) - 1}
    for first, end in pairwise(edges):
        if first < end:
            kept |= {first + int(ys[first:end].argmin()), first + int(ys[first:end].argmax())}
    places = sorted(kept)
    return xs[places], ys[places]


def spans_decades(values: Sequence[float]) -> bool:
    """Whether numbers are all positive, and the largest more than ten times the smallest."""
    return min(values) > 0 and max(values) > 10 * min(values)


def paper(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of that size in inches, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    return figure, axes


def draw_line(axes: Axes, x: Sequence[float], y: Sequence[float], most: int = POINTS, **look: Any) -> None:
    """Draw a line if there is anything of it; one of few points has dots, without which a single one would not be seen."""
    if len(x):
        axes.plot(*thinned_line(x, y, most), marker="o" if len(x) < 12 else None, markersize=3.5, **look)


def words(text: str, most: int = 60) -> str:
    """A text of the user's as a label: of one short line, and without matplotlib's own signs for formulas."""
    text = "".join(char if char.isprintable() else "?" for char in text)
    return (text if len(text) <= most else text[: most - 1] + "…").replace("$", r"\$")
