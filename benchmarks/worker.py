"""Run one measurement in a fresh process: python -m benchmarks.worker PRECISION CASE SUBJECT FILE."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from benchmarks.cases import all_cases


def main() -> None:
    """Measure, and write the result to the file as JSON."""
    precision, case, subject, file = sys.argv[1:]
    measurement = all_cases(precision=precision)[case].subjects[subject]()
    Path(file).write_text(json.dumps(dataclasses.asdict(measurement)), encoding="utf-8")


if __name__ == "__main__":
    main()
