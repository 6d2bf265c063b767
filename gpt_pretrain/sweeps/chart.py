"""What a sweep found, as a picture."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gpt_pretrain.runs.charts.drawing import BLACK, BLUE, DIVERGED, NATS, ORANGE, RED, spans_decades, words, write
from gpt_pretrain.runs.metadata import FINISHED
from gpt_pretrain.sweeps.results import CHART, Job, swept_keys

log = logging.getLogger(__name__)

PANELS = 12
FAILED_NAMED = 5
CATEGORIES_NAMED = 20  # on one axis


def keep_chart(jobs: Sequence[Job], folder: Path) -> None:
    """Write summary.png, or warn that it could not be written."""
    try:
        write(sweep_figure(jobs), folder / CHART)
    except OSError as error:
        log.warning("%s cannot be written: %s.", folder / CHART, error.strerror or error)


def sweep_figure(jobs: Sequence[Job]) -> Figure:
    """What a sweep found: one plot for each swept setting, the validation loss up the side, a dot for each job.

    Args:
        jobs: the best first, as `read_sweep` gives them.
    """
    keys = swept_keys(jobs)[:PANELS] or ["job"]
    columns = min(len(keys), 3)
    rows = -(-len(keys) // columns)
    named = min(FAILED_NAMED, sum(job.val_loss > DIVERGED for job in jobs))
    size = (max(5.2, 3.1 * columns), 2.8 * rows + 0.2 * named + 0.9)  # with room for the legend
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes, key in zip(grid, keys, strict=False):
        names = [job.folder.name if key == "job" else job.settings.get(key, "not set") for job in jobs]
        _sweep_panel(axes, jobs, dict(zip(map(id, jobs), _scale(axes, names), strict=True)))
        axes.set_xlabel(words(key))
        axes.grid(alpha=0.25)
    for axes in grid[len(keys) :]:
        axes.set_visible(False)
    for axes in grid[::columns]:
        axes.set_ylabel(f"validation {NATS}".replace(" (", "\n("))
    grid[0].margins(y=0.12)  # room above for those without a loss
    if jobs[0].val_loss > DIVERGED:
        grid[0].set_yticks([])
    entries = {line.get_label(): line for line in grid[0].get_lines()}
    figure.legend(list(entries.values()), [str(label) for label in entries], loc="outside lower left", frameon=False)
    return figure


def _sweep_panel(axes: Axes, jobs: Sequence[Job], where: dict[int, float]) -> None:
    """The dots of one swept setting.

    Args:
        where: each job's place on the axis, by its id.
    """
    good = [job for job in jobs if job.val_loss <= DIVERGED]
    failed = [job for job in jobs if job.val_loss > DIVERGED]
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
        label = f"best: {good[0].val_loss:.4g}, {words(good[0].folder.name)}"
        axes.plot(where[id(good[0])], good[0].val_loss, "*", color=ORANGE, markeredgecolor=BLACK, markersize=15, label=label)
    if failed:
        names = [words(job.folder.name) for job in failed[:FAILED_NAMED]] + ["..."] * (len(failed) > FAILED_NAMED)
        label = "\n".join([f"without a loss below {DIVERGED:g}, at the top ({len(failed)}):", *names])
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
        [words(value, 24) for value in shown],
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
