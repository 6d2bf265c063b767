"""Measure this program beside others, on this machine, in one run: python -m benchmarks [CASE ...]."""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import report
from benchmarks.cases import Case, all_cases
from benchmarks.measure import Measurement

ROOT = Path(__file__).parents[1]
console = Console(highlight=False, width=max(140, Console().width))


def main() -> None:
    """Measure what the command line names, print tables, and write JSON lines."""
    cases = all_cases()
    words = _arguments(cases)
    chosen = words.cases or list(cases)
    file = Path(words.json) if words.json else ROOT / "outputs" / "benchmarks" / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    console.print(report.machine(), soft_wrap=True)
    found = {}
    for name in chosen:
        found[name] = report.rows(name, cases[name], _measure(name, cases[name], rounds=words.rounds))
        _show(cases[name], found[name])
        with open(file, "a", encoding="utf-8") as stream:
            for row in found[name]:
                stream.write(json.dumps(dataclasses.asdict(row) | {"machine": report.machine()}) + "\n")
        if words.update_docs:
            report.update_page(cases, {name: found[name]})
    console.print(f"One JSON line for each row: {file}", soft_wrap=True)


def _arguments(cases: dict[str, Case]) -> argparse.Namespace:
    lines = "\n".join(f"  {name:20} {case.title}" for name, case in cases.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=f"cases:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", choices=[*cases, []], help="which to run; all, unless named")
    parser.add_argument("--rounds", type=int, default=3, help="times that each subject is measured, by turns (default: 3)")
    parser.add_argument("--json", metavar="FILE", help="where to add the results; outputs/benchmarks/, unless named")
    parser.add_argument("--update-docs", action="store_true", help="write the tables into docs/performance.md")
    return parser.parse_args()


def _measure(name: str, case: Case, *, rounds: int) -> dict[str, list[Measurement]]:
    """All subjects by turns, each time in a fresh process, so that none has another's memory, threads or settings."""
    found: dict[str, list[Measurement]] = {subject: [] for subject in case.subjects}
    for number in range(rounds):
        for subject in case.subjects:
            with console.status(f"{name}: {subject}, round {number + 1} of {rounds}"):
                measurement = _in_a_process(name, subject)
            if measurement is not None:
                found[subject].append(measurement)
    return {subject: measured for subject, measured in found.items() if measured}


def _in_a_process(name: str, subject: str) -> Measurement | None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "measurement.json")
        command = [sys.executable, "-m", "benchmarks.worker", name, subject, str(file)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return Measurement(**json.loads(file.read_text(encoding="utf-8")))
    reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
    if "No module named 'llms_from_scratch'" in reason:
        reason = "pip install --no-deps llms-from-scratch==1.0.19"
    console.print(f"{name}: {subject} could not be measured: {reason}", soft_wrap=True, markup=False)
    return None


def _show(case: Case, found: list[report.Row]) -> None:
    if not found:
        return
    head, *lines = report.table(found)
    table = Table(title=case.title, caption=case.note, title_justify="left", caption_justify="left")
    for number, column in enumerate(head):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    console.print(table)


if __name__ == "__main__":
    main()
