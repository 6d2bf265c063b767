"""Compare this program with others on this machine: python -m benchmarks [CASE ...]."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from rich.console import Console

from benchmarks import budget, learn, references, report, serving, serving_load
from benchmarks.cases import Case, all_cases
from benchmarks.measure import ROOT, Measurement, device, run
from gpt_pretrain.training.acceleration import precision_for

console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)


def main() -> None:
    """Measure the cases of the command line, print tables and write JSON lines."""
    others = {"budget": budget, "learn": learn, "references": references, "serve": serving, "serve-load": serving_load}
    if (other := others.get(next(iter(sys.argv[1:]), ""))) is not None:
        other.main(sys.argv[2:])
        return
    arguments = _arguments()
    precision, reason = precision_for("auto", device())
    cases = all_cases(precision=precision)
    file = (
        Path(arguments.json)
        if arguments.json is not None
        else ROOT / "outputs" / "benchmarks" / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}.jsonl"
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    console.print(f"{report.machine()}\nTraining in {precision} ({reason}).", soft_wrap=True)
    for name in arguments.cases or cases:
        rows = report.rows(name, cases[name], _measure(name, cases[name], precision=precision, rounds=arguments.rounds))
        report.show(console, cases[name], rows)
        with open(file, "a", encoding="utf-8") as stream:
            for row in rows:
                stream.write(json.dumps(dataclasses.asdict(row) | {"machine": report.machine()}) + "\n")
        if arguments.update_docs:
            report.update_page(cases, {name: rows})
    console.print(f"The rows are in {file}, one JSON object per line.", soft_wrap=True)


def _arguments() -> argparse.Namespace:
    cases = all_cases(precision="32-true")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="cases:\n"
        + "\n".join(f"  {name:20} {case.title}" for name, case in cases.items())
        + "\n\nbudget compares what is reached in a time; learn compares time and tokens to a loss; references makes the curves "
        "of\nreport pages; serve measures the server, and serve-load tests it under load. Each has a --help.\n"
        "python -m benchmarks.scaling measures the loss by size, text and settings.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help="cases to run (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each subject, in alternation (default: 3)")
    parser.add_argument(
        "--json", metavar="FILE", help="file to append the results to (default: a new file in outputs/benchmarks/)"
    )
    parser.add_argument("--update-docs", action="store_true", help="write the tables into docs/performance.md")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.cases if name not in cases]:
        parser.error(f"there is no case {unknown[0]}; choose among {', '.join(cases)}")
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    return arguments


def _measure(name: str, case: Case, *, precision: str, rounds: int) -> dict[str, list[Measurement | None]]:
    """Measure all subjects in alternation, each time in a fresh process.

    No two subjects share memory, threads or settings.
    """
    found: dict[str, list[Measurement | None]] = {subject: [] for subject in case.subjects}
    for number in range(rounds):
        for subject, measured in found.items():
            with console.status(f"{name}: {subject}, round {number + 1} of {rounds}"):
                measured.append(_measure_in_process(precision, name, subject))
            if (last := measured[-1]) is not None:
                seconds = report.duration(median(last.seconds))
                console.print(f"{name}: {subject}, round {number + 1} of {rounds}: {seconds}", soft_wrap=True, style="dim")
    return found


def _measure_in_process(precision: str, name: str, subject: str) -> Measurement | None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "measurement.json")
        try:
            run([sys.executable, "-m", "benchmarks.worker", precision, name, subject, str(file)])
            return Measurement(**json.loads(file.read_text(encoding="utf-8")))
        except RuntimeError as error:
            missing = "No module named 'llms_from_scratch'" in str(error)
            reason = "pip install --no-deps llms-from-scratch==1.0.19" if missing else str(error)
    console.print(f"{name}: {subject} cannot be measured: {reason}", soft_wrap=True, markup=False)
    return None


if __name__ == "__main__":
    main()
