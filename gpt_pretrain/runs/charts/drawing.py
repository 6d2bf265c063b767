"""The common parts of charts: colors, empty figures, lines with few points, and the conversion to files and SVG."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gpt_pretrain.system.files import replacing

# matplotlib reads a file matplotlibrc in the working directory. That may be a stranger's folder, and the file can make matplotlib
# run LaTeX.
if Path(matplotlib.matplotlib_fname()).resolve().parent == Path.cwd().resolve():
    matplotlib.rcdefaults()

# Colors that color-blind readers can tell apart. The source's yellow is left out, since it is too pale on white.
# Source: Okabe & Ito 2008, "Color universal design".
BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000"
COLORS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK)
GREY = "#999999"
STYLES = ("-", "--")  # Together with the colors, they make 14 different lines.
MAX_POINTS = 1_000  # Points of a line; a chart has fewer columns of pixels.
MAX_DRAWN = 1e100  # matplotlib fails near the limits of float64.
DIVERGED = 50.0  # Nats per token. Guessing uniformly among 200,000 tokens costs only 12.2.
NATS = "loss (nats per token)"

# Text is stored as text, so that a loss curve takes 30 kB instead of 51 kB. Equal figures get equal ids.
SVG_SETTINGS: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "gpt-pretrain"}


def save_figure(figure: Figure, *files: Path, creator: str | None = None) -> None:
    """Write a figure to files. Their names determine the format.

    Args:
        creator: The program that the files name as their creator; None for matplotlib.

    Raises:
        OSError: If a file cannot be written.
    """
    for file in files:
        kind = file.suffix[1:].lower()
        metadata = None if creator is None else {"Software" if kind == "png" else "Creator": creator}
        with replacing(file, durable=False) as scratch:
            figure.savefig(scratch, dpi=150, format=kind, metadata=metadata)


def to_svg(figure: Figure) -> str:
    """Return a figure as SVG. The same data always gives the same text."""
    text = io.StringIO()
    with rc_context(SVG_SETTINGS):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()


def to_data_uri(figure: Figure) -> str:
    """Return a figure as a data URI, for an image in an HTML page."""
    return "data:image/svg+xml;base64," + base64.b64encode(to_svg(figure).encode()).decode()


def thin_points(x: Sequence[float], y: Sequence[float], *, limit: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Return at most `limit` points of a line, including its ends, peaks and valleys."""
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    ys = np.where(np.abs(ys) < MAX_DRAWN, ys, np.nan)
    if len(xs) <= limit:
        return xs, ys
    edges = np.linspace(1, len(xs) - 1, max(1, (limit - 2) // 2) + 1).astype(int)
    kept = {0, len(xs) - 1}
    for first, end in pairwise(edges):
        if first < end:
            kept |= {first + int(ys[first:end].argmin()), first + int(ys[first:end].argmax())}
    indices = sorted(kept)
    return xs[indices], ys[indices]


def spans_decades(values: Sequence[float]) -> bool:
    """Return whether all values are positive and the largest is more than ten times the smallest."""
    return min(values) > 0 and max(values) > 10 * min(values)


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of this size in inches, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    return figure, axes


def draw_line(axes: Axes, x: Sequence[float], y: Sequence[float], *, limit: int = MAX_POINTS, **style: Any) -> None:
    """Draw a line unless it is empty. A line of few points gets dots, so that a single point is visible."""
    if len(x):
        axes.plot(*thin_points(x, y, limit=limit), marker="o" if len(x) < 12 else None, markersize=3.5, **style)


def label_text(text: str, *, limit: int = 60) -> str:
    """Return a text as a short label on one line, escaped so that matplotlib finds no formulas in it."""
    text = "".join(char if char.isprintable() else "?" for char in text)
    return (text if len(text) <= limit else text[: limit - 1] + "…").replace("$", r"\$")
