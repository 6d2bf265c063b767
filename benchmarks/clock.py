"""Callbacks that time a real run from the outside."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from benchmarks.measure import Measurement, now, peak_bytes


class Clock(Callback):
    """Write the seconds of each step to a file when training ends.

    Args:
        file: File for a `Measurement` as JSON.
        warmup: First steps that do not count.
    """

    def __init__(self, *, file: str, warmup: int) -> None:
        self.file = Path(file)
        self.warmup = warmup
        self.stamps: list[float] = []
        self.peak = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.stamps.append(now())
        self.peak = peak_bytes()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        counted = self.stamps[self.warmup - 1 :]
        seconds = [end - start for start, end in itertools.pairwise(counted)]
        result = Measurement(seconds, self.peak, {"precision": str(trainer.precision)})
        self.file.write_text(json.dumps(dataclasses.asdict(result)), encoding="utf-8")


class Stamp(Callback):
    """Write the time of day at the end of the first step to a file.

    Args:
        file: File for the time, in seconds since 1970.
    """

    def __init__(self, *, file: str) -> None:
        self.file = Path(file)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.file.exists():
            self.file.write_text(str(time.time()))


class TrainingTime(Callback):
    """Write the seconds of the training loop, with its evaluations, to a file.

    Args:
        file: File for wall time and processor time, as JSON.
    """

    def __init__(self, *, file: str) -> None:
        self.file = Path(file)
        self.start = (0.0, 0.0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.start = time.perf_counter(), time.process_time()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        wall, cpu = time.perf_counter() - self.start[0], time.process_time() - self.start[1]
        self.file.write_text(json.dumps({"wall_seconds": wall, "cpu_seconds": cpu}), encoding="utf-8")


class ProcessCosts(Callback):
    """Write the processor seconds up to the end of each step, and the peak memory, to a file.

    Args:
        file: File for the costs, as JSON.
    """

    def __init__(self, *, file: str) -> None:
        self.file = Path(file)
        self.stamps: list[float] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.stamps.append(time.process_time())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        steps = [end - start for start, end in itertools.pairwise(self.stamps)]
        costs = {"start, s": self.stamps[0], "memory, MB": peak_bytes() / 1e6}
        self.file.write_text(json.dumps(costs | ({"step, s": min(steps)} if steps else {})), encoding="utf-8")
