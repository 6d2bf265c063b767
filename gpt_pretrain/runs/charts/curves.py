"""Curves over a training: of one run, and of several laid over one another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from gpt_pretrain.runs.charts.drawing import (
    BLACK,
    BLUE,
    COLORS,
    DIVERGED,
    GREY,
    NATS,
    POINTS,
    RED,
    STYLES,
    draw_line,
    paper,
    spans_decades,
    thinned_line,
    words,
)
from gpt_pretrain.runs.reader import MetricSeries, RunContents

NAMED = 10  # runs in one picture with a colour and a name; those behind them are grey
POINTS_OF_ALL = 8_000  # of all lines of a picture together


def losses(*, tokens_seen: list[int], train_losses: list[float], val_losses: list[float], tokens_per_epoch: int) -> Figure:
    """Both losses of the loss lines, with epochs below and tokens seen above."""
    figure, axes = paper(7, 4.5)
    epochs = [tokens / tokens_per_epoch for tokens in tokens_seen]
    draw_line(axes, epochs, train_losses, label="training", color=BLUE)
    draw_line(axes, epochs, val_losses, label="validation", color=RED, linestyle="--")
    axes.set_xlabel("epochs")
    axes.set_ylabel(NATS)
    axes.legend()
    _tokens_above(axes, lambda epoch: epoch * tokens_per_epoch, lambda tokens: tokens / tokens_per_epoch)
    return figure


def run_losses(run: RunContents) -> Figure:
    """A run's losses by optimizer step, the best validation marked, with tokens seen above; it has one of them at least."""
    figure, axes = paper(5.6, 3.6)
    batches, training, validation = run.series("train/loss"), run.series("eval/train_loss"), run.series("eval/val_loss")
    whole = run.series("val/loss")
    draw_line(axes, batches.steps, batches.values, label="training batches", color=GREY, linewidth=0.9)
    draw_line(axes, training.steps, training.values, label="training, a few batches", color=BLUE)
    draw_line(axes, validation.steps, validation.values, label="validation, a few batches", color=RED, linestyle="--")
    if whole:
        axes.plot(*thinned_line(whole.steps, whole.values, 200), "s", label="validation, all", color=RED, markersize=4)
        best = int(np.argmin(whole.values))
        label = f"best: {whole.values[best]:.3f} at step {whole.steps[best]:,}"
        axes.plot(whole.steps[best], whole.values[best], "*", label=label, color=BLACK, markersize=11)
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(NATS)
    axes.legend(fontsize="small")
    drawn = [series for series in (batches, training, validation, whole) if series]
    if max(max(series.values) for series in drawn) > DIVERGED:
        axes.set_yscale("log")
    longest = max(drawn, key=lambda series: series.steps[-1])
    if longest.tokens[-1] > 0 and longest.steps[-1] >= 0:
        a_step = longest.tokens[-1] / (longest.steps[-1] + 1)  # steps are counted from 0
        _tokens_above(axes, lambda step: (step + 1) * a_step, lambda tokens: tokens / a_step - 1)
    return figure


def run_metric(series: MetricSeries, *, label: str, color: str = BLUE, log: bool = False) -> Figure:
    """One metric by optimizer step.

    Args:
        label: its name and unit.
        log: whether values that span more than a decade are drawn by their logarithm.
    """
    figure, axes = paper(4.6, 2.8)
    draw_line(axes, series.steps, series.values, color=color)
    if log and spans_decades(series.values):
        axes.set_yscale("log")
    elif all(value >= 0 for value in series.values):
        axes.set_ylim(bottom=0)
    if max(series.values) >= 10_000:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(label)
    return figure


def overlay(panels: dict[str, list[MetricSeries]], labels: list[str], *, unit: str = NATS) -> Figure:
    """Runs laid over one another, by tokens seen.

    Args:
        panels: title of each panel to one series a run, the most important run first; empty ones are left out.
        labels: what to call each run, no two the same.
        unit: of the values.
    """
    rows = min(len(labels), NAMED + 1)
    figure = Figure(figsize=(4.4 * len(panels) + 1.0, 3.4 + 0.21 * rows), layout="constrained")
    grid = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    entries: dict[str, Any] = {}
    for axes, (title, runs) in zip(grid, panels.items(), strict=True):
        most = max(20, min(POINTS, POINTS_OF_ALL // (len(panels) * max(1, len(runs)))))
        for place, series in enumerate(runs):
            look = _look(place) | {"zorder": 3 - place / len(runs)}  # the first is drawn above the others
            draw_line(axes, series.tokens, series.values, most, **look)
            if series:
                name = words(labels[place]) if place < NAMED else f"{len(labels) - NAMED} others"
                entries.setdefault(name, axes.get_lines()[-1])
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("tokens seen")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.25)
    cut_off = _cut_off(grid[0], [value for runs in panels.values() for series in runs for value in series.values])
    grid[0].set_ylabel(unit + f"; above {DIVERGED:g} cut off" * cut_off)
    figure.legend(list(entries.values()), list(entries), loc="outside lower left", fontsize="small", frameon=False)
    return figure


def _look(place: int) -> dict[str, Any]:
    """How the line of the run at that place is drawn."""
    if place >= NAMED:
        return {"color": GREY, "linewidth": 0.6}
    return {"color": COLORS[place % len(COLORS)], "linestyle": STYLES[place // len(COLORS)], "linewidth": 1.6}


def _cut_off(axes: Axes, values: list[float]) -> bool:
    """Leave values of runs that have diverged out of the picture, if there are others; return whether that was done."""
    kept = [value for value in values if value <= DIVERGED]
    if not 0 < len(kept) < len(values):
        return False
    room = 0.05 * (max(kept) - min(kept)) + 0.01
    axes.set_ylim(min(kept) - room, max(kept) + room)
    return True


def _tokens_above(axes: Axes, tokens: Callable[[np.ndarray], Any], back: Callable[[np.ndarray], Any]) -> None:
    """A second axis of tokens seen, and the way there and back."""
    above = axes.secondary_xaxis("top", functions=(lambda x: tokens(np.asarray(x)), lambda x: back(np.asarray(x))))
    above.set_xlabel("tokens seen")
    above.xaxis.set_major_formatter(EngFormatter(sep=""))
