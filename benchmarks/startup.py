"""Measure how long a user waits before something happens."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import ROOT, Measurement, run


def command(*arguments: str) -> Measurement:
    """Measure `python train.py` with these arguments."""
    return _timed([str(ROOT / "train.py"), *arguments])


def imports(statement: str) -> Measurement:
    """Measure Python with a single import."""
    return _timed(["-c", statement])


def first_step() -> Measurement:
    """Measure from the command to the end of the first optimizer step of the tiny model."""
    with tempfile.TemporaryDirectory() as folder:
        stamp = Path(folder, "stamp")
        start = time.time()
        run(
            [
                sys.executable,
                str(ROOT / "train.py"),
                "model=tiny",
                "trainer.max_steps=1",
                f"hydra.run.dir={folder}/run",
                f"+callbacks.custom.stamp={{_target_: benchmarks.clock.Stamp, file: {stamp}}}",
            ]
        )
        return Measurement([float(stamp.read_text()) - start])


def _timed(arguments: list[str]) -> Measurement:
    start = time.perf_counter()
    run([sys.executable, *arguments])
    return Measurement([time.perf_counter() - start])
