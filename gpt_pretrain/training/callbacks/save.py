"""Save the run when it is due."""

from __future__ import annotations

import logging
import math
import time
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from gpt_pretrain.checkpoints.weight_averages import EMA, TRAINED
from gpt_pretrain.checkpoints.weight_tokenizers import tokenizer_fields
from gpt_pretrain.config.checkpoint_settings import SIGNATURE_FIELD, sign_settings
from gpt_pretrain.config.schema import CheckpointSettings
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.runs.folder import has_checkpoint
from gpt_pretrain.runs.metrics_file import MetricsFile
from gpt_pretrain.runs.reader import CONFIG
from gpt_pretrain.system.terminal import escape_line
from gpt_pretrain.tokenizers.base import Tokenizer
from gpt_pretrain.training.callbacks.metrics import log_metrics
from gpt_pretrain.training.callbacks.weight_average import WeightAverage
from gpt_pretrain.training.distributed import ranks
from gpt_pretrain.training.lit_module import GPTLitModule
from gpt_pretrain.training.loop_progress import correct_saved_progress, set_resumed_batch
from gpt_pretrain.training.saving import Save, write_checkpoints

log = logging.getLogger(__name__)


class SaveRun(Checkpoint):
    """Save last.ckpt, best.ckpt with the lowest validation loss, and periodic copies, after all other callbacks have acted.

    If the run keeps an average of its weights, best.ckpt follows the lower of both losses. The average exists to be used, and its
    loss is mostly the lower one.

    If a checkpoint cannot be written, the previous one is kept. The next attempt is made when a checkpoint is due again.

    Args:
        data: The data module. Its validation set is used before a checkpoint in the middle of an epoch.
        folder: The folder of the checkpoints.
        settings: The `checkpoint` settings.
        tokenizer: The tokenizer, stored in checkpoints.
        config: The resolved settings as plain containers, stored in checkpoints.
        average: The average of the weights, if the run keeps one.

    Attributes:
        best_loss: The lowest validation loss of a full validation, reached at best_step in best_epoch.
        best_weights: The weights with this loss: "trained" or "ema".
        failed: True if the last attempt to save has failed.
    """

    def __init__(
        self,
        data: TextDataModule,
        *,
        folder: Path,
        settings: CheckpointSettings,
        tokenizer: Tokenizer,
        config: dict[str, Any],
        average: WeightAverage | None = None,
    ) -> None:
        self.data = data
        self.folder = folder
        self.settings = settings
        self.tokenizer = tokenizer_fields(tokenizer)
        self.config = config
        self.average = average
        self.best_loss, self.best_step, self.best_epoch, self.best_weights = math.inf, -1, -1, TRAINED
        self.failed = False
        self._warned_step: int | None = None
        self._warned_of_lost_folder = False
        self._under_way: Save | None = None  # at most one at a time
        self._before_validation = self._validated = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_at = trainer.global_step
        self._saved_time = time.monotonic()
        if self.data.resumes_mid_epoch:
            self._forget_early_validation(trainer)

    def _forget_early_validation(self, trainer: L.Trainer) -> None:
        """Remove the validation made when a limit ended the run within an epoch. The resumed run continues that epoch."""
        steps = self.settings.every_n_steps
        due = steps is not None and trainer.global_step % steps == 0
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.forget(["val/perplexity", "val/bits_per_byte", *([] if due else ["val/loss", "val/ema_loss"])])

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: GPTLitModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._under_way is not None and self._under_way.done and not ranks.is_distributed():
            self.finish_save()  # an error is reported soon
        step = trainer.global_step
        ending = trainer.is_last_batch or trainer.should_stop  # the end of the epoch saves anyway
        if step == self._saved_at or ending or not pl_module.ends_step(batch_idx):
            return
        steps, minutes = self.settings.every_n_steps, self.settings.every_n_minutes
        if steps is not None and step % steps == 0:
            self._validate(trainer, pl_module)
            self.save(trainer, pl_module, validated=True, in_background=True)
        elif minutes is not None and ranks.all_reduce_max(time.monotonic() - self._saved_time >= 60 * minutes):
            self.save(trainer, pl_module, in_background=True)

    def _validate(self, trainer: L.Trainer, module: GPTLitModule) -> None:
        with module.clock.paused():
            limit = trainer.limit_val_batches if isinstance(trainer.limit_val_batches, int) else None
            module.val_loss = module.mean_loss(islice(self.data.val_dataloader(), limit))
        log_metrics(trainer, module, {"val/loss": module.val_loss})
        if self.average is not None:
            self.average.validate(trainer, module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        self.save(trainer, pl_module, validated=True, in_background=True)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.finish_save(agree=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        self.finish_save()
        if self.failed:
            self.save(trainer, pl_module, validated=self._validated)

    def save(
        self,
        trainer: L.Trainer,
        module: GPTLitModule,
        *,
        validated: bool = False,
        before_validation: bool = False,
        in_background: bool = False,
    ) -> None:
        """Write last.ckpt, and best.ckpt and a periodic copy if they are due.

        Args:
            validated: Whether module.val_loss was measured with the current weights.
            before_validation: Whether the epoch's validation has not been done yet, although Lightning may have begun it.
            in_background: Whether training may continue while the files are written. The next save waits for them.

        Raises:
            NonFiniteError: If weights are NaN or infinite. They would replace the last good ones.
        """
        self.finish_save()
        self._check_folder()
        module.check_weights()
        self._best_before = self.best_loss, self.best_step, self.best_epoch, self.best_weights
        loss, weights = self._lower_loss(module)
        improved = validated and loss < self.best_loss
        if improved:
            self.best_loss, self.best_step, self.best_epoch = loss, module.step, trainer.current_epoch + 1
            self.best_weights = weights
        self._before_validation, self._validated = before_validation, validated
        self._saved_at, self._saved_time = trainer.global_step, time.monotonic()
        with module.clock.paused():
            self._under_way = write_checkpoints(
                trainer, self.folder, best=improved, keep=self.settings.keep, in_background=in_background
            )
        if not in_background:
            self.finish_save()

    def finish_save(self, *, agree: bool = True) -> None:
        """Wait for the save in progress, if there is one, and report a failure.

        Args:
            agree: Whether all ranks call this and learn of a failure of the first rank.
        """
        if self._under_way is None:
            return
        under_way, self._under_way = self._under_way, None
        problem = under_way.wait()
        failed = problem is not None
        self.failed = bool(ranks.all_reduce_max(failed)) if agree else failed
        if self.failed:
            self.best_loss, self.best_step, self.best_epoch, self.best_weights = self._best_before
        if problem is not None:
            self._warn_not_written(self._saved_at - 1, problem.strerror or str(problem))

    def _check_folder(self) -> None:
        """Warn once if the run's folder was deleted or renamed."""
        folder = self.folder.parent
        if self._warned_of_lost_folder or not ranks.is_main():
            return
        try:
            if (folder / CONFIG).exists():
                return
        except OSError:  # a drive that does not answer, which the save itself reports
            return
        self._warned_of_lost_folder = True
        log.warning(
            "%s was deleted or renamed during the run: its %s is missing. The run continues in a new folder of this name, which "
            "lacks the earlier part of the log and of the metrics.",
            escape_line(str(folder)),
            CONFIG,
        )

    def _lower_loss(self, module: GPTLitModule) -> tuple[float, str]:
        """Return the lower of the last validation losses of the weights and of their average, and the name of those weights."""
        losses = [(module.val_loss, TRAINED)]
        if self.average is not None and self.average.losses:
            losses.append((self.average.losses[-1], EMA))
        return min(losses, key=lambda one: math.inf if math.isnan(one[0]) else one[0])

    def _warn_not_written(self, step: int, reason: str) -> None:
        """Log a warning. Only the first one explains what happens next."""
        if self._warned_step is None:
            log.warning(
                "The checkpoint of step %d, or a copy of it, could not be written to %s (%s). %s, and training continues. The "
                "next attempt is made when a checkpoint is due again.",
                step,
                self.folder,
                reason,
                "The previous one is kept" if has_checkpoint(self.folder.parent) else "There is no earlier one",
            )
        elif step != self._warned_step:
            log.warning("The checkpoint of step %s could not be written either (%s).", f"{step:,}", reason)
        self._warned_step = step

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the tokenizer, the settings and the checksum of the text, and correct Lightning's progress."""
        checkpoint.update(self.tokenizer)
        checkpoint["config"] = self.config
        if ranks.is_main():  # It writes the file.
            checkpoint[SIGNATURE_FIELD] = sign_settings(self.config)
        checkpoint["text_sha256"] = self.data.split.text_sha256
        correct_saved_progress(
            checkpoint["loops"], batches_per_epoch=trainer.num_training_batches, before_validation=self._before_validation
        )

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Set the batch of the epoch to resume at. It depends on the current number of ranks."""
        if self.data.resume_batch:
            set_resumed_batch(checkpoint["loops"], self.data.resume_batch)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("best_loss", "best_step", "best_epoch", "best_weights")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_loss = state_dict["best_loss"]
        self.best_step, self.best_epoch = state_dict["best_step"], state_dict["best_epoch"]
        self.best_weights = state_dict.get("best_weights", TRAINED)  # earlier versions stored only trained weights
