"""Write the results of a run to its metadata while it trains."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from gpt_pretrain.runs.metadata import update_metadata
from gpt_pretrain.system.resources import peak_memory
from gpt_pretrain.training.callbacks.evaluation import PeriodicEvaluation
from gpt_pretrain.training.callbacks.health import WarningSigns
from gpt_pretrain.training.callbacks.metrics import TrainMetrics
from gpt_pretrain.training.callbacks.samples import Samples
from gpt_pretrain.training.callbacks.save import SaveRun
from gpt_pretrain.training.lit_module import GPTLitModule


class MetadataWriter(Checkpoint):
    """Write the results so far to run.json after each epoch and when training ends or fails.

    It must act after `SaveRun`. It is a `Checkpoint`, since Lightning calls those callbacks last.

    Args:
        run_dir: The run's folder.
        losses: The callback with the latest training loss.
        metrics: The callback with the tokens per second.
        save: The callback with the best validation loss.
        samples: The callback with the latest sample, if any.
        signs: The callback with the findings, if any.
        tokens_per_epoch: Tokens in an epoch, to convert tokens seen into epochs.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        losses: PeriodicEvaluation,
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
        self._started = False
        self._tokens_per_second = math.nan

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        self._tokens_per_second = self.metrics.mean_tokens_per_second(pl_module)
        self._write(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        self._tokens_per_second = self.metrics.tokens_per_second  # measured before the loss curve was drawn
        self._write(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: GPTLitModule, exception: BaseException) -> None:
        if self._started:  # without a start there are no results
            self._write(trainer, pl_module)

    def _write(self, trainer: L.Trainer, module: GPTLitModule) -> None:
        if trainer.is_global_zero:
            findings = [] if self.signs is None else self.signs.findings
            update_metadata(self.run_dir, result=self._result(trainer, module), findings=findings)

    def _result(self, trainer: L.Trainer, module: GPTLitModule) -> dict[str, Any]:
        """Return the results by name; None for an unknown number, or one that is not finite."""
        train_losses, samples = self.losses.train_losses, [] if self.samples is None else self.samples.samples
        result: dict[str, Any] = {
            "best_val_loss": self.save.best_loss,
            "best_bits_per_byte": self.save.best_loss * module.bits_per_byte_of_loss,
            "best_step": self.save.best_step if self.save.best_step >= 0 else None,
            **({"best_weights": self.save.best_weights} if self.save.average is not None else {}),
            "best_epoch": self.save.best_epoch if self.save.best_epoch >= 0 else None,
            "val_loss": module.val_loss,
            "train_loss": train_losses[-1] if train_losses else None,
            "steps": trainer.global_step,
            "epochs": module.tokens_seen / self.tokens_per_epoch,
            "tokens_seen": module.tokens_seen,
            "tokens_per_second": self._tokens_per_second,
            "peak_memory_bytes": peak_memory(module.device),
            "run_length": samples[-1].run_length if samples else None,
            "new_tokens": samples[-1].new_tokens if samples else None,
        }
        return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in result.items()}
