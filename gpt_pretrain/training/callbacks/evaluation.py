"""Print the training and validation loss over a few batches, every few optimizer steps."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.evaluation.loss import merge_batches
from gpt_pretrain.evaluation.unlikely_text import unlikely_loss
from gpt_pretrain.training.callbacks.metrics import log_metrics
from gpt_pretrain.training.distributed import ranks
from gpt_pretrain.training.lit_module import GPTLitModule

log = logging.getLogger(__name__)


class PeriodicEvaluation(Callback):
    """Print and keep both losses every eval_freq optimizer steps, counted from step 0, after the update.

    The batches are drawn once, so that the losses of a run can be compared. The evaluation has no effect on the training.

    Args:
        data: The data to draw the batches from.
        eval_freq: Optimizer steps between two evaluations.
        eval_iter: Batches per evaluation of each set.
        warns_of_misfit: Warn if the losses of loaded weights are far above guessing, like the health monitor.

    Attributes:
        steps: The optimizer step of each evaluation.
        train_losses: The training loss of each evaluation, in nats per token.
        val_losses: The validation loss of each evaluation, in nats per token.
        tokens_seen: The tokens seen at each evaluation.
        first: The training and validation loss before the first step; None in a resumed run.
        seconds: The duration of this process's last evaluation; 0 before the first.
    """

    def __init__(self, data: TextDataModule, *, eval_freq: int, eval_iter: int, warns_of_misfit: bool = False) -> None:
        self.data = data
        self.eval_freq = eval_freq
        self.eval_iter = eval_iter
        self.warns_of_misfit = warns_of_misfit
        self.steps: list[int] = []
        self.train_losses: list[float] = []
        self.val_losses: list[float] = []
        self.tokens_seen: list[int] = []
        self.first: tuple[float, float] | None = None
        self.seconds = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        self._batches = self.data.eval_batches(self.eval_iter)
        if not ranks.is_distributed():  # otherwise all ranks need the same number of forward passes
            train_batches, val_batches = map(merge_batches, self._batches)
            self._batches = list(train_batches), list(val_batches)
        self._step = trainer.global_step
        if trainer.global_step == 0:
            train, val = self._mean_losses(pl_module)
            self.first = train, val
            chance = math.log(pl_module.model.config.vocab_size)
            log.info("Before training: Train loss %.3f, Val loss %.3f (guessing among all tokens: %.3f)", train, val, chance)
            misfit = unlikely_loss("The text", min(train, val), vocab_size=pl_module.model.config.vocab_size)
            if self.warns_of_misfit and misfit is not None:
                log.warning("%s", misfit)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: GPTLitModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self._step:  # gradients are still being accumulated
            return
        self._step = trainer.global_step
        if pl_module.step % self.eval_freq:
            return
        train, val = self._mean_losses(pl_module)
        self.steps.append(pl_module.step)
        self.train_losses.append(train)
        self.val_losses.append(val)
        self.tokens_seen.append(pl_module.tokens_seen)
        log.info("Ep %d (Step %06d): Train loss %.3f, Val loss %.3f", trainer.current_epoch + 1, pl_module.step, train, val)
        log_metrics(trainer, pl_module, {"eval/train_loss": train, "eval/val_loss": val})

    def _mean_losses(self, module: GPTLitModule) -> tuple[float, float]:
        start = time.perf_counter()
        with module.clock.paused():
            train, val = (module.mean_loss(batches) for batches in self._batches)
        self.seconds = time.perf_counter() - start
        return train, val

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the losses under the names that chapter 5 gives them."""
        checkpoint["train_losses"] = list(self.train_losses)
        checkpoint["val_losses"] = list(self.val_losses)
        checkpoint["track_tokens_seen"] = list(self.tokens_seen)
        checkpoint["eval_steps"] = list(self.steps)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the losses."""
        self.train_losses = list(checkpoint["train_losses"])
        self.val_losses = list(checkpoint["val_losses"])
        self.tokens_seen = list(checkpoint["track_tokens_seen"])
        self.steps = list(checkpoint["eval_steps"])
