"""Read the rows of a metrics.csv, which a killed process may have left incomplete, or anybody may have written."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from gpt_pretrain.system.reading import open_regular, read_lines

MAX_METRICS_BYTES = 1_000_000_000  # A row has about 150.
MAX_LINE_BYTES = 100_000
MAX_COLUMNS = 100


def read_rows(file: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a metrics.csv in a run's folder by column; those before the first error, if the file is damaged."""
    try:
        with open_regular(file, within=file.parent) as stream:
            rows = csv.reader(read_lines(stream, max_line_bytes=MAX_LINE_BYTES, max_bytes=MAX_METRICS_BYTES))
            heading = next(rows, [])[:MAX_COLUMNS]
            for row in rows:
                yield dict(zip(heading, row, strict=False))
    except (OSError, csv.Error):
        return
