"""Estimate the duration of a run, and warn of its consequences."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.system.formatting import format_duration, format_seconds
from gpt_pretrain.training.callbacks.evaluation import PeriodicEvaluation
from gpt_pretrain.training.lit_module import GPTLitModule
from gpt_pretrain.training.planning.time_checks import early_end, late_checkpoint

FIRST_STEPS = 2  # steps left out of the measurement, since they allocate memory and compile kernels
STEPS, SECONDS = 5, 3.0  # the minimum to measure
WORTH_SAYING = 30.0  # seconds left; a shorter time is not reported

log = logging.getLogger(__name__)


class TimeLeft(Callback):
    """Report once, after a few optimizer steps, the time for the rest of the training, unless it is short.

    Args:
        settings: All settings of the run.
        losses: The evaluation callback. Its evaluations take a part of the time.
        total_steps: Optimizer steps of the whole run.
        per_epoch: Optimizer steps of an epoch.
        max_seconds: Seconds after which the run ends.
    """

    def __init__(
        self, settings: TrainSettings, losses: PeriodicEvaluation, *, total_steps: int, per_epoch: int, max_seconds: float
    ) -> None:
        self.settings = settings
        self.losses = losses
        self.total_steps = total_steps
        self.per_epoch = per_epoch
        self.max_seconds = max_seconds

    def on_train_start(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        self._first = trainer.global_step + FIRST_STEPS
        self._began = time.monotonic()
        self._start: float | None = None
        self._reported = False

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: GPTLitModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._reported or not pl_module.ends_step(batch_idx) or trainer.global_step < self._first:
            return
        now = pl_module.clock.seconds()
        if self._start is None:
            self._start, self._first = now, trainer.global_step
            return
        steps, seconds = trainer.global_step - self._first, now - self._start
        if steps < STEPS or seconds < SECONDS:
            return
        self._reported = True
        self._report(trainer.global_step, seconds / steps)

    def _report(self, step: int, seconds: float) -> None:
        """Report the time for the remaining steps and evaluations.

        Args:
            step: Optimizer steps done.
            seconds: The duration of a step.
        """
        steps, every = self.total_steps - step, self.losses.eval_freq
        evaluations = math.ceil(self.total_steps / every) - math.ceil(step / every)
        left = steps * seconds + evaluations * self.losses.seconds
        if left >= WORTH_SAYING:
            parts = f"{steps:,} steps of {format_seconds(seconds)}"
            if evaluations and self.losses.seconds:
                parts += f", {evaluations:,} evaluations of {format_seconds(self.losses.seconds)}"
            end = f"; trainer.max_time={self.settings.trainer.max_time} ends the run earlier" if left > self._available() else ""
            log.info("About %s left: %s, not counting validation, samples and checkpoints%s", format_duration(left), parts, end)
        for warning in self._warnings(step, left):
            log.warning("%s", warning)

    def _available(self) -> float:
        """Return the seconds that trainer.max_time leaves."""
        return self.max_seconds - (time.monotonic() - self._began)

    def _warnings(self, step: int, left: float) -> list[str]:
        steps = self.total_steps - step
        early = early_end(self.settings, step=step, total_steps=self.total_steps, needed=left, available=self._available())
        late = late_checkpoint(
            self.settings.checkpoint,
            per_epoch=self.per_epoch,
            left=steps,
            step_seconds=left / max(steps, 1),
        )
        return [warning for warning in (early, late) if warning is not None]
