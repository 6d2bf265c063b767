"""Report the warning signs of a run."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from gpt_pretrain.config.schema import DoctorSettings, TrainSettings
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.data.token_stream import loss_by_frequencies
from gpt_pretrain.runs.tensorboard import EventFiles
from gpt_pretrain.training.callbacks.evaluation import PeriodicEvaluation
from gpt_pretrain.training.lit_module import GPTLitModule
from gpt_pretrain.training.monitoring.health_monitor import BaselineLosses, HealthMonitor
from gpt_pretrain.training.monitoring.warning_signs import MIN_SECONDS
from gpt_pretrain.training.steps.batch_results import BatchResult
from gpt_pretrain.training.steps.nonfinite import NonFiniteError

log = logging.getLogger(__name__)


class WarningSigns(Callback):
    """Pass the numbers of the run to a health monitor, and log its findings as warnings and as text in TensorBoard.

    Args:
        run: All settings of the run.
        thresholds: The thresholds of the warning signs.
        data: The data module. It measures the waiting for batches.
        losses: The evaluation callback. It must come before this one.
    """

    def __init__(self, run: TrainSettings, thresholds: DoctorSettings, data: TextDataModule, losses: PeriodicEvaluation) -> None:
        baseline = BaselineLosses(uniform=math.log(data.tokenizer.vocab_size), unigram=loss_by_frequencies(data.split.train))
        self.monitor = HealthMonitor(run, thresholds, baseline)
        self.window = thresholds.window
        self.data = data
        self.losses = losses
        self._n_reported = self._n_skipped = self._n_evaluations = 0
        self._nats, self._counted = 0.0, 0
        self._clock: tuple[int, float, float] | None = None

    @property
    def findings(self) -> list[dict[str, Any]]:
        """The findings so far, each as a dict of `sign`, `step` and `text`."""
        return [asdict(finding) for finding in self.monitor.findings]

    def state_dict(self) -> dict[str, Any]:
        return self.monitor.state_dict() | {"left_out": self._n_skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.monitor.load_state_dict(state_dict)
        self._n_reported, self._n_skipped = len(self.monitor.findings), int(state_dict["left_out"])

    def on_train_start(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        self._step, self._n_evaluations = trainer.global_step, len(self.losses.steps)
        pl_module.record.observers.append(self._observe_batch)
        if len(pl_module.skipped) > self._n_skipped:  # A rollback skips batches that its checkpoint does not list.
            self._n_skipped = len(pl_module.skipped)
            epoch, batch = pl_module.skipped[-1]
            event = f"The loss or gradient of batch {batch} in epoch {epoch + 1} was NaN or infinite; the run was rolled back."
            self.monitor.observe_nonfinite(max(pl_module.step, 0), event)
        if self.losses.first is not None:
            self.monitor.observe_first_losses(*self.losses.first)
        self._report(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: GPTLitModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step != self._step:  # otherwise gradients are still being accumulated
            self._step = trainer.global_step
            self._observe_evaluation(self._step - 1, pl_module)
        self._report(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: GPTLitModule, exception: BaseException) -> None:
        if isinstance(exception, NonFiniteError) and pl_module.on_nonfinite == "stop":
            self.monitor.observe_nonfinite(exception.step, str(exception))
            self._report(trainer)

    def _observe_batch(self, result: BatchResult) -> None:
        """Pass the numbers of a batch to the monitor, and at the end of an optimizer step also the step's."""
        origin, norm = result.origin, result.norm
        if result.loss is not None and result.counted:
            self._nats += result.loss * result.counted
            self._counted += result.counted
        elif result.loss is not None and not math.isfinite(result.loss):
            event = f"The loss of batch {origin.batch} in epoch {origin.epoch + 1} is {result.loss}; the batch is skipped."
            self.monitor.observe_nonfinite(origin.step + origin.ends_step, event)
        if not origin.ends_step:
            return
        if norm is not None and not math.isfinite(norm):
            self.monitor.observe_nonfinite(origin.step, f"The gradient norm is {norm}; the step is skipped.")
        if self._counted:
            self.monitor.observe_step(origin.step, self._nats / self._counted, norm)
        self._nats, self._counted = 0.0, 0

    def _observe_evaluation(self, step: int, module: GPTLitModule) -> None:
        """Pass the waiting to the monitor, and the losses of an evaluation if there was one after this optimizer step."""
        losses = self.losses
        if len(losses.steps) > self._n_evaluations:
            self._n_evaluations = len(losses.steps)
            self.monitor.observe_evaluation(step, losses.train_losses[-1], losses.val_losses[-1])
        if self._clock is None or step - self._clock[0] >= self.window:
            self._observe_waiting(step, module)

    def _observe_waiting(self, step: int, module: GPTLitModule) -> None:
        """Pass the seconds of waiting for batches since the last call to the monitor. The start of the workers does not count."""
        now = (step, module.clock.seconds(), self.data.seconds_waited)
        if self._clock is not None:
            _, seconds, waited = (b - a for a, b in zip(self._clock, now, strict=True))
            if seconds < MIN_SECONDS:
                return
            self.monitor.observe_waiting(step, waited, seconds)
        self._clock = now

    def _report(self, trainer: L.Trainer) -> None:
        for finding in self.monitor.findings[self._n_reported :]:
            log.warning("doctor: step %d, %s: %s", finding.step, finding.sign, finding.text)
            for logger in trainer.loggers:
                if isinstance(logger, EventFiles):
                    logger.add_text("doctor", finding.text, step=finding.step)
        self._n_reported = len(self.monitor.findings)
