"""Read the rows of a metrics.csv, which a killed process may have left incomplete, or anybody may have written."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from gpt_pretrain.system.reading import open_regular, read_lines

EVALUATED = "evaluation/"  # begins the columns of held-out texts and tasks
MAX_METRICS_BYTES = 1_000_000_000  # A row has about 150.
MAX_LINE_BYTES = 100_000
MAX_COLUMNS = 1000


def read_rows(file: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a metrics.csv in a run's folder by column; those before the first error, if the file is damaged."""
    try:
        with open_regular(file, within=file.parent) as stream:
            # Each line is a row, also where a quotation mark is open: such a row could fill the memory.
            lines = read_lines(stream, max_line_bytes=MAX_LINE_BYTES, max_bytes=MAX_METRICS_BYTES)
            rows = (row for line in lines for row in csv.reader([line]))
            heading = next(rows, [])[:MAX_COLUMNS]
            for row in rows:
                yield dict(zip(heading, row, strict=False))
    except (OSError, csv.Error):
        return
