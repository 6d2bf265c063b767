"""Warning signs, told as they set in."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from gpt_pretrain.config.schema import DoctorSettings, TrainSettings
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.data.tokens import loss_by_frequencies
from gpt_pretrain.runs.tensorboard import EventFiles
from gpt_pretrain.training.callbacks.losses import LossLines
from gpt_pretrain.training.lit_module import GPTLitModule
from gpt_pretrain.training.monitoring.health import Baseline, HealthMonitor
from gpt_pretrain.training.monitoring.signs import LEAST_SECONDS
from gpt_pretrain.training.nonfinite import NonFiniteError

log = logging.getLogger(__name__)


class WarningSigns(Callback):
    """Shows a doctor the numbers of the run, and tells what it finds: as warnings, and as text in TensorBoard.

    Args:
        run: all settings of the run.
        doctor: the thresholds.
        data: what is waited for.
        losses: the loss lines, which are made before this acts.
    """

    def __init__(self, run: TrainSettings, doctor: DoctorSettings, data: TextDataModule, losses: LossLines) -> None:
        usual = Baseline(chance=math.log(data.tokenizer.vocab_size), frequencies=loss_by_frequencies(data.split.train))
        self.doctor = HealthMonitor(run, doctor, usual)
        self.window = doctor.window
        self.data = data
        self.losses = losses
        self._told = self._left_out = self._lines = 0
        self._sum, self._batches = 0.0, 0
        self._clock: tuple[int, float, float] | None = None

    @property
    def findings(self) -> list[dict[str, Any]]:
        """What was found so far: `sign`, `step` and `text` of each."""
        return [asdict(finding) for finding in self.doctor.findings]

    def state_dict(self) -> dict[str, Any]:
        return self.doctor.state_dict() | {"left_out": self._left_out}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.doctor.load_state_dict(state_dict)
        self._told, self._left_out = len(self.doctor.findings), int(state_dict["left_out"])

    def on_train_start(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        self._step, self._lines = trainer.global_step, len(self.losses.steps)
        if len(pl_module.skipped) > self._left_out:  # by a rollback, to the checkpoint that this goes on from
            self._left_out = len(pl_module.skipped)
            epoch, batch = pl_module.skipped[-1]
            what = f"The loss or gradient of batch {batch} in epoch {epoch + 1} was NaN or infinite, and the run went back."
            self.doctor.nonfinite(max(pl_module.step, 0), what)
        if self.losses.first is not None:
            self.doctor.before(*self.losses.first)
        self._tell(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: GPTLitModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        done = trainer.global_step
        if outputs:  # none, where the batch was left out
            self._sum, self._batches = self._sum + pl_module.loss_value, self._batches + 1
        elif not math.isfinite(pl_module.loss_value):
            what = (
                f"The loss of batch {batch_idx} in epoch {trainer.current_epoch + 1} is {pl_module.loss_value}; it is left out."
            )
            self.doctor.nonfinite(done, what)
        if done != self._step:  # else gradients are still being accumulated
            self._step = done
            self._examine(done - 1, pl_module)
        self._tell(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: GPTLitModule, exception: BaseException) -> None:
        if isinstance(exception, NonFiniteError) and pl_module.on_nonfinite == "stop":
            self.doctor.nonfinite(trainer.global_step, str(exception))
            self._tell(trainer)

    def _examine(self, step: int, module: GPTLitModule) -> None:
        """Show the doctor the optimizer step just done."""
        norm, losses = module.grad_norm_value, self.losses
        if norm is not None and not math.isfinite(norm):
            self.doctor.nonfinite(step, f"The norm of the gradients is {norm}; the step is left out.")
        if self._batches:
            self.doctor.step(step, self._sum / self._batches, norm)
        self._sum, self._batches = 0.0, 0
        if len(losses.steps) > self._lines:
            self._lines = len(losses.steps)
            self.doctor.line(step, losses.train_losses[-1], losses.val_losses[-1])
        if self._clock is None or step - self._clock[0] >= self.window:
            self._time(step, module)

    def _time(self, step: int, module: GPTLitModule) -> None:
        """Show the doctor the waiting for batches since it saw it last; starting the workers is left out."""
        now = (step, module.clock.seconds(), self.data.seconds_waited)
        if self._clock is not None:
            _, seconds, waited = (b - a for a, b in zip(self._clock, now, strict=True))
            if seconds < LEAST_SECONDS:
                return
            self.doctor.waited(step, waited, seconds)
        self._clock = now

    def _tell(self, trainer: L.Trainer) -> None:
        for finding in self.doctor.findings[self._told :]:
            log.warning("doctor: step %d, %s: %s", finding.step, finding.sign, finding.text)
            for logger in trainer.loggers:
                if isinstance(logger, EventFiles):
                    logger.add_text("doctor", finding.text, step=finding.step)
        self._told = len(self.doctor.findings)
