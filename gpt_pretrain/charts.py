"""All pictures: loss curves, the curves of a report, runs laid over one another, and what a sweep found.

Each function returns a figure that belongs to nobody else; `write` and `svg` make files and text of it.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from gpt_pretrain.record import FINISHED
from gpt_pretrain.run_files import RunFiles, Series
from gpt_pretrain.sweep_results import Job, swept_keys

# Okabe & Ito 2008, "Color universal design": told apart by colour-blind readers too. Its yellow is too pale for white paper.
BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000"
COLORS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK)
GREY = "#999999"
STYLES = ("-", "--", "-.", ":")  # with the colours, 28 lines that differ
POINTS = 1_000  # of one line at most, which is more than a picture has columns
POINTS_OF_ALL = 12_000  # of all lines of a picture together: some 250 kB of SVG
PANELS = 12  # of a sweep's picture
FAILED_NAMED = 5
CATEGORIES_NAMED = 20  # on one axis
NATS = "loss (nats per token)"

# Text stays text, which is a tenth of the size of outlines; equal figures have equal ids.
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


def losses(*, tokens_seen: list[int], train_losses: list[float], val_losses: list[float], tokens_per_epoch: int) -> Figure:
    """Both losses of the loss lines, with epochs below and tokens seen above."""
    figure, axes = _paper(7, 4.5)
    epochs = [tokens / tokens_per_epoch for tokens in tokens_seen]
    _line(axes, epochs, train_losses, label="training", color=BLUE)
    _line(axes, epochs, val_losses, label="validation", color=RED, linestyle="--")
    axes.set_xlabel("epochs")
    axes.set_ylabel(NATS)
    axes.legend()
    _tokens_above(axes, lambda epoch: epoch * tokens_per_epoch, lambda tokens: tokens / tokens_per_epoch)
    return figure


def run_losses(run: RunFiles) -> Figure:
    """A run's losses by optimizer step, the best validation marked, with tokens seen above."""
    figure, axes = _paper(6.4, 3.8)
    batches, training, validation = run.series("train/loss"), run.series("eval/train_loss"), run.series("eval/val_loss")
    whole = run.series("val/loss")
    _line(axes, batches.steps, batches.values, label="training batches", color=GREY, linewidth=0.9)
    _line(axes, training.steps, training.values, label="training, a few batches", color=BLUE)
    _line(axes, validation.steps, validation.values, label="validation, a few batches", color=RED, linestyle="--")
    if whole:
        axes.plot(*thinned_line(whole.steps, whole.values, 200), "s", label="validation, all", color=RED, markersize=4)
        best = int(np.argmin(whole.values))
        label = f"best: {whole.values[best]:.3f} at step {whole.steps[best]:,}"
        axes.plot(whole.steps[best], whole.values[best], "*", label=label, color=BLACK, markersize=11)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(NATS)
    axes.legend(fontsize="small")
    longest = max((batches, training, validation, whole), key=lambda series: series.steps[-1] if series else -1)
    if longest and longest.tokens[-1] > 0:
        a_step = longest.tokens[-1] / (longest.steps[-1] + 1)  # steps are counted from 0
        _tokens_above(axes, lambda step: (step + 1) * a_step, lambda tokens: tokens / a_step - 1)
    return figure


def run_metric(series: Series, *, label: str, color: str = BLUE, log: bool = False) -> Figure:
    """One metric by optimizer step.

    Args:
        label: its name and unit.
        log: whether values that span more than a decade are drawn by their logarithm.
    """
    figure, axes = _paper(4.6, 2.8)
    _line(axes, series.steps, series.values, color=color)
    if log and spans_decades(series.values):
        axes.set_yscale("log")
    elif all(value >= 0 for value in series.values):
        axes.set_ylim(bottom=0)
    if max(series.values) >= 10_000:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(label)
    return figure


def overlay(panels: dict[str, list[Series]], labels: list[str], *, unit: str = NATS, most_named: int = 10) -> Figure:
    """Runs laid over one another, by tokens seen.

    Args:
        panels: title of each panel to one series a run, the most important run first; empty ones are left out.
        labels: what to call each run.
        most_named: runs that have a colour and a name; those behind them are grey.
    """
    named = labels[:most_named]
    rows = len(named) + (len(labels) > len(named))
    figure = Figure(figsize=(4.6 * len(panels) + 0.4, 3.4 + 0.21 * rows), layout="constrained")
    for axes, (title, runs) in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True):
        most = max(20, min(POINTS, POINTS_OF_ALL // (len(panels) * max(1, len(runs)))))
        for place, series in reversed(list(enumerate(runs))):  # the first is drawn above the others
            known = place < len(named)
            color, style = (COLORS[place % len(COLORS)], STYLES[place // len(COLORS) % 4]) if known else (GREY, "-")
            label = _words(labels[place]) if known else f"{len(labels) - len(named)} others" if place == len(named) else None
            width = 1.6 if known else 0.6
            _line(axes, series.tokens, series.values, most, label=label, color=color, linestyle=style, linewidth=width)
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("tokens seen")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel(unit)
    entries = {str(line.get_label()): line for axes in figure.axes for line in reversed(axes.get_lines())}
    shown = {label: line for label, line in entries.items() if not label.startswith("_")}
    figure.legend(list(shown.values()), list(shown), loc="outside lower left", fontsize="small", frameon=False)
    return figure


def spans_decades(values: Sequence[float]) -> bool:
    """Whether numbers are all positive, and the largest more than ten times the smallest."""
    return min(values) > 0 and max(values) > 10 * min(values)


def _paper(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    return figure, axes


def _line(axes: Axes, x: Sequence[float], y: Sequence[float], most: int = POINTS, **look: Any) -> None:
    """Draw a line if there is anything of it; one of few points has dots, without which a single one would not be seen."""
    if len(x):
        axes.plot(*thinned_line(x, y, most), marker="o" if len(x) < 12 else None, markersize=3.5, **look)


def _tokens_above(axes: Axes, tokens: Callable[[np.ndarray], Any], back: Callable[[np.ndarray], Any]) -> None:
    """A second axis of tokens seen, and the way there and back."""
    above = axes.secondary_xaxis("top", functions=(lambda x: tokens(np.asarray(x)), lambda x: back(np.asarray(x))))
    above.set_xlabel("tokens seen")
    above.xaxis.set_major_formatter(EngFormatter(sep=""))


def sweep(jobs: Sequence[Job]) -> Figure:
    """What a sweep found: one plot for each swept setting, the validation loss up the side, a dot for each job.

    Args:
        jobs: the best first, as `read_sweep` gives them.
    """
    keys = swept_keys(jobs)[:PANELS] or ["job"]
    columns = min(len(keys), 3)
    rows = -(-len(keys) // columns)
    figure = Figure(figsize=(max(5.2, 3.4 * columns), 2.9 * rows + 0.9), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    good = [job for job in jobs if job.val_loss < math.inf]
    for axes, key in zip(grid, keys, strict=False):
        names = [job.folder.name if key == "job" else job.settings.get(key, "not set") for job in jobs]
        _sweep_panel(axes, jobs, dict(zip(map(id, jobs), _scale(axes, names), strict=True)))
        axes.set_xlabel(_words(key))
        axes.grid(alpha=0.25)
    for axes in grid[len(keys) :]:
        axes.set_visible(False)
    for axes in grid[::columns]:
        axes.set_ylabel(f"validation {NATS}")
    grid[0].margins(y=0.12)  # room above for those without a loss
    if not good:
        grid[0].set_yticks([])
    elif spans_decades([job.val_loss for job in good]):
        grid[0].set_yscale("log")
    entries = {line.get_label(): line for line in grid[0].get_lines()}
    figure.legend(list(entries.values()), [str(label) for label in entries], loc="outside lower left", frameon=False)
    return figure


def _sweep_panel(axes: Axes, jobs: Sequence[Job], where: dict[int, float]) -> None:
    """The dots of one swept setting.

    Args:
        where: each job's place on the axis, by its id.
    """
    good = [job for job in jobs if job.val_loss < math.inf]
    failed = [job for job in jobs if job.val_loss == math.inf]
    ended = [job for job in good if job.state == FINISHED]
    begun = [job for job in good if job.state != FINISHED]
    for group, label, look in (
        (ended, "finished", {"color": BLUE, "alpha": 0.7}),
        (begun, "stopped before its end", {"color": BLUE, "markerfacecolor": "white"}),
    ):
        if group:
            places, values = [where[id(job)] for job in group], [job.val_loss for job in group]
            axes.plot(places, values, "o", markersize=6, label=label, **look)
    if good:
        label = f"best: {good[0].val_loss:.4g}, {_words(good[0].folder.name)}"
        axes.plot(where[id(good[0])], good[0].val_loss, "*", color=ORANGE, markeredgecolor=BLACK, markersize=15, label=label)
    if failed:
        names = [_words(job.folder.name) for job in failed[:FAILED_NAMED]] + ["..."] * (len(failed) > FAILED_NAMED)
        label = "\n".join([f"without a loss, at the top ({len(failed)}):", *names])
        at_top = axes.get_xaxis_transform()  # the setting's value across, the share of the height up
        places = [where[id(job)] for job in failed]
        axes.plot(places, [0.97] * len(failed), "x", color=RED, markersize=7, transform=at_top, label=label)


def _scale(axes: Axes, values: Sequence[str]) -> list[float]:
    """Prepare the axis across for a setting's values, and return the place of each.

    Numbers have a scale, by their logarithm where they span more than a decade; anything else has one place for each value.
    """
    numbers = [_finite(value) for value in values]
    known = [number for number in numbers if number is not None]
    if len(known) == len(values) and len(set(known)) > 1:
        text = dict(zip(known, values, strict=True))
        ends = (math.log(min(known)), math.log(max(known))) if spans_decades(known) else (min(known), max(known))
        if spans_decades(known):
            axes.set_xscale("log")
        at = sorted(text)
        apart = np.diff(np.log(at) if spans_decades(known) else at) / (ends[1] - ends[0])
        if apart.min() > 0.09:  # of the width: the labels have room
            axes.set_xticks(at, [text[number] for number in at])
            axes.set_xticks([], minor=True)
        return known
    there = {value: _finite(value) for value in values}
    order = sorted(there, key=lambda value: (there[value] is None, there[value] or 0.0, value))
    shown = order[:: -(-len(order) // CATEGORIES_NAMED)]
    long = sum(map(len, shown)) > 30
    axes.set_xticks(
        [order.index(value) for value in shown],
        [_words(value, 24) for value in shown],
        rotation=30 if long else 0,
        ha="right" if long else "center",
    )
    axes.set_xlim(-0.5, len(order) - 0.5)
    return [float(order.index(value)) for value in values]


def _finite(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _words(text: str, most: int = 60) -> str:
    """A text of the user's as a label: of one short line, and without matplotlib's own signs for formulas."""
    text = "".join(char if char.isprintable() else "?" for char in text)
    return (text if len(text) <= most else text[: most - 1] + "…").replace("$", r"\$")
