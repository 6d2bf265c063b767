"""Train and validate a `GPTModel` on next tokens, as a LightningModule."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from gpt_pretrain.config.schema import OptimizerSettings, SchedulerSettings
from gpt_pretrain.data.dataset import Batch
from gpt_pretrain.evaluation.loss import LossTotals, mean_loss, next_token_loss
from gpt_pretrain.model.custom import CustomModel
from gpt_pretrain.model.kernels.loss import IGNORED
from gpt_pretrain.model.language_model import LanguageModel
from gpt_pretrain.training.batch_results import BatchOrigin, BatchResult, PendingResults, unusable_step
from gpt_pretrain.training.batch_totals import batch_totals
from gpt_pretrain.training.budget.pace import Pace
from gpt_pretrain.training.clock import TrainingClock
from gpt_pretrain.training.custom_optimizer import build_custom_optimizer, typed_group_settings
from gpt_pretrain.training.custom_schedule import OWN_STATE, ScaledSchedule, build_custom_schedule
from gpt_pretrain.training.distributed import ranks
from gpt_pretrain.training.distributed.fsdp import shard_model
from gpt_pretrain.training.nonfinite import (
    MAX_SKIPPED,
    MAX_WEIGHT,
    NonFiniteError,
    has_usable_weights,
    renumber_batches,
    skipped_batch_loss,
)
from gpt_pretrain.training.optimizer import (
    build_optimizer,
    check_optimizer_state,
    clip_gradients,
    gradient_norm,
    group_settings,
    skips_on_device,
)
from gpt_pretrain.training.schedule import apply_settings, build_schedule
from gpt_pretrain.training.step_mean import StepMean

log = logging.getLogger(__name__)


class GPTLitModule(L.LightningModule):
    """Next-token training of a model.

    Args:
        model: The model to train.
        optimizer: The `optimizer` settings.
        scheduler: The `scheduler` settings.
        total_steps: Optimizer steps of the whole run, at which schedules end.
        token_bytes: Bytes of text behind each token id, int64, (V,), for bits per byte; None computes no bits per byte.
        on_nonfinite: What to do when a loss or gradient is NaN or infinite: "stop", "skip" or "rollback".
        compiled: Whether the model's blocks are compiled, so that the training loss is compiled too.
        custom: The user's own optimizer and schedule, by group, in place of those that the settings name.
        pace: How far the schedule has come after each step, if a budget decides that.

    Attributes:
        lr_scale: The factor on the learning rate, which rollbacks lower.
        skipped: Epoch and batch, both counted from 0, of the batches that are left out.
        tokens_seen: Tokens trained on so far, by all devices together.
        loss_value: The mean loss of the last batch that is known, in nats per token.
        observers: Functions that are called with the result of each batch, in order, when it is known.
        reads_late: Whether a step's numbers are read when the next step has been queued, so that the GPU need not wait.
        finite_losses: The first and the last of the losses that were finite, since training began in this process.
        grad_norm: The norm of the step's gradient before clipping, a scalar tensor.
        val_loss: The loss of the last full validation, in nats per token; NaN before the first.
        clock: The clock behind tokens per second.
        wants_stop: True once this rank has been asked to end the run.
        stop_asked: True once any rank had been asked to by the last batch.
    """

    token_bytes: Tensor

    def __init__(
        self,
        model: LanguageModel,
        *,
        optimizer: OptimizerSettings,
        scheduler: SchedulerSettings,
        total_steps: int,
        token_bytes: Tensor | None = None,
        on_nonfinite: str = "stop",
        compiled: bool = False,
        custom: Mapping[str, Mapping[str, Any]] | None = None,
        pace: Pace | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.optimizer_settings = optimizer
        self.scheduler_settings = scheduler
        self.total_steps = total_steps
        self.custom = custom or {}
        self.pace = pace
        none = torch.zeros(model.config.vocab_size, dtype=torch.int64)
        self.register_buffer("token_bytes", none if token_bytes is None else token_bytes, persistent=False)
        self.on_nonfinite = on_nonfinite
        self.compiled = compiled
        self.started = False  # whether everything is restored, and training has begun
        self.lr_scale = 1.0
        self.skipped: list[list[int]] = []
        self.tokens_seen = 0
        self.loss_value = math.nan
        self.observers: list[Callable[[BatchResult], None]] = []
        self.reads_late = False
        self.finite_losses: tuple[float, float] | None = None
        self.grad_norm = torch.tensor(math.nan)
        self.val_loss = self.val_bits_per_byte = math.nan
        self.bits_per_byte_of_loss = math.nan  # factor from nats per token to bits per byte, the same for all weights
        self.clock = TrainingClock()
        self.wants_stop = self.stop_asked = False
        self._skipped_in_row = 0  # batches and steps since the last update
        self._step_mean = StepMean()  # without the batches that are left out
        self._pending = PendingResults()
        self._result: BatchResult | None = None  # of the batch that ends the present step
        self._late_loss: tuple[Tensor, Tensor] | None = None  # loss and counted tokens of the present batch, on the device

    @property
    def step(self) -> int:
        """Number of the last optimizer step, counted from 0; -1 before the first."""
        return self.trainer.global_step - 1

    def ends_step(self, batch_idx: int) -> bool:
        """Return True if an optimizer step ends with this batch of an epoch."""
        return (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0 or self.trainer.is_last_batch

    def configure_model(self) -> None:
        """Shard the model if the strategy spreads it over the devices."""
        if self.device_mesh is not None:
            shard_model(self.model, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Build the optimizer and a schedule that advances with every optimizer step."""
        settings, precision = self.optimizer_settings, self.trainer.precision
        fused, bf16 = precision != "16-mixed", str(precision).startswith("bf16")
        if (own := self.custom.get("optimizer")) is not None:
            optimizer = build_custom_optimizer(self.model, own)
            self._groups = typed_group_settings(group_settings(optimizer), own)
        else:
            optimizer = build_optimizer(self.model, settings, fused=fused, bf16=bf16)
            self._groups = group_settings(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._schedule(optimizer), "interval": "step"}}

    def _schedule(self, optimizer: Optimizer) -> LRScheduler:
        if (own := self.custom.get("scheduler")) is not None:
            return build_custom_schedule(optimizer, own, total_steps=self.total_steps, scale=lambda: self.lr_scale)
        lr = max(group["lr"] for group in optimizer.param_groups) if "optimizer" in self.custom else self.optimizer_settings.lr
        return build_schedule(
            optimizer,
            lr=lr,
            settings=self.scheduler_settings,
            total_steps=self.total_steps,
            scale=lambda: self.lr_scale,
            pace=self.pace,
        )

    def on_fit_start(self) -> None:
        """Make the gradient of a tied embedding sparse when training on a single CPU, which saves a pass over the matrix."""
        self.observers = []
        one_cpu = self.device.type == "cpu" and not ranks.is_distributed()
        if not isinstance(self.model, CustomModel):
            self.model.tok_emb.sparse = self.model.config.tie_embeddings and one_cpu

    def on_train_start(self) -> None:
        """Apply the current optimizer settings in place of those that a checkpoint has just restored."""
        optimizer, schedule = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        assert isinstance(optimizer, Optimizer) and isinstance(schedule, LRScheduler)
        if "optimizer" not in self.custom or any(group.get("fused") for group in self._groups):
            check_optimizer_state(optimizer)
        self.reads_late = self._can_read_late(optimizer)
        self.started = "optimizer" not in self.custom  # only its first step shows whether its restored state fits
        if isinstance(schedule, ScaledSchedule):
            schedule.apply_settings(self._groups)
        elif isinstance(schedule, LambdaLR):
            apply_settings(optimizer, schedule, self._groups)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Return this rank's part of the step's loss, a scalar: the mean loss of its batch, weighted by the batch's tokens.

        Raises:
            NonFiniteError: If the loss is NaN or infinite, and on_nonfinite is not "skip" or to skip the batch cannot help.
        """
        loss = None
        if [self.trainer.current_epoch, batch_idx] not in self.skipped:
            loss = next_token_loss(self.model, *batch, compiled=self.compiled)
        if self.reads_late and loss is not None:
            self.tokens_seen += batch[0].numel()
            self._origin = self._batch_origin(batch_idx)
            self._late_loss = loss.detach(), (batch[1] != IGNORED).sum()
            return loss
        self.catch_up()
        totals = batch_totals(batch, loss, wants_stop=self.wants_stop)
        self.tokens_seen += totals.tokens
        self.stop_asked = totals.stop_asked
        finite = math.isfinite(totals.loss)
        result = BatchResult(
            self._batch_origin(batch_idx),
            loss=None if loss is None else totals.loss,
            counted=totals.counted if finite and loss is not None else 0,
            norm=None,
        )
        self._note_loss(result)
        if loss is not None and not finite:
            error = self._nonfinite(f"the loss of {{batches}} is {totals.loss}.", first=batch_idx)
            self._skip(error, "batch")
        if result.origin.ends_step:
            self._result = result
        else:
            self._publish(result)
        if loss is None or not finite:
            return skipped_batch_loss(self.model, device=self.device)
        weight = self._step_mean.add(totals.counted, totals.own_counted, n_ranks=ranks.world_size())
        return loss if weight == 1.0 else loss * weight

    def _batch_origin(self, batch_idx: int) -> BatchOrigin:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        return BatchOrigin(
            epoch=self.trainer.current_epoch,
            batch=batch_idx,
            step=self.trainer.global_step,
            ends_step=self.ends_step(batch_idx),
            lr=optimizer.param_groups[0]["lr"],
            tokens_seen=self.tokens_seen,
        )

    def _note_loss(self, result: BatchResult) -> None:
        if result.loss is not None:
            self.loss_value = result.loss
            if math.isfinite(result.loss):
                first, _ = self.finite_losses or (result.loss, result.loss)
                self.finite_losses = first, result.loss

    def _publish(self, result: BatchResult) -> None:
        for observe in self.observers:
            observe(result)

    def _can_read_late(self, optimizer: Optimizer) -> bool:
        """Return whether the device alone can leave out a step, so that the host may learn of it later."""
        one_batch = self.trainer.accumulate_grad_batches == 1 and not ranks.is_distributed()
        own = self.trainer.precision == "16-mixed" or "optimizer" in self.custom  # a gradient scaler reads from the device
        return self.device.type == "cuda" and one_batch and not own and skips_on_device(optimizer)

    def catch_up(self, *, keep: int = 0) -> None:
        """Wait for the numbers of all steps but the last `keep`, and publish them.

        Raises:
            NonFiniteError: If one of them is NaN or infinite, and on_nonfinite is not "skip" or to skip it cannot help. The
                weights were not changed by that step.
        """
        for result in self._pending.take(keep=keep):
            assert result.loss is not None and result.norm is not None
            self._note_loss(result)
            norm = result.norm
            event, what = "", "step"
            if not math.isfinite(result.loss):
                event, what = f"the loss of {{batches}} is {result.loss}.", "batch"
                result = replace(result, counted=0, norm=0.0)
            elif not math.isfinite(norm):
                event = f"the gradient of {{batches}} is {norm}."
            elif result.counted:
                self._skipped_in_row = 0
            if event:
                at = result.origin
                self._skip(NonFiniteError(event, step=at.step, epoch=at.epoch, batches=[at.batch]), what)
            self._publish(result)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Make the gradient that of the step's mean loss, and clip its norm.

        Lightning's own clipping refuses a fused optimizer under bf16-mixed.

        Raises:
            NonFiniteError: If the norm is NaN or infinite.
        """
        if self._late_loss is not None:
            (loss, counted), self._late_loss = self._late_loss, None
            self.grad_norm = gradient_norm(self.model.parameters())
            skip = unusable_step(loss=loss, counted=counted, norm=self.grad_norm)
            clip_gradients(optimizer, self.grad_norm, max_norm=gradient_clip_val, skip=skip)
            self._pending.add(self._origin, loss=loss, counted=counted, norm=self.grad_norm)
            return
        factor = self._step_mean.finish(accumulate_grad_batches=self.trainer.accumulate_grad_batches)
        if not (updates := factor > 0):  # all batches of the step are skipped, and their gradients must have no effect
            optimizer.zero_grad()
            factor = 1.0
        self.grad_norm = gradient_norm(self.model.parameters())
        if factor != 1.0:
            self.grad_norm = self.grad_norm * factor
        scaled = self.trainer.precision == "16-mixed"  # the gradient scaler skips a step with infinite gradients itself
        norm = None if scaled else self.grad_norm.item()
        if self._result is not None:
            self._result = replace(self._result, norm=norm)
        if norm is not None and not math.isfinite(norm):
            raise self._nonfinite(f"the gradient of {{batches}} is {norm}.")
        if updates:
            self._skipped_in_row = 0
        clip_gradients(optimizer, self.grad_norm, max_norm=gradient_clip_val, factor=factor)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Update the weights, or skip the step if its gradients are NaN or infinite and on_nonfinite is "skip"."""
        try:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        except NonFiniteError as error:
            self._skip(error, "step")
        self.started = True
        if self.reads_late:
            self.catch_up(keep=1)
        if self._result is not None:
            self._publish(self._result)
            self._result = None
        # Lightning would keep the gradients through the next forward pass, which needs their memory.
        optimizer.zero_grad()

    @property
    def has_diverged(self) -> bool:
        """True if the last finite loss is more than twice that of a uniform guess, and that of the beginning."""
        first, last = self.finite_losses or (math.nan, math.nan)
        return last > 2 * max(first, math.log(self.model.config.vocab_size))

    def _skip(self, error: NonFiniteError, what: str) -> None:
        """Warn that a batch or step is skipped.

        Raises:
            NonFiniteError: If on_nonfinite is not "skip", or skipping does not help, since the weights are of no use.
        """
        self._skipped_in_row += 1
        hopeless = self.has_diverged or self._skipped_in_row > MAX_SKIPPED or not has_usable_weights(self.model)
        if self.on_nonfinite != "skip" or hopeless:
            raise error
        log.warning("%s The %s is skipped.", error, what)

    def check_weights(self) -> None:
        """Check that the last step has left usable weights, before they are saved.

        Raises:
            NonFiniteError: If it has not.
        """
        self.catch_up()
        if not has_usable_weights(self.model):
            raise self._nonfinite(f"some weights are NaN, infinite or above {MAX_WEIGHT:g} after {{batches}}.", step=self.step)

    def _nonfinite(self, event: str, *, first: int | None = None, step: int | None = None) -> NonFiniteError:
        """Return the error for the batches from the first one to the current one.

        Args:
            event: What is not finite, as a sentence with {batches} for the batches.
            first: The first batch; None for that of the current optimizer step.
            step: The optimizer step; None for the current one.
        """
        trainer = self.trainer
        last = trainer.fit_loop.epoch_loop.batch_idx
        first = last - last % trainer.accumulate_grad_batches if first is None else first
        step = trainer.global_step if step is None else step
        return NonFiniteError(event, step=step, epoch=trainer.current_epoch, batches=range(first, last + 1))

    def on_validation_epoch_start(self) -> None:
        self.catch_up()
        self.clock.pause()
        self._val_totals = LossTotals(self.token_bytes)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the validation loss."""
        self._val_totals.add(next_token_loss(self.model, *batch), batch[1])

    def on_validation_epoch_end(self) -> None:
        loss = self._val_totals.mean(ranks.all_reduce_sum)
        self.val_loss, self.val_bits_per_byte = loss.nats_per_token, loss.bits_per_byte
        self.bits_per_byte_of_loss = loss.bits_per_byte / loss.nats_per_token if loss.nats_per_token else math.nan
        self.log("val/loss", self.val_loss, logger=False)  # for callbacks that monitor it
        self.clock.resume()

    def mean_loss(self, batches: Iterable[Batch]) -> float:
        """Return the loss over all ranks' batches in nats per token, with dropout off and the random state untouched."""
        self.catch_up()
        with self.trainer.precision_plugin.val_step_context():
            loss = mean_loss(self.model, batches, token_bytes=self.token_bytes, all_reduce=ranks.all_reduce_sum)
        return loss.nats_per_token

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what rebuilds the model unaided, as plain containers."""
        checkpoint["architecture"] = self.model.config.to_dict()
        checkpoint["tokens_seen"] = self.tokens_seen
        checkpoint["lr_scale"] = self.lr_scale
        checkpoint["skipped"] = self.skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the token count and, unless a rollback has just set them, the effects of earlier rollbacks."""
        self.tokens_seen = int(checkpoint["tokens_seen"])
        if "scheduler" not in self.custom:
            checkpoint["lr_schedulers"][0].pop(OWN_STATE, None)  # of a schedule that has been replaced
        if not self.skipped:
            self.lr_scale = float(checkpoint["lr_scale"])
            then, data = checkpoint["config"], self.trainer.datamodule  # type: ignore[attr-defined]
            before = then["data"]["batch_size"] * then["trainer"]["devices"] * then["trainer"]["num_nodes"]
            self.skipped = renumber_batches(checkpoint["skipped"], before=before, now=data.global_batch_size)
