"""Print the share of lines that the tests run, by folder, and the lines that they do not run.

`python -m tests.helpers.coverage_by_folder FILE` reads what `pytest --cov --cov-report=json:FILE` wrote.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

from gpt_pretrain.system.tables import format_table


def main(file: Path) -> None:
    """Print the table and the list."""
    files = json.loads(file.read_text(encoding="utf-8"))["files"]
    folders: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, found in files.items():
        for folder in (Path(name).parent.as_posix(), "all"):
            folders[folder][0] += found["summary"]["covered_lines"]
            folders[folder][1] += found["summary"]["num_statements"]
    rows = [[folder, str(lines), f"{100 * covered / max(1, lines):.1f}"] for folder, (covered, lines) in sorted(folders.items())]
    print(format_table([["folder", "lines", "run by the tests, %"], *rows]))
    print()
    for name, found in files.items():
        if missing := found["missing_lines"]:
            print(f"{name}: {_ranges(missing)}")


def _ranges(numbers: list[int]) -> str:
    """Return numbers such as 3, 4, 5, 9 as "3-5, 9"."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return ", ".join(f"{group[0]}-{group[-1]}" if len(group) > 1 else str(group[0]) for group in groups)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
