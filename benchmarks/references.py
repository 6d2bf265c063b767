"""Make the table of reference curves anew: python -m benchmarks references [COMMAND ...].

Each command is trained with several seeds on a text that everybody can have, and its validation losses go into
`gpt_pretrain/runs/reference_curves.json`, which report pages read.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.measure import ROOT, run
from gpt_pretrain.runs.reader import RunContents, read_run
from gpt_pretrain.runs.reference import METRIC, TABLE, ReferenceCurve, deciding_settings

FILE = ROOT / "gpt_pretrain" / "runs" / TABLE
COMMANDS = (
    "python train.py model=tiny",
    "python train.py experiment=bytes",
    "python train.py",
    "python train.py experiment=chapter5",
    "python train.py experiment=small_text",
)
FAST = ("callbacks=minimal", "logger=csv", "trainer.precision=32-true")  # with little or no influence on the losses
MAX_POINTS = 100  # of a curve


def main(arguments: Sequence[str]) -> None:
    """Train the commands, and replace their curves in the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks references", description=__doc__)
    parser.add_argument("commands", nargs="*", default=list(COMMANDS), help="commands (default: those of the guide)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[123, 124, 125], help="seeds (default: 123 124 125)")
    chosen = parser.parse_args(arguments)
    for command in chosen.commands:
        with tempfile.TemporaryDirectory() as folder:
            runs = {str(seed): _train(command, seed, Path(folder) / str(seed)) for seed in chosen.seeds}
            write_curves([*read_curves(without=command), reference_curve(command, runs)])
        print(f"{command}: {len(runs)} seeds", flush=True)


def reference_curve(command: str, runs: dict[str, RunContents]) -> ReferenceCurve:
    """Return the curve of a recipe from its runs, by seed."""
    first = next(iter(runs.values()))
    steps = first.series(METRIC).steps
    kept = range(0, len(steps), 1 + len(steps) // MAX_POINTS)
    return ReferenceCurve(
        command,
        text_sha256=str(first.section("data")["sha256"]),
        settings=deciding_settings(first.config),
        steps=[steps[index] for index in kept],
        losses={seed: [round(one.series(METRIC).values[index], 3) for index in kept] for seed, one in runs.items()},
    )


def read_curves(*, without: str) -> list[ReferenceCurve]:
    """Return the curves in the table, without those of a command."""
    content = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else []
    return [ReferenceCurve(**fields) for fields in content if fields["command"] != without]


def write_curves(curves: Sequence[ReferenceCurve]) -> None:
    """Write the table, a curve on each line."""
    lines = ",\n".join(json.dumps(asdict(one)) for one in curves)
    FILE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def _train(command: str, seed: int, folder: Path) -> RunContents:
    words = shlex.split(command)[2:]
    run([sys.executable, str(ROOT / "train.py"), *words, *FAST, f"seed={seed}", f"hydra.run.dir={folder}"])
    return read_run(folder)
