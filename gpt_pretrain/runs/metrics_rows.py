"""Read the rows of a metrics.csv. A killed process may have left it incomplete, and anybody may have written it."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path

from gpt_pretrain.system.reading import open_regular, read_lines

AXES = ("step", "epoch", "tokens_seen")  # columns for the horizontal axis of charts
EVALUATED = "evaluation/"  # prefix of the columns of held-out texts and tasks
MAX_METRICS_BYTES = 1_000_000_000  # A row has about 150 bytes.
MAX_LINE_BYTES = 100_000
MAX_COLUMNS = 1000
MAX_NAME = 100  # characters of the name of a column; a run's have at most 80
# Points of earlier steps: of each metric, and of all together. TensorBoard shows 1,000 of each metric by default.
MAX_POINTS, MAX_ALL_POINTS = 2000, 100_000


def is_evaluated(column: str) -> bool:
    """Return whether a column belongs to a held-out text or task."""
    return column.startswith(EVALUATED) and len(column) <= MAX_NAME


class History:
    """The metrics of many rows by tokens seen, and the lowest loss. Each metric keeps about MAX_POINTS equally spaced points.

    If there are hundreds of metrics, as in a stranger's file, each keeps fewer points.

    Attributes:
        points: Tokens seen and values of each metric.
        lowest_val_loss: The lowest validation loss of all rows, in nats per token; infinite without one.
    """

    def __init__(self) -> None:
        self.points: dict[str, list[tuple[int, float]]] = {}
        self.lowest_val_loss = math.inf
        self._seen: dict[str, int] = {}  # values of each metric so far; every `_strides`th is kept
        self._strides: dict[str, int] = {}
        self._count = 0  # number of all points

    def add(self, numbers: dict[str, float]) -> None:
        """Add the numbers of a row by column. A row without tokens seen counts for the lowest loss only."""
        self.lowest_val_loss = min(self.lowest_val_loss, numbers.get("val/loss", math.inf))
        tokens = numbers.get("tokens_seen")
        if tokens is None:
            return
        for name, value in numbers.items():
            if name not in AXES:
                self._add_point(name, (int(tokens), value))
        if self._count >= MAX_ALL_POINTS:
            for name in self.points:
                self._thin(name)

    def _add_point(self, name: str, point: tuple[int, float]) -> None:
        seen, stride = self._seen.get(name, 0), self._strides.get(name, 1)
        self._seen[name] = seen + 1
        if seen % stride:
            return
        points = self.points.setdefault(name, [])
        points.append(point)
        self._count += 1
        if len(points) >= 2 * MAX_POINTS:
            self._thin(name)

    def _thin(self, name: str) -> None:
        """Leave out every second point of a metric, now and in the future."""
        points = self.points[name]
        self._count -= len(points) // 2
        del points[1::2]
        self._strides[name] = 2 * self._strides.get(name, 1)


def read_heading(file: Path) -> list[str]:
    """Return the names of the columns of a metrics.csv; none if it cannot be read."""
    return next(_read_lists(file), [])[:MAX_COLUMNS]


def read_rows(file: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a metrics.csv in a run's folder by column. If the file is damaged, stop at the first error.

    A row with more cells than columns is yielded without values. A program may have written its numbers with decimal commas, so
    that no cell belongs to a certain column.
    """
    rows = _read_lists(file)
    heading = next(rows, [])
    for row in rows:
        yield dict(zip(heading[:MAX_COLUMNS], row, strict=False)) if len(row) <= len(heading) else {}


def _read_lists(file: Path) -> Iterator[list[str]]:
    try:
        with open_regular(file, within=file.parent) as stream:
            # Each line is a row, even after an open quotation mark. Otherwise one row could fill the memory.
            delimiter = ""
            for line in read_lines(stream, max_line_bytes=MAX_LINE_BYTES, max_bytes=MAX_METRICS_BYTES):
                if not delimiter:  # the heading; a spreadsheet program may put a byte order mark before it
                    line, delimiter = line.removeprefix("\ufeff"), ";" if ";" in line and "," not in line else ","
                yield from csv.reader([line], delimiter=delimiter)
    except (OSError, csv.Error):
        return
