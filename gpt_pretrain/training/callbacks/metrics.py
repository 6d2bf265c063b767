"""Send the training metrics to the loggers."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from gpt_pretrain.training.lit_module import GPTLitModule
from gpt_pretrain.training.steps.batch_results import BatchResult


def log_metrics(trainer: L.Trainer, module: GPTLitModule, metrics: dict[str, float]) -> None:
    """Send metrics to every logger at the current step, together with tokens_seen and the epoch."""
    _log_row(trainer, metrics, step=module.step, tokens_seen=module.tokens_seen, epoch=trainer.current_epoch)


def _log_row(trainer: L.Trainer, metrics: dict[str, float], *, step: int, tokens_seen: int, epoch: int) -> None:
    row = metrics | {"tokens_seen": float(tokens_seen), "epoch": float(epoch + 1)}
    for logger in trainer.loggers:
        logger.log_metrics(row, step=step)


class TrainMetrics(Callback):
    """Log train/loss (the mean over all tokens since the last row), lr, grad_norm (before clipping) and tokens_per_second.

    Args:
        every_n_steps: Optimizer steps between two rows. The first step also has a row.

    Attributes:
        total_seconds: The duration of the finished training, including evaluation. What came before a resume is not in it.
        new_tokens: The tokens seen in this time.
        tokens_per_second: The tokens per second of the finished training, without evaluation, samples and checkpoints.
    """

    def __init__(self, *, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self._resumed: dict[str, Any] = {}
        self._nats, self._counted = 0.0, 0
        self._row_start, self._row_tokens = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the loss of all counted tokens since the last row, and their number."""
        return {"nats": self._nats, "tokens": self._counted}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict

    def on_train_start(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        self._trainer, self._module = trainer, pl_module
        pl_module.record.observers.append(self._observe)
        self._start_row(pl_module.tokens_seen)
        self._started = time.perf_counter()
        self._training_start: tuple[float, int] = (self._row_start, self._row_tokens)
        if "batches" in self._resumed:  # version 0.1.0 stored a sum over batches
            size = trainer.datamodule.global_batch_size * trainer.datamodule.context_length  # type: ignore[attr-defined]
            self._resumed = {"nats": self._resumed["loss"] * size, "tokens": self._resumed["batches"] * size}
        self._nats, self._counted = float(self._resumed.get("nats", 0.0)), int(self._resumed.get("tokens", 0))
        self._resumed = {}

    def on_train_end(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        self.total_seconds = time.perf_counter() - self._started
        self.new_tokens = pl_module.tokens_seen - self._training_start[1]
        self.tokens_per_second = self.mean_tokens_per_second(pl_module)

    def mean_tokens_per_second(self, module: GPTLitModule) -> float:
        """Return the tokens per second of this training so far, without evaluation, samples and checkpoints."""
        start, tokens = self._training_start
        return (module.tokens_seen - tokens) / (module.clock.seconds() - start)

    def _observe(self, result: BatchResult) -> None:
        """Add the result of a batch, and log a row if one is due after its step."""
        if result.loss is not None and result.counted:
            self._nats += result.loss * result.counted
            self._counted += result.counted
        origin = result.origin
        if not origin.ends_step or origin.step % self.every_n_steps:
            return
        seconds = self._module.clock.seconds() - self._row_start
        metrics = {
            **({"train/loss": self._nats / self._counted} if self._counted else {}),
            "lr": origin.lr,
            "grad_norm": float(self._module.grad_norm) if result.norm is None else result.norm,
            "tokens_per_second": (origin.tokens_seen - self._row_tokens) / seconds,
        }
        _log_row(self._trainer, metrics, step=origin.step, tokens_seen=origin.tokens_seen, epoch=origin.epoch)
        self._start_row(origin.tokens_seen)

    def on_validation_end(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        perplexity = math.exp(pl_module.val_loss) if pl_module.val_loss < 700 else math.inf
        metrics = {"val/loss": pl_module.val_loss, "val/perplexity": perplexity, "val/bits_per_byte": pl_module.val_bits_per_byte}
        log_metrics(trainer, pl_module, metrics)

    def _start_row(self, tokens_seen: int) -> None:
        """Reset the mean loss and the measurement of tokens per second."""
        self._nats, self._counted = 0.0, 0
        self._row_start, self._row_tokens = self._module.clock.seconds(), tokens_seen
