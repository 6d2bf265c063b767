"""Show a progress bar over the whole run."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.progress import Progress

from gpt_pretrain.system.terminal import console, progress_bar
from gpt_pretrain.training.lit_module import GPTLitModule

SECONDS_BETWEEN_UPDATES = 0.5


class ProgressBar(Callback):
    """Show epoch, step, loss, tokens/s and time left below the printed lines, if the output is a terminal.

    Args:
        total_steps: Optimizer steps of the whole run.
        max_epochs: Epochs of the whole run.
    """

    def __init__(self, *, total_steps: int, max_epochs: int) -> None:
        self.total_steps = total_steps
        self.max_epochs = max_epochs
        self._bar: Progress | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        if not console.is_terminal or trainer.global_rank != 0:
            return
        self._bar = progress_bar(
            console,
            "epoch {task.fields[epoch]}/{task.fields[epochs]}",
            "step {task.completed:.0f}/{task.total:.0f}  loss {task.fields[loss]}  {task.fields[rate]} tokens/s ",
        )
        self._task = self._bar.add_task(
            "train",
            total=self.total_steps,
            completed=trainer.global_step,
            epoch=trainer.current_epoch + 1,
            epochs=self.max_epochs,
            loss="-",
            rate="-",
        )
        self._bar.start()
        self._updated = time.monotonic()
        self._last = (pl_module.clock.seconds(), pl_module.tokens_seen)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: GPTLitModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._bar is None or time.monotonic() - self._updated < SECONDS_BETWEEN_UPDATES:
            return
        self._updated = time.monotonic()
        now = (pl_module.clock.seconds(), pl_module.tokens_seen)
        seconds, tokens = now[0] - self._last[0], now[1] - self._last[1]
        tokens_per_second = tokens / max(seconds, 1e-9)
        self._last = now
        self._bar.update(
            self._task,
            completed=trainer.global_step,
            epoch=trainer.current_epoch + 1,
            loss=f"{pl_module.record.loss_value:.3f}",
            rate=f"{tokens_per_second:,.0f}",
        )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
