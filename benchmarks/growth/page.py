"""Write the tables of docs/scale.md with their slopes, and draw their pictures."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from benchmarks.growth.steps import Costs
from benchmarks.scale import PAGE

BEGIN, END = "<!-- written by python -m benchmarks.growth --update-docs -->", "<!-- end of growth -->"
IMAGES = PAGE.parent / "images"
LAST_POINTS = 3  # The slope is fitted to this many of the largest sizes, where fixed costs weigh least.
SLOPE = "slope"
COLORS = ("#3182bd", "#e6550d", "#31a354")

Points = dict[int, Costs]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the exponent of a power law through points, by least squares of the logarithms. 1 means in proportion."""
    logs = [(math.log(size), math.log(cost)) for size, cost in points]
    mean_size, mean_cost = (sum(values) / len(logs) for values in zip(*logs, strict=True))
    exponent: float = sum((x - mean_size) * (y - mean_cost) for x, y in logs) / sum((x - mean_size) ** 2 for x, _ in logs)
    return exponent


def _slope_text(points: Sequence[tuple[float, float]]) -> str:
    return f"{round(slope(points), 2) + 0.0:.2f}"  # 0.00 rather than -0.00


def table(unit: str, points: Points) -> list[list[str]]:
    """Return the rows of a table, with the slopes in the last one."""
    names = [*points[min(points)]]
    shown = {size: {name: _number(_three_digits(costs[name])) for name in names} for size, costs in points.items()}
    rows = [[unit, *names]] + [[f"{size:,}", *(_three_digits(points[size][name]) for name in names)] for size in sorted(points)]
    return [*rows, [SLOPE, *(_slope_text(last_points(shown, name)) for name in names)]]


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def last_points(points: Points, name: str) -> list[tuple[float, float]]:
    """Return the largest sizes and their costs."""
    return [(size, points[size][name]) for size in sorted(points)[-LAST_POINTS:]]


def read_tables() -> dict[str, Points]:
    """Return the points of each table between the marks, by title."""
    return {title: _read_table(text) for title, text in _sections(PAGE.read_text(encoding="utf-8")).items()}


def update_page(title: str, text: str) -> None:
    """Write one section between the marks. Other sections stay."""
    page = PAGE.read_text(encoding="utf-8")
    sections = _sections(page) | {title: text}
    body = "".join(f"\n### {name}\n\n{section.strip()}\n" for name, section in sections.items())
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n{body}\n{END}{tail}", encoding="utf-8")


def _sections(page: str) -> dict[str, str]:
    inside = page.partition(BEGIN)[2].partition(END)[0]
    return {part.split("\n", 1)[0]: part.split("\n", 1)[1] for part in inside.split("\n### ")[1:]}


def _read_table(text: str) -> Points:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    (_, *names), _, *body = rows
    return {
        int(size.replace(",", "")): {name: _number(value) for name, value in zip(names, values, strict=True)}
        for size, *values in body
        if size != SLOPE
    }


def draw(picture: str, panels: Mapping[str, tuple[str, Points]]) -> Path:
    """Draw time above memory for each title, with the slopes in the legend, and return the file."""
    file = IMAGES / f"{picture}.svg"
    with matplotlib.rc_context({"svg.hashsalt": picture, "svg.fonttype": "none", "font.size": 8}):  # the same bytes each time
        figure = Figure(figsize=(2.6 * len(panels), 4.6), layout="constrained")
        grid_of_axes = figure.subplots(2, len(panels), sharex="col", squeeze=False)
        for column, (title, (unit, points)) in enumerate(panels.items()):
            above, below = grid_of_axes[0][column], grid_of_axes[1][column]
            _draw(above, points, ", s")
            _draw(below, points, ", MB")
            above.set_title(title, fontsize=9)
            below.set_xlabel(unit)
        grid_of_axes[0][0].set_ylabel("processor seconds")
        grid_of_axes[1][0].set_ylabel("MB")
        figure.savefig(file, metadata={"Date": None, "Creator": None})
    return file


def _draw(axes: Axes, points: Points, ending: str) -> None:
    """Draw the costs with this ending over the sizes, both on logarithmic scales, and a line of slope 1."""
    sizes, names = sorted(points), [name for name in points[min(points)] if name.endswith(ending)]
    for name, color in zip(names, COLORS, strict=False):
        label = f"{re.sub(ending + '$', '', name)}, slope {_slope_text(last_points(points, name))}"
        axes.plot(sizes, [points[size][name] for size in sizes], "o-", color=color, markersize=3, label=label)
    for start, end in _proportional(points, names):
        axes.plot(*zip(start, end, strict=True), ":", color="#999999", linewidth=1)
    axes.set(xscale="log", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=7)


def _proportional(points: Points, names: Sequence[str]) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
    """Yield for each cost the ends of a line that is proportional to the size and goes through the largest size's cost."""
    sizes = sorted(points)
    for name in names:
        first = sizes[-min(LAST_POINTS, len(sizes))]
        yield (first, points[sizes[-1]][name] * first / sizes[-1]), (sizes[-1], points[sizes[-1]][name])
