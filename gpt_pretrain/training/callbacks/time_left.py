"""How long a run will take, said once it can be known."""

from __future__ import annotations

import logging
import math
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from gpt_pretrain.system.formatting import format_duration, format_seconds
from gpt_pretrain.training.callbacks.losses import LossLines
from gpt_pretrain.training.lit_module import GPTLitModule

FIRST_STEPS = 2  # not measured: memory is fetched, kernels are compiled
STEPS, SECONDS = 5, 3.0  # measured at least
WORTH_SAYING = 30.0  # seconds left

log = logging.getLogger(__name__)


class TimeLeft(Callback):
    """Says once a training, after a few optimizer steps, about how long the rest takes; nothing if that is short.

    Args:
        losses: whose lines are counted as well.
        total_steps: optimizer steps of the whole run.
    """

    def __init__(self, losses: LossLines, *, total_steps: int) -> None:
        self.losses = losses
        self.total_steps = total_steps

    def on_train_start(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        self._first = trainer.global_step + FIRST_STEPS
        self._since: float | None = None
        self._told = False

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: GPTLitModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._told or not pl_module.ends_step(batch_idx) or trainer.global_step < self._first:
            return
        now = pl_module.clock.seconds()
        if self._since is None:
            self._since, self._first = now, trainer.global_step
            return
        steps = trainer.global_step - self._first
        seconds = now - self._since
        if steps < STEPS or seconds < SECONDS:
            return
        self._told = True
        self._tell(trainer.global_step, seconds / steps)

    def _tell(self, step: int, seconds: float) -> None:
        """Say how long the steps from this one on take, and the loss lines among them."""
        steps, every = self.total_steps - step, self.losses.eval_freq
        lines = math.ceil(self.total_steps / every) - math.ceil(step / every)
        left = steps * seconds + lines * self.losses.seconds
        if left >= WORTH_SAYING:
            parts = f"{steps:,} steps of {format_seconds(seconds)}"
            parts += f", {lines:,} loss lines of {format_seconds(self.losses.seconds)}" if lines and self.losses.seconds else ""
            log.info("About %s left: %s; validation, samples and checkpoints come on top", format_duration(left), parts)
