"""Train and validate a `GPTModel` on next tokens, as a LightningModule."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
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
from gpt_pretrain.model.language_model import LanguageModel
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
from gpt_pretrain.training.optimizer import build_optimizer, check_optimizer_state, clip_gradients, gradient_norm, group_settings
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
        loss_value: The mean loss of the last batch over the counted tokens of all devices, in nats per token.
        counted_tokens: The number of those tokens; 0 if the batch is left out.
        finite_losses: The first and the last of the losses that were finite, since training began in this process.
        grad_norm: The norm of the step's gradient before clipping, a scalar tensor.
        grad_norm_value: The same norm as a number; None under 16-mixed, where nothing needs to wait for it.
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
        self.loss_value, self.counted_tokens = math.nan, 0
        self.finite_losses: tuple[float, float] | None = None
        self.grad_norm = torch.tensor(math.nan)
        self.grad_norm_value: float | None = None
        self.val_loss = self.val_bits_per_byte = math.nan
        self.bits_per_byte_of_loss = math.nan  # factor from nats per token to bits per byte, the same for all weights
        self.clock = TrainingClock()
        self.wants_stop = self.stop_asked = False
        self._skipped_in_row = 0  # batches and steps since the last update
        self._step_mean = StepMean()  # without the batches that are left out

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
        one_cpu = self.device.type == "cpu" and not ranks.is_distributed()
        if not isinstance(self.model, CustomModel):
            self.model.tok_emb.sparse = self.model.config.tie_embeddings and one_cpu

    def on_train_start(self) -> None:
        """Apply the current optimizer settings in place of those that a checkpoint has just restored."""
        optimizer, schedule = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        assert isinstance(optimizer, Optimizer) and isinstance(schedule, LRScheduler)
        if "optimizer" not in self.custom or any(group.get("fused") for group in self._groups):
            check_optimizer_state(optimizer)
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
        totals = batch_totals(batch, loss, wants_stop=self.wants_stop)
        self.tokens_seen += totals.tokens
        self.counted_tokens = 0
        self.stop_asked = totals.stop_asked
        if loss is None:
            return skipped_batch_loss(self.model, device=self.device)
        self.loss_value = totals.loss
        if math.isfinite(self.loss_value):
            self.counted_tokens = totals.counted
            first, _ = self.finite_losses or (self.loss_value, self.loss_value)
            self.finite_losses = first, self.loss_value
            weight = self._step_mean.add(totals.counted, totals.own_counted, n_ranks=ranks.world_size())
            return loss if weight == 1.0 else loss * weight
        error = self._nonfinite(f"the loss of {{batches}} is {self.loss_value}.", first=batch_idx)
        self._skip(error, "batch")
        return skipped_batch_loss(self.model, device=self.device)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Make the gradient that of the step's mean loss, and clip its norm.

        Lightning's own clipping refuses a fused optimizer under bf16-mixed.

        Raises:
            NonFiniteError: If the norm is NaN or infinite.
        """
        factor = self._step_mean.finish(accumulate_grad_batches=self.trainer.accumulate_grad_batches)
        if not (updates := factor > 0):  # all batches of the step are skipped, and their gradients must have no effect
            optimizer.zero_grad()
            factor = 1.0
        self.grad_norm = gradient_norm(self.model.parameters())
        if factor != 1.0:
            self.grad_norm = self.grad_norm * factor
        scaled = self.trainer.precision == "16-mixed"  # the gradient scaler skips a step with infinite gradients itself
        self.grad_norm_value = None if scaled else self.grad_norm.item()
        if self.grad_norm_value is not None and not math.isfinite(self.grad_norm_value):
            raise self._nonfinite(f"the gradient of {{batches}} is {self.grad_norm_value}.")
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
