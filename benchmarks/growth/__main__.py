"""Measure how costs grow with one size at a time: python -m benchmarks.growth [NAME ...] [--update-docs]."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date

import torch

from benchmarks import report
from benchmarks.growth import commands, page, steps
from benchmarks.growth.steps import Costs
from benchmarks.measure import ROOT
from benchmarks.scale import grid


@dataclass(frozen=True)
class Growth:
    """A size to vary in a measurement of growth.

    Args:
        picture: Name of its picture. A picture may show several sizes.
        title: Title of its table and of its panel.
        unit: The unit of the sizes.
        sizes: The sizes.
        measure: The function that measures one size, in a fresh process.
        note: Caption of the table.
    """

    picture: str
    title: str
    unit: str
    sizes: tuple[int, ...]
    measure: Callable[[int], Costs]
    note: str


STEP = "4 layers of 256 numbers, 4 windows of 256 tokens, a vocabulary of 4,096, fp32"
ALL = {
    "batch": Growth("growth-steps", "Batch", "windows per step", (1, 2, 4, 8, 16, 32, 64), steps.by_batch, f"{STEP}."),
    "context": Growth(
        "growth-steps",
        "Context",
        "tokens of a window",
        (256, 512, 1024, 2048, 4096, 8192),
        steps.by_context,
        f"{STEP}, but one window. Attention grows with the square of the context.",
    ),
    "context-dropout": Growth(
        "growth-steps",
        "Context, with dropout",
        "tokens of a window",
        (256, 512, 1024, 2048, 4096, 8192),
        steps.by_context_with_dropout,
        f"{STEP}, but one window and drop_rate 0.1. Attention keeps its weights for the backward pass up to 1,024 tokens.",
    ),
    "layers": Growth("growth-steps", "Layers", "layers", (1, 2, 4, 8, 16, 32), steps.by_layers, f"{STEP}."),
    "vocabulary": Growth(
        "growth-steps",
        "Vocabulary",
        "tokens in the vocabulary",
        (256, 1024, 4096, 16_384, 65_536, 262_144),
        steps.by_vocabulary,
        f"{STEP}.",
    ),
    "corpus": Growth(
        "growth-runs",
        "Corpus",
        "tokens of the corpus",
        tuple(10**power for power in range(6, 11)),
        commands.by_corpus,
        "`train.py data=shards model=tiny`; start: from the command to the end of the first step.",
    ),
    "documents": Growth(
        "growth-runs",
        "Documents",
        "documents of 60 bytes",
        tuple(10**power for power in range(3, 7)),
        commands.by_documents,
        "`gpt-pretrain prepare` with one worker, and `train.py model=tiny data.respect_documents=true`.",
    ),
    "checkpoints": Growth(
        "growth-runs",
        "Checkpoints",
        "checkpoints in the run's folder",
        (3, 10, 100, 1000, 10_000),
        commands.by_checkpoints,
        "`train.py resume=RUN` to the end of its first step.",
    ),
    "rows": Growth(
        "growth-runs",
        "Metrics",
        "rows of metrics.csv",
        tuple(10**power for power in range(3, 7)),
        commands.by_rows,
        "The report page, and a resumed run's reading of metrics.csv with TensorBoard's first events.",
    ),
}


def main() -> None:
    """Measure, print the tables, and write them and the pictures into docs/."""
    names = "\n".join(f"  {name:16} {growth.unit}" for name, growth in ALL.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth",
        description=__doc__,
        epilog=f"sizes:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="what grows (default: all)")
    parser.add_argument("--update-docs", action="store_true", help="write tables and pictures into docs/")
    parser.add_argument("--point", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in ALL]:
        parser.error(f"there is no size {unknown[0]}; choose among {', '.join(ALL)}")
    if arguments.point is not None:
        print(json.dumps(ALL[arguments.names[0]].measure(arguments.point)))
        return
    torch.set_num_threads(1)  # as in the measuring processes, for the line about the machine
    for name in arguments.names or ALL:
        _measure(name, ALL[name], update_docs=arguments.update_docs)
    if arguments.update_docs:
        draw_all()


def draw_all() -> None:
    """Draw the pictures from the tables of the page."""
    points = page.read_tables()
    for picture in {growth.picture: None for growth in ALL.values()}:
        panels = {
            growth.title: (growth.unit, points[growth.title])
            for growth in ALL.values()
            if growth.picture == picture and growth.title in points
        }
        if panels:
            page.draw(picture, panels)


def _measure(name: str, growth: Growth, *, update_docs: bool) -> None:
    points = {}
    for size in growth.sizes:
        points[size] = _measure_in_process(name, size)
        print(f"{name} {size:,}: {points[size]}", flush=True)
    rows = page.table(growth.unit, points)
    print(grid(rows), flush=True)
    if update_docs:
        about = textwrap.fill(f"{growth.note} {date.today()}, {report.machine()}.", report.PAGE_WIDTH, break_on_hyphens=False)
        page.update_page(growth.title, f"{about}\n\n{grid(rows)}")


def _measure_in_process(name: str, size: int) -> Costs:
    command = [sys.executable, "-m", "benchmarks.growth", name, "--point", str(size)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip() or f"ended with exit code {done.returncode}"  # a killed process writes nothing
        raise SystemExit(f"{name} {size:,}: {reason.splitlines()[-1]}")
    costs: Costs = json.loads(done.stdout.splitlines()[-1])
    return costs


if __name__ == "__main__":
    main()
