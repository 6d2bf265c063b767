"""Time a few optimizer steps for a dry run."""

from __future__ import annotations

import statistics
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from gpt_pretrain.training.lit_module import GPTLitModule


class TimedSteps(Callback):
    """Time optimizer steps, and stop the training when there are enough of them.

    Args:
        least: The least number of steps after the first, which is not counted.
        most: The largest number of them.
        seconds: The time after which the least number is enough.

    Attributes:
        ends: The end of each step, the first included, in seconds since the start of the training.
    """

    def __init__(self, *, least: int, most: int, seconds: float) -> None:
        self.least = least
        self.most = most
        self.seconds = seconds
        self.ends: list[float] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: GPTLitModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not pl_module.ends_step(batch_idx):
            return
        self.ends.append(time.perf_counter() - self._start)
        timed, long_enough = len(self.ends) - 1, self.ends[-1] - self.ends[0] >= self.seconds
        trainer.should_stop = timed >= self.most or (timed >= self.least and long_enough)

    def step_seconds(self) -> float:
        """Return the median duration of the steps after the first."""
        return statistics.median(end - begin for begin, end in zip(self.ends, self.ends[1:], strict=False))
