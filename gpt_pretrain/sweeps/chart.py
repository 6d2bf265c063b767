"""The chart of a sweep: the validation loss of each job by each swept setting."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gpt_pretrain.runs.charts.drawing import (
    BLACK,
    BLUE,
    DIVERGED,
    NATS,
    ORANGE,
    RED,
    label_text,
    save_figure,
    spans_decades,
)
from gpt_pretrain.runs.metadata import FINISHED
from gpt_pretrain.runs.reader import MAX_VALUE
from gpt_pretrain.sweeps.folder import CHART
from gpt_pretrain.sweeps.results import Job, swept_keys

MAX_PANELS = 12
MAX_FAILED_NAMED = 5
MAX_CATEGORIES_NAMED = 20  # labels on one axis
CHARACTER_WIDTH = 0.03  # width of a label's character, as a fraction of the axis

log = logging.getLogger(__name__)


def save_chart(jobs: Sequence[Job], folder: Path) -> None:
    """Write summary.png, or log a warning if that fails."""
    try:
        save_figure(sweep_figure(jobs), folder / CHART)
    except OSError as error:
        log.warning("%s cannot be written: %s.", folder / CHART, error.strerror or error)


def sweep_figure(jobs: Sequence[Job]) -> Figure:
    """Draw one plot per swept setting, with the validation loss on the vertical axis and a dot for each job.

    Args:
        jobs: Sorted by ascending validation loss, as `read_sweep` returns them.
    """
    keys = swept_keys(jobs)[:MAX_PANELS] or ["job"]
    columns = min(len(keys), 3)
    rows = -(-len(keys) // columns)
    named = min(MAX_FAILED_NAMED, sum(job.score > DIVERGED for job in jobs))
    size = (max(5.2, 3.1 * columns), 2.8 * rows + 0.2 * named + 0.9)  # with room for the legend
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes, key in zip(grid, keys, strict=False):
        values = [job.folder.name if key == "job" else job.settings.get(key, "not set") for job in jobs]
        _draw_panel(axes, jobs, dict(zip(map(id, jobs), _scale_axis(axes, values), strict=True)))
        axes.set_xlabel(label_text(key))
        axes.grid(alpha=0.25)
    for axes in grid[len(keys) :]:
        axes.set_visible(False)
    for axes in grid[::columns]:
        axes.set_ylabel("validation loss\n(bits per byte)" if jobs[0].by_bits else f"validation {NATS}".replace(" (", "\n("))
    grid[0].margins(y=0.12)  # leaves room at the top for jobs without a loss
    if jobs[0].score > DIVERGED:
        grid[0].set_yticks([])
    entries = {line.get_label(): line for line in grid[0].get_lines()}
    figure.legend(list(entries.values()), [str(label) for label in entries], loc="outside lower left", frameon=False)
    return figure


def _draw_panel(axes: Axes, jobs: Sequence[Job], positions: dict[int, float]) -> None:
    """Draw the dots of one swept setting.

    Args:
        positions: The position of each job on the horizontal axis, by its id.
    """
    good = [job for job in jobs if job.score <= DIVERGED]
    failed = [job for job in jobs if job.score > DIVERGED]
    finished = [job for job in good if job.state == FINISHED]
    stopped = [job for job in good if job.state != FINISHED]
    for group, label, style in (
        (finished, "finished", {"color": BLUE, "alpha": 0.7}),
        (stopped, "stopped early", {"color": BLUE, "markerfacecolor": "white"}),
    ):
        if group:
            x, y = [positions[id(job)] for job in group], [job.score for job in group]
            axes.plot(x, y, "o", markersize=6, label=label, **style)
    if good:
        best = good[0]
        label = f"best: {best.score:.4g}, {label_text(best.folder.name)}"
        axes.plot(positions[id(best)], best.score, "*", color=ORANGE, markeredgecolor=BLACK, markersize=15, label=label)
    if failed:
        names = [label_text(job.folder.name) for job in failed[:MAX_FAILED_NAMED]] + ["..."] * (len(failed) > MAX_FAILED_NAMED)
        label = "\n".join([f"at the top: no loss below {DIVERGED:g} ({len(failed)}):", *names])
        # x in the units of the setting, y as a fraction of the height.
        transform = axes.get_xaxis_transform()
        x = [positions[id(job)] for job in failed]
        axes.plot(x, [0.97] * len(failed), "x", color=RED, markersize=7, transform=transform, label=label)


def _scale_axis(axes: Axes, values: Sequence[str]) -> list[float]:
    """Scale the horizontal axis for the values of a setting, and return the position of each value.

    Numbers get a linear axis, or a logarithmic one if they span more than a decade. Other values are categories.
    """
    numbers = [_finite_number(value) for value in values]
    known = [number for number in numbers if number is not None]
    if len(known) == len(values) and len(set(known)) > 1:
        _scale_numbers(axes, dict(zip(known, values, strict=True)))
        return known
    parsed = dict(zip(values, numbers, strict=True))
    order = sorted(parsed, key=lambda value: (parsed[value] is None, parsed[value] or 0.0, value))
    positions = {value: float(position) for position, value in enumerate(order)}
    shown = order[:: -(-len(order) // MAX_CATEGORIES_NAMED)]
    long = sum(map(len, shown)) > 30
    axes.set_xticks(
        [positions[value] for value in shown],
        [label_text(value, limit=24) for value in shown],
        rotation=30 if long else 0,
        ha="right" if long else "center",
    )
    axes.set_xlim(-0.5, len(order) - 0.5)
    return [positions[value] for value in values]


def _scale_numbers(axes: Axes, texts: dict[float, str]) -> None:
    """Scale the horizontal axis for numbers, and label it with the typed values if there is room.

    Args:
        texts: At least two numbers, each with its text as it was typed.
    """
    numbers = sorted(texts)
    log_scale = spans_decades(numbers)
    positions = np.log(numbers) if log_scale else np.asarray(numbers)
    if log_scale:
        axes.set_xscale("log")
    distances = np.diff(positions) / (positions[-1] - positions[0])
    widths = np.asarray([CHARACTER_WIDTH * (len(texts[number]) + 1) for number in numbers])
    if (distances > (widths[1:] + widths[:-1]) / 2).all():
        axes.set_xticks(numbers, [texts[number] for number in numbers])
        axes.set_xticks([], minor=True)


def _finite_number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) < MAX_VALUE else None  # also None for NaN
