"""Draw the table of docs/own-vocabulary.md, bits per byte over vocabulary size: python -m benchmarks.vocabulary_plot"""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, PICTURE = DOCS / "own-vocabulary.md", DOCS / "images" / "vocabulary-size.svg"
GPT2 = "gpt2"
FIRST_LENGTH = 3  # the first column with bits per byte
COLORS = ("#c6dbef", "#9ecae1", "#6baed6", "#3182bd", "#08519c")


def main() -> None:
    """Write the picture."""
    with matplotlib.rc_context({"svg.hashsalt": "vocabulary", "svg.fonttype": "none"}):  # gives the same bytes each time
        draw()


def draw() -> None:
    """Draw a line for each length of the training, and GPT-2's vocabulary beside it."""
    heading, *rows = read_table(PAGE.read_text(encoding="utf-8"))
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for column, color in zip(range(FIRST_LENGTH, len(heading)), COLORS[-(len(heading) - FIRST_LENGTH) :], strict=True):
        points = {name: (size(name), float(bits)) for name, *cells in rows if (bits := cells[column - 1]) != "-"}
        own = [point for name, point in points.items() if name != GPT2]
        axes.plot(*zip(*own, strict=True), "o-", color=color, label=heading[column])
        if GPT2 in points:
            axes.plot(*points[GPT2], "D", color=color, markeredgecolor="black")
            axes.annotate("gpt2", points[GPT2], xytext=(-6, 0), textcoords="offset points", ha="right", va="center", fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set_xticks([size(name) for name, *_ in rows], [f"{size(name):,}" for name, *_ in rows], rotation=30)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2f}"))
    axes.set(xlabel="tokens in the vocabulary", ylabel="bits per byte of the validation set")
    axes.grid(alpha=0.3)
    axes.legend(title="text read", frameon=False)
    figure.savefig(PICTURE, metadata={"Date": None, "Creator": None})


def read_table(markdown: str) -> list[list[str]]:
    """Return the cells of the page's table, with the heading first."""
    lines = [line.strip().strip("|").split("|") for line in markdown.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line] for line in lines]
    return [row for row in cells if not row[0].startswith("--")]


def size(name: str) -> int:
    """Return the number of tokens of a row's vocabulary."""
    return 50257 if name == GPT2 else int(name.replace(",", ""))


if __name__ == "__main__":
    main()
