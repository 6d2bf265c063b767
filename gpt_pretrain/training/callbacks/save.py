"""When a run is saved, and what happens when it cannot be."""

from __future__ import annotations

import logging
import math
import os
import time
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from gpt_pretrain.checkpoints.checkpoint_file import copy_checkpoint, read_checkpoint, write_checkpoint
from gpt_pretrain.config.schema import CheckpointSettings
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.runs.folder import BEST, LAST
from gpt_pretrain.runs.loggers import flush
from gpt_pretrain.runs.metrics_file import MetricsFile
from gpt_pretrain.training.callbacks.metrics import log_metrics
from gpt_pretrain.training.distributed import ranks
from gpt_pretrain.training.distributed.fsdp import remove_unused_shards
from gpt_pretrain.training.lit_module import GPTLitModule

PERIODIC = "step-{:08d}.ckpt"

log = logging.getLogger(__name__)


class SafeCheckpointIO(CheckpointIO):
    """Lightning's checkpoints, written so that a whole one always exists, and read as plain data only.

    Attributes:
        error: why the last one could not be written, which all ranks have to hear of before anyone acts upon it.
    """

    error: OSError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None) -> None:
        self.error = None
        try:
            write_checkpoint(checkpoint, Path(path))
        except OSError as error:
            self.error = error

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        Path(path).unlink(missing_ok=True)


class SaveRun(Checkpoint):
    """Keeps last.ckpt, best.ckpt with the lowest validation loss, and some periodic ones; it acts after all other callbacks.

    A checkpoint that cannot be written is reported, the old one stays, and the next is tried when it is due.

    Args:
        data: what is validated on before a checkpoint in the middle of an epoch.
        folder: where checkpoints go.
        settings: when.
        tokenizer: its name, stored beside the weights.
        config: the resolved settings as plain containers, likewise.

    Attributes:
        best_loss, best_step, best_epoch: the lowest full validation and where it was.
        failed: whether the last try to save did not succeed.
    """

    def __init__(
        self, data: TextDataModule, *, folder: Path, settings: CheckpointSettings, tokenizer: str, config: dict[str, Any]
    ) -> None:
        self.data = data
        self.folder = folder
        self.settings = settings
        self.tokenizer = tokenizer
        self.config = config
        self.best_loss, self.best_step, self.best_epoch = math.inf, -1, -1
        self.failed = False
        self._before_validation = self._validated = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_at = trainer.global_step
        self._saved_time = time.monotonic()
        steps = self.settings.every_n_steps
        if self.data.resumes_mid_epoch:  # forget the validation that a limit brought about there
            own = steps is not None and trainer.global_step % steps == 0
            for logger in trainer.loggers:
                if isinstance(logger, MetricsFile):
                    logger.forget(["val/perplexity", "val/bits_per_byte", *([] if own else ["val/loss"])])

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: GPTLitModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        ending = trainer.is_last_batch or trainer.should_stop  # which saves anyway
        if step == self._saved_at or ending or not pl_module.ends_step(batch_idx):
            return
        steps, minutes = self.settings.every_n_steps, self.settings.every_n_minutes
        if steps is not None and step % steps == 0:
            with pl_module.off_the_clock():
                limit = trainer.limit_val_batches if isinstance(trainer.limit_val_batches, int) else None
                pl_module.val_loss = pl_module.mean_loss(islice(self.data.val_dataloader(), limit))
            log_metrics(trainer, pl_module, {"val/loss": pl_module.val_loss})
            self.save(trainer, pl_module, validated=True)
        elif minutes is not None and ranks.all_reduce_max(time.monotonic() - self._saved_time >= 60 * minutes):
            self.save(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        self.save(trainer, pl_module, validated=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        if self.failed:
            self.save(trainer, pl_module, validated=self._validated)

    def save(self, trainer: L.Trainer, module: GPTLitModule, *, validated: bool = False, before_validation: bool = False) -> None:
        """Write last.ckpt, and what else is due.

        Args:
            validated: whether a full validation has just been made.
            before_validation: whether the epoch's validation is still to come, though Lightning may have begun with it.
        """
        better = validated and module.val_loss < self.best_loss
        best_before = (self.best_loss, self.best_step, self.best_epoch)
        if better:
            self.best_loss, self.best_step, self.best_epoch = module.val_loss, module.step, trainer.current_epoch + 1
        self._before_validation, self._validated = before_validation, validated
        self._saved_at, self._saved_time = trainer.global_step, time.monotonic()
        try:
            with module.off_the_clock():
                self._write(trainer, better)
            problem = None
        except OSError as error:
            problem = error
        self.failed = bool(ranks.all_reduce_max(problem is not None))
        if self.failed:
            self.best_loss, self.best_step, self.best_epoch = best_before
        if problem is not None:
            log.warning(
                "The checkpoint of step %d, or a copy of it, could not be written to %s (%s). What was there is kept; training "
                "goes on, and the next is tried when it is due.",
                module.step,
                self.folder,
                problem.strerror or problem,
            )

    def _write(self, trainer: L.Trainer, better: bool) -> None:
        """Write last.ckpt together with the other ranks, and copies of it alone.

        Raises:
            OSError: when that fails.
        """
        storage = trainer.strategy.checkpoint_io
        assert isinstance(storage, SafeCheckpointIO)
        problem = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            flush(trainer.loggers)  # what stands in the logs belongs to the checkpoint
        except OSError as error:
            problem = error
        if ranks.all_reduce_max(problem is not None):  # none begins to save, which takes all
            raise problem or OSError("another process could not begin to write")
        trainer.save_checkpoint(self.folder / LAST)
        try:
            if storage.error is not None:
                raise storage.error
            if trainer.is_global_zero:
                if better:
                    copy_checkpoint(self.folder / LAST, self.folder / BEST)
                self._keep_periodic(trainer.global_step)
        finally:
            if trainer.is_global_zero:
                remove_unused_shards(self.folder)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count the batches of the epoch as this many ranks count them."""
        count = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        if self.data.resume_batch:
            more = self.data.resume_batch - count["processed"]
            count.update({name: number + more for name, number in count.items()})

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store what names the tokenizer and the text, and tells how the run was set up."""
        checkpoint["tokenizer"] = self.tokenizer
        checkpoint["config"] = self.config
        checkpoint["text_sha256"] = self.data.split.text_sha256
        progress = checkpoint["loops"]["fit_loop"]
        epochs, batches = progress["epoch_progress"], progress["epoch_loop.batch_progress"]
        ended = epochs["current"]["processed"] == epochs["current"]["ready"]
        if ended and batches["current"]["processed"] < trainer.num_training_batches:
            for count in (epochs["current"], epochs["total"]):  # a limit ended the epoch early: it is not done
                count["processed"] -= 1
        if self._before_validation:  # Lightning begins a validation anew that it finds in its first batch
            for count in progress["epoch_loop.val_loop.batch_progress"].values():
                if isinstance(count, dict):
                    count.update(ready=1, started=1, processed=0, completed=0)

    def state_dict(self) -> dict[str, Any]:
        return {"best_loss": self.best_loss, "best_step": self.best_step, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_loss = state_dict["best_loss"]
        self.best_step, self.best_epoch = state_dict["best_step"], state_dict["best_epoch"]

    def _keep_periodic(self, step: int) -> None:
        """Keep a copy of last.ckpt under its step, and only so many of them."""
        keep = self.settings.keep
        if keep == 0:
            return
        copy_checkpoint(self.folder / LAST, self.folder / PERIODIC.format(step))
        found = sorted(self.folder.glob(PERIODIC.format(0).replace("0" * 8, "*")))
        now = found.index(self.folder / PERIODIC.format(step))
        for path in [*found[: max(0, now + 1 - keep)], *found[now + 1 :]]:  # the later ones were damaged, or left behind
            path.unlink(missing_ok=True)
