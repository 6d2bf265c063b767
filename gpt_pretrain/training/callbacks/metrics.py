"""Send the training metrics to the loggers."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer

from gpt_pretrain.training.lit_module import GPTLitModule


def log_metrics(trainer: L.Trainer, module: GPTLitModule, metrics: dict[str, float]) -> None:
    """Send metrics to every logger at the current step, together with tokens_seen and the epoch."""
    row = metrics | {"tokens_seen": float(module.tokens_seen), "epoch": float(trainer.current_epoch + 1)}
    for logger in trainer.loggers:
        logger.log_metrics(row, step=module.step)


class TrainMetrics(Callback):
    """Log train/loss (the mean since the last row), lr, grad_norm (before clipping) and tokens_per_second.

    Args:
        every_n_steps: Optimizer steps between two rows; the first step has a row too.

    Attributes:
        total_seconds: The duration of the finished training, including evaluation.
        tokens_per_second: The tokens per second of the finished training, without evaluation, samples and checkpoints.
    """

    def __init__(self, *, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self._resumed: tuple[float, int] | None = None
        self._loss = torch.zeros(())
        self._batches, self._row_start, self._row_tokens = 0, 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the sum and number of the losses since the last row."""
        return {"loss": float(self._loss), "batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = float(state_dict["loss"]), int(state_dict["batches"])

    def on_train_start(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        self._step = trainer.global_step
        self._lr = 0.0
        self._start_row(pl_module)
        self._started = time.perf_counter()
        self._training_start: tuple[float, int] = (self._row_start, self._row_tokens)
        if self._resumed is not None:
            self._loss, self._batches = self._loss + self._resumed[0], self._resumed[1]
            self._resumed = None

    def on_train_end(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        self.total_seconds = time.perf_counter() - self._started
        self.tokens_per_second = self.mean_tokens_per_second(pl_module)

    def mean_tokens_per_second(self, module: GPTLitModule) -> float:
        """Return the tokens per second of this training so far, without evaluation, samples and checkpoints."""
        start, tokens = self._training_start
        return (module.tokens_seen - tokens) / (module.clock.seconds() - start)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: GPTLitModule, optimizer: Optimizer) -> None:
        self._lr = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: GPTLitModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if outputs:  # empty for a batch that was left out
            self._loss += pl_module.last_loss
            self._batches += 1
        if trainer.global_step == self._step:  # gradients are still being accumulated
            return
        self._step = trainer.global_step
        if pl_module.step % self.every_n_steps:
            return
        loss, grad_norm = torch.stack([self._loss / max(self._batches, 1), pl_module.grad_norm.to(self._loss)]).tolist()
        seconds = pl_module.clock.seconds() - self._row_start
        metrics = {
            **({"train/loss": loss} if self._batches else {}),
            "lr": self._lr,
            "grad_norm": grad_norm,
            "tokens_per_second": (pl_module.tokens_seen - self._row_tokens) / seconds,
        }
        log_metrics(trainer, pl_module, metrics)
        self._start_row(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        perplexity = math.exp(pl_module.val_loss) if pl_module.val_loss < 700 else math.inf
        metrics = {"val/loss": pl_module.val_loss, "val/perplexity": perplexity, "val/bits_per_byte": pl_module.val_bits_per_byte}
        log_metrics(trainer, pl_module, metrics)

    def _start_row(self, module: GPTLitModule) -> None:
        """Reset the mean loss and the measurement of tokens per second."""
        self._loss = torch.zeros((), device=module.device)
        self._batches = 0
        self._row_start, self._row_tokens = module.clock.seconds(), module.tokens_seen
