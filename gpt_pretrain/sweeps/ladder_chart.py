"""Draw a ladder: the losses of the rungs, the predictions of the fitted law, and the chosen size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from gpt_pretrain.model.costs import num_parameters
from gpt_pretrain.runs.charts.drawing import BLACK, BLUE, DIVERGED, GREEN, GREY, ORANGE, new_figure
from gpt_pretrain.sweeps.ladder import Prediction, Rung
from gpt_pretrain.sweeps.ladder_file import StoredLadder
from gpt_pretrain.system.formatting import format_duration, format_short, is_finite_number

BEST = "best"
ALT = (
    "Bits per byte by the number of parameters: a dot for each rung of the ladder, the law that was fitted to them for the "
    "time of a rung and for the time that was left, with its interval, and the chosen size."
)


def measured_bits(ladder: StoredLadder, results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the bits per byte for `ladder_figure`.

    Args:
        results: The results of the trainings that have ended, by the names of their folders.
    """
    names = {rung.name: rung.name for rung in ladder.rungs}
    if ladder.choice is not None:
        names[BEST] = ladder.choice.best.final_name
    found = {name: results.get(folder, {}).get("best_bits_per_byte") for name, folder in names.items()}
    return {name: float(bits) for name, bits in found.items() if is_finite_number(bits) and 0 < bits < DIVERGED}


def ladder_figure(ladder: StoredLadder, bits: Mapping[str, float]) -> Figure:
    """Draw the rungs and, if they have ended, the fitted law with its interval and the choice.

    Args:
        bits: Measured bits per byte by the name of the rung. The last training has the name BEST.
    """
    figure, axes = new_figure(9.0, 4.0)
    measured = [rung for rung in ladder.rungs if rung.name in bits]
    sizes = [rung for rung in measured if rung.lr_factor == 1]
    _draw_rungs(axes, sizes, bits, label=f"rung of {format_duration(ladder.rungs[0].seconds)}", marker="o", color=BLUE)
    line = [rung for rung in measured if rung.lr_factor != 1]
    _draw_rungs(axes, line, bits, label="rung with another learning rate", marker="x", color=GREY)
    for rung in line:
        axes.annotate(f"  {rung.lr_factor:g} x lr", (num_parameters(rung.config), bits[rung.name]), color=GREY, fontsize="small")
    if ladder.choice is not None:
        _draw_law(axes, ladder.choice.rungs, label="fitted law, for the rungs", color=BLUE, fill=False)
        left = format_duration(ladder.choice.best.seconds)
        _draw_law(axes, ladder.choice.sizes, label=f"fitted law, the {left} that were left", color=ORANGE, fill=True)
        chosen = ladder.choice.chosen
        label = f"chosen: {format_short(chosen.parameters, 'parameters')}, {chosen.expected:.2f} expected"
        axes.plot(chosen.parameters, chosen.expected, "*", color=ORANGE, markeredgecolor=BLACK, markersize=15, label=label)
        if BEST in bits:
            axes.plot(chosen.parameters, bits[BEST], "D", color=GREEN, markersize=7, label=f"reached: {bits[BEST]:.3f}")
    axes.set_xscale("log")
    _label_sizes(axes, ladder)
    axes.set_xlabel("parameters")
    axes.set_ylabel("bits per byte of held-out text")
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    return figure


def _draw_rungs(axes: Axes, rungs: Sequence[Rung], bits: Mapping[str, float], *, label: str, marker: str, color: str) -> None:
    if rungs:
        x, y = [num_parameters(rung.config) for rung in rungs], [bits[rung.name] for rung in rungs]
        axes.plot(x, y, marker, color=color, markersize=7, label=label)


def _draw_law(axes: Axes, predictions: Sequence[Prediction], *, label: str, color: str, fill: bool) -> None:
    """Draw predictions as a line, and their interval as an area."""
    x = [one.parameters for one in predictions]
    axes.plot(x, [one.expected for one in predictions], color=color, linewidth=1.2, label=label)
    if fill:
        low, high = [one.low for one in predictions], [one.high for one in predictions]
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0, label="nine of ten cases")


def _label_sizes(axes: Axes, ladder: StoredLadder) -> None:
    """Label the sizes on the logarithmic axis, as far as there is room."""
    sizes = {num_parameters(rung.config) for rung in ladder.rungs}
    if ladder.choice is not None:
        sizes |= {one.parameters for one in [*ladder.choice.sizes, *ladder.choice.rungs]}
    shown = list[int]()
    for size in sorted(sizes):
        if not shown or math.log(size / shown[-1]) > 0.25:
            shown.append(size)
    axes.set_xticks(shown)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: format_short(size, "").rstrip()))
    axes.xaxis.set_minor_locator(NullLocator())
