"""Measure the time that a user waits before something happens."""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

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


def first_token() -> Measurement:
    """Measure generate.py with a run's checkpoint of GPT-2 124M up to its first and only token."""
    with tempfile.TemporaryDirectory() as folder:
        run([sys.executable, str(ROOT / "train.py"), *_run_of_124m(folder), "trainer.max_steps=1"])
        return _timed([str(ROOT / "generate.py"), f"checkpoint={folder}/run", "sampler.max_new_tokens=1"])


def whole_run(*overrides: str) -> Measurement:
    """Measure `make train` from the command to its end, and compare it with its own steps alone.

    The time of the steps is the number of all tokens divided by the median rate in metrics.csv. That rate leaves out evaluation,
    samples and checkpoints.

    Args:
        overrides: Settings, for a shorter run.
    """
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        run([sys.executable, str(ROOT / "train.py"), f"hydra.run.dir={folder}/run", *overrides])
        seconds = time.perf_counter() - start
        with Path(folder, "run", "metrics.csv").open(encoding="utf-8", newline="") as stream:
            rows = [*csv.DictReader(stream)]
    rates = [float(row["tokens_per_second"]) for row in rows if row.get("tokens_per_second")]
    seen = max(int(float(row["tokens_seen"])) for row in rows if row.get("tokens_seen"))
    return Measurement([seconds], None, {"result": f"{seconds / (seen / median(rates)):.2f} x its steps"})


def _run_of_124m(folder: str) -> list[str]:
    return ["model=gpt2_124m", "tokenizer=gpt2", f"hydra.run.dir={folder}/run", "callbacks=minimal"]


def _timed(arguments: list[str]) -> Measurement:
    start = time.perf_counter()
    run([sys.executable, *arguments])
    return Measurement([time.perf_counter() - start])
