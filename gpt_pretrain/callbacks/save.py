"""When a run is saved."""

from __future__ import annotations

import math
import os
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from gpt_pretrain.callbacks.metrics import log_metrics
from gpt_pretrain.checkpoint import read_checkpoint, replace_with_copy, write_checkpoint
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.lit_module import GPTLitModule
from gpt_pretrain.runs import BEST, LAST


class SafeCheckpointIO(CheckpointIO):
    """Lightning's checkpoints, written so that a whole one always exists, and read as plain data only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None) -> None:
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        Path(path).unlink(missing_ok=True)


class SaveRun(Checkpoint):
    """Keeps last.ckpt, and best.ckpt with the lowest validation loss; Lightning runs it after all other callbacks.

    Args:
        data: what is validated on before a checkpoint in the middle of an epoch.
        folder: where checkpoints go.
        every_n_steps: optimizer steps between two in the middle of an epoch; None saves after each epoch only.
        tokenizer: its name, stored beside the weights.
        config: the resolved settings as plain containers, likewise.

    Attributes:
        best_loss, best_step, best_epoch: the lowest full validation and where it was.
    """

    def __init__(
        self, data: TextDataModule, *, folder: Path, every_n_steps: int | None, tokenizer: str, config: dict[str, Any]
    ) -> None:
        self.data = data
        self.folder = folder
        self.every_n_steps = every_n_steps
        self.tokenizer = tokenizer
        self.config = config
        self.best_loss, self.best_step, self.best_epoch = math.inf, -1, -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_at = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: GPTLitModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        if due and trainer.global_step != self._saved_at and not trainer.is_last_batch:  # the end of the epoch saves anyway
            with pl_module.off_the_clock():
                limit = trainer.limit_val_batches if isinstance(trainer.limit_val_batches, int) else None
                pl_module.val_loss = pl_module.mean_loss(islice(self.data.val_dataloader(), limit))
            log_metrics(trainer, pl_module, {"val/loss": pl_module.val_loss})
            self._save(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        self._save(trainer, pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store what names the tokenizer and tells how the run was set up."""
        checkpoint["tokenizer"] = self.tokenizer
        checkpoint["config"] = self.config
        progress = checkpoint["loops"]["fit_loop"]
        epochs, batches = progress["epoch_progress"], progress["epoch_loop.batch_progress"]
        ended = epochs["current"]["processed"] == epochs["current"]["ready"]
        if ended and batches["current"]["processed"] < trainer.num_training_batches:
            for count in (epochs["current"], epochs["total"]):  # a limit ended the epoch early: it is not done
                count["processed"] -= 1

    def state_dict(self) -> dict[str, Any]:
        return {"best_loss": self.best_loss, "best_step": self.best_step, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_loss = state_dict["best_loss"]
        self.best_step, self.best_epoch = state_dict["best_step"], state_dict["best_epoch"]

    def _save(self, trainer: L.Trainer, module: GPTLitModule) -> None:
        """Write last.ckpt, and best.ckpt if the validation just made was the best."""
        better = module.val_loss < self.best_loss
        if better:
            self.best_loss, self.best_step, self.best_epoch = module.val_loss, module.step, trainer.current_epoch + 1
        with module.off_the_clock():
            trainer.save_checkpoint(self.folder / LAST)
            if better and trainer.is_global_zero:
                replace_with_copy(self.folder / LAST, self.folder / BEST)
        self._saved_at = trainer.global_step
