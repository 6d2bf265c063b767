"""Curves of the metrics of one run, and of several runs in one chart."""

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
    GREEN,
    GREY,
    MAX_POINTS,
    NATS,
    RED,
    STYLES,
    draw_line,
    label_text,
    new_figure,
    spans_decades,
    thin_points,
)
from gpt_pretrain.runs.reader import MetricSeries, RunContents
from gpt_pretrain.runs.reference import ReferenceCurve

MAX_NAMED = 10  # Runs with a color and a name in one chart. Further runs are grey.
MAX_POINTS_PER_FIGURE = 8_000  # Points of all lines together.


def thin_series(series: MetricSeries) -> MetricSeries:
    """Return the points of a series that are shown in a line over tokens seen."""
    tokens, values = thin_points(series.tokens, series.values)
    return series if len(values) == len(series.values) else MetricSeries([], tokens.astype(int).tolist(), values.tolist())


def epoch_loss_figure(
    *, tokens_seen: list[int], train_losses: list[float], val_losses: list[float], tokens_per_epoch: int
) -> Figure:
    """Draw the training and the validation loss over epochs, with tokens seen on the upper axis."""
    figure, axes = new_figure(7, 4.5)
    epochs = [tokens / tokens_per_epoch for tokens in tokens_seen]
    draw_line(axes, epochs, train_losses, label="training", color=BLUE)
    draw_line(axes, epochs, val_losses, label="validation", color=RED, linestyle="--")
    axes.set_xlabel("epochs")
    axes.set_ylabel(NATS)
    axes.legend()
    _add_tokens_axis(axes, lambda epoch: epoch * tokens_per_epoch, lambda tokens: tokens / tokens_per_epoch)
    return figure


def run_loss_figure(run: RunContents, *, reference: ReferenceCurve | None = None) -> Figure:
    """Draw the losses of a run over optimizer steps. Mark the best validation loss, and show tokens seen on the upper axis.

    Args:
        run: A run with at least one loss metric.
        reference: A curve of the same recipe. It is drawn up to the run's last step.
    """
    figure, axes = new_figure(5.6, 3.6)
    batches, training, validation = run.series("train/loss"), run.series("eval/train_loss"), run.series("eval/val_loss")
    full = run.series("val/loss")
    draw_line(axes, batches.steps, batches.values, label="training batches", color=GREY, linewidth=0.9)
    draw_line(axes, training.steps, training.values, label="training set, eval_iter batches", color=BLUE)
    draw_line(axes, validation.steps, validation.values, label="validation set, eval_iter batches", color=RED, linestyle="--")
    if reference is not None:
        known, last = reference.mean(), max(series.steps[-1] for series in (batches, training, validation, full) if series)
        steps = [step for step in known.steps if step <= last]
        draw_line(axes, steps, known.values[: len(steps)], label="reference, validation set", color=GREEN, linestyle=":")
    if full:
        axes.plot(*thin_points(full.steps, full.values, limit=200), "s", label="validation set, all", color=RED, markersize=4)
        best = int(np.argmin(full.values))
        label = f"best: {full.values[best]:.3f} at step {full.steps[best]:,}"
        axes.plot(full.steps[best], full.values[best], "*", label=label, color=BLACK, markersize=11)
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(NATS)
    axes.legend(fontsize="small")
    drawn = [series for series in (batches, training, validation, full) if series]
    if max(max(series.values) for series in drawn) > DIVERGED:
        axes.set_yscale("log")
    longest = max(drawn, key=lambda series: series.steps[-1])
    if longest.tokens[-1] > 0 and longest.steps[-1] >= 0:
        tokens_per_step = longest.tokens[-1] / (longest.steps[-1] + 1)  # Steps are counted from 0.
        _add_tokens_axis(axes, lambda step: (step + 1) * tokens_per_step, lambda tokens: tokens / tokens_per_step - 1)
    return figure


def metric_figure(series: MetricSeries, *, label: str, color: str = BLUE, log: bool = False) -> Figure:
    """Draw one metric over optimizer steps.

    Args:
        label: Its name and unit.
        log: Use a logarithmic axis if the values span more than a decade.
    """
    figure, axes = new_figure(4.6, 2.8)
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


def measure_figure(series: dict[str, MetricSeries], *, label: str, log: bool = False) -> Figure:
    """Draw a measure of several texts or tasks over optimizer steps. Of many lines, only the first have a color and a name.

    Args:
        series: The series by name, none of them empty.
        label: The unit.
        log: Use a logarithmic axis if the values span more than a decade.
    """
    figure, axes = new_figure(5.6, 3.6)
    limit = max(20, MAX_POINTS_PER_FIGURE // len(series))
    for index, (name, one) in enumerate(series.items()):
        named = {"label": label_text(name)} if index < MAX_NAMED else {}
        draw_line(axes, one.steps, one.values, limit=min(limit, MAX_POINTS), **_line_style(index), **named)
    if log and spans_decades([value for one in series.values() for value in one.values]):
        axes.set_yscale("log")
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(label)
    axes.legend(fontsize="small")
    return figure


def overlay_figure(panels: dict[str, list[MetricSeries]], labels: list[str], *, unit: str = NATS) -> Figure:
    """Draw the same metrics of several runs in one chart, over tokens seen.

    Args:
        panels: The title of each panel with one series per run, the most important run first. Empty series are left out.
        labels: The distinct names of the runs.
        unit: The unit of the values.
    """
    rows = min(len(labels), MAX_NAMED + 1)
    figure = Figure(figsize=(4.4 * len(panels) + 1.0, 3.4 + 0.21 * rows), layout="constrained")
    grid = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    entries: dict[str, Any] = {}
    for axes, (title, runs) in zip(grid, panels.items(), strict=True):
        limit = max(20, min(MAX_POINTS, MAX_POINTS_PER_FIGURE // (len(panels) * max(1, len(runs)))))
        for index, series in enumerate(runs):
            style = _line_style(index) | {"zorder": 3 - index / len(runs)}  # The first run is drawn on top.
            draw_line(axes, series.tokens, series.values, limit=limit, **style)
            if series:
                name = label_text(labels[index]) if index < MAX_NAMED else f"{len(labels) - MAX_NAMED} others"
                entries.setdefault(name, axes.get_lines()[-1])
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("tokens seen")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.25)
    clipped = _clip_diverged(grid[0], [value for runs in panels.values() for series in runs for value in series.values])
    grid[0].set_ylabel(unit + f", up to {DIVERGED:g}" * clipped)
    figure.legend(list(entries.values()), list(entries), loc="outside lower left", fontsize="small", frameon=False)
    return figure


def _line_style(index: int) -> dict[str, Any]:
    if index >= MAX_NAMED:
        return {"color": GREY, "linewidth": 0.6}
    return {"color": COLORS[index % len(COLORS)], "linestyle": STYLES[index // len(COLORS)], "linewidth": 1.6}


def _clip_diverged(axes: Axes, values: list[float]) -> bool:
    """Limit the axis to the values of runs that have not diverged, and return whether values were clipped."""
    kept = [value for value in values if value <= DIVERGED]
    if not 0 < len(kept) < len(values):
        return False
    room = 0.05 * (max(kept) - min(kept)) + 0.01
    axes.set_ylim(min(kept) - room, max(kept) + room)
    return True


def _add_tokens_axis(axes: Axes, to_tokens: Callable[[np.ndarray], Any], from_tokens: Callable[[np.ndarray], Any]) -> None:
    """Add an upper axis that shows tokens seen."""
    above = axes.secondary_xaxis("top", functions=(lambda x: to_tokens(np.asarray(x)), lambda x: from_tokens(np.asarray(x))))
    above.set_xlabel("tokens seen")
    above.xaxis.set_major_formatter(EngFormatter(sep=""))
