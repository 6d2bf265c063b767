"""Find the sweep that a test has run, and read its ranking."""

import csv
from pathlib import Path


def only_sweep(folder: Path) -> Path:
    """Return the folder of the only sweep below the working directory of a test."""
    (sweep,) = (folder / "outputs" / "multirun").iterdir()
    return sweep


def read_summary(sweep: Path) -> list[dict[str, str]]:
    """Return the rows of a sweep's summary.csv."""
    with open(sweep / "summary.csv", encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))
