"""What comes out of a run, noted while it runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from gpt_pretrain.runs.metadata import update_metadata
from gpt_pretrain.system.resources import peak_memory
from gpt_pretrain.training.callbacks.health import WarningSigns
from gpt_pretrain.training.callbacks.losses import LossLines
from gpt_pretrain.training.callbacks.metrics import TrainMetrics
from gpt_pretrain.training.callbacks.samples import Samples
from gpt_pretrain.training.callbacks.save import SaveRun
from gpt_pretrain.training.lit_module import GPTLitModule


class MetadataWriter(Checkpoint):
    """Writes the results so far to run.json after each epoch and at the end, however it comes.

    It acts after `SaveRun`, as which it is a Checkpoint to Lightning.

    Args:
        run_dir: the run's folder.
        losses, metrics, save, samples, signs: where the results, and what the doctor found, come from.
        tokens_per_epoch: turns tokens seen into epochs.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        losses: LossLines,
        metrics: TrainMetrics,
        save: SaveRun,
        samples: Samples | None,
        signs: WarningSigns | None,
        tokens_per_epoch: int,
    ) -> None:
        self.run_dir = run_dir
        self.tokens_per_epoch = tokens_per_epoch
        self.losses = losses
        self.metrics = metrics
        self.save = save
        self.samples = samples
        self.signs = signs
        self._begun = False
        self._speed = math.nan

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begun = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        self._speed = self.metrics.speed(pl_module)
        self._write(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        self._speed = self.metrics.tokens_per_second  # before pictures were drawn
        self._write(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: GPTLitModule, exception: BaseException) -> None:
        if self._begun:  # else there is nothing yet to tell
            self._write(trainer, pl_module)

    def _write(self, trainer: L.Trainer, module: GPTLitModule) -> None:
        if trainer.is_global_zero:
            findings = [] if self.signs is None else self.signs.findings
            update_metadata(self.run_dir, result=self._result(trainer, module), findings=findings)

    def _result(self, trainer: L.Trainer, module: GPTLitModule) -> dict[str, Any]:
        """Numbers by name; None for those that there are none of, or that are not finite."""
        train_losses, samples = self.losses.train_losses, [] if self.samples is None else self.samples.samples
        result: dict[str, Any] = {
            "best_val_loss": self.save.best_loss,
            "best_step": self.save.best_step if self.save.best_step >= 0 else None,
            "best_epoch": self.save.best_epoch if self.save.best_epoch >= 0 else None,
            "val_loss": module.val_loss,
            "train_loss": train_losses[-1] if train_losses else None,
            "steps": trainer.global_step,
            "epochs": module.tokens_seen / self.tokens_per_epoch,
            "tokens_seen": module.tokens_seen,
            "tokens_per_second": self._speed,
            "peak_memory_bytes": peak_memory(module.device),
            "run_length": samples[-1].run_length if samples else None,
            "new_tokens": samples[-1].new_tokens if samples else None,
        }
        return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in result.items()}
