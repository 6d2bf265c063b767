"""Train and validate a `GPTModel` on next tokens, as a LightningModule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from numbers import Integral
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gpt_pretrain.config.schema import OptimizerSettings, SchedulerSettings
from gpt_pretrain.config.train_rules import ON_NONFINITE
from gpt_pretrain.data.dataset import Batch
from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.loss import LossTotals, mean_loss, next_token_loss
from gpt_pretrain.model.custom import CustomModel
from gpt_pretrain.model.kernels.loss import IGNORED
from gpt_pretrain.model.language_model import LanguageModel
from gpt_pretrain.system.argument_types import check_type
from gpt_pretrain.system.shown_values import short_repr
from gpt_pretrain.training.budget.pace import Pace
from gpt_pretrain.training.clock import TrainingClock
from gpt_pretrain.training.distributed import ranks
from gpt_pretrain.training.distributed.fsdp import shard_model
from gpt_pretrain.training.optimization.chosen_optimizer import apply_current_settings, choose_optimizer, choose_schedule
from gpt_pretrain.training.optimization.custom_schedule import OWN_STATE
from gpt_pretrain.training.optimization.optimizer import check_optimizer_state, clip_gradients, gradient_norm
from gpt_pretrain.training.steps.batch_record import BatchRecord
from gpt_pretrain.training.steps.batch_results import BatchResult
from gpt_pretrain.training.steps.batch_totals import batch_totals
from gpt_pretrain.training.steps.late_steps import LateSteps, can_read_late
from gpt_pretrain.training.steps.loop_position import batch_origin, is_end_of_step, nonfinite_error
from gpt_pretrain.training.steps.nonfinite import (
    MAX_WEIGHT,
    NonFiniteError,
    has_usable_weights,
    renumber_batches,
    skipped_batch_loss,
)
from gpt_pretrain.training.steps.step_mean import StepMean


class GPTLitModule(L.LightningModule):
    """Next-token training of a model.

    Args:
        model: The model to train.
        optimizer: The `optimizer` settings.
        scheduler: The `scheduler` settings.
        total_steps: Optimizer steps of the whole run. Schedules end there.
        token_bytes: Bytes of text behind each token id, int64, (V,), for bits per byte; None computes no bits per byte.
        on_nonfinite: What to do when a loss or gradient is NaN or infinite: "stop", "skip" or "rollback".
        compiled: Whether the model's blocks are compiled. The training loss is then compiled too.
        custom: The user's own optimizer and schedule, by group. They replace the built-in ones.
        pace: The progress of the schedule after each step, if a budget decides it.

    Attributes:
        lr_scale: The factor on the learning rate. Rollbacks lower it.
        skipped: Epoch and batch, both counted from 0, of the batches that are left out.
        tokens_seen: Tokens trained on so far, by all devices together.
        record: Keeps track of the batches, and passes their results to observers.
        reads_late: Whether a step's numbers are read only once the next step has been queued, so that the GPU need not wait.
        grad_norm: The norm of the step's gradient before clipping, a scalar tensor.
        val_loss: The loss of the last full validation, in nats per token; NaN before the first.
        clock: Measures the training time, for tokens per second.
        wants_stop: True once this rank has been asked to end the run.
        stop_asked: True once any rank had been asked to end the run by the last batch.
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
        check_type("model", model, LanguageModel, "a model, such as a GPTModel or what load_pretrained returns")
        check_type("optimizer", optimizer, OptimizerSettings, "settings, such as load_settings().optimizer")
        check_type("scheduler", scheduler, SchedulerSettings, "settings, such as load_settings().scheduler")
        check_type("total_steps", total_steps, Integral, "a whole number of optimizer steps")
        if total_steps < 1:
            raise UserError(f"total_steps={total_steps}: must be at least 1, the optimizer steps of the whole run.")
        if on_nonfinite not in ON_NONFINITE:
            raise UserError(f"on_nonfinite={short_repr(on_nonfinite)}: must be {', '.join(ON_NONFINITE)}.")
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
        self.record = BatchRecord(model, on_nonfinite=on_nonfinite)
        self.reads_late = False
        self._late_steps = LateSteps(self.record)
        self.grad_norm = torch.tensor(math.nan)
        self.val_loss = self.val_bits_per_byte = math.nan
        self.bits_per_byte_of_loss = math.nan  # factor from nats per token to bits per byte, the same for all weights
        self.clock = TrainingClock(before_pause=self.catch_up)
        self.wants_stop = self.stop_asked = False
        self._step_mean = StepMean()  # without the batches that are left out
        self._result: BatchResult | None = None  # the last batch of the current step, unless it is read late

    @property
    def step(self) -> int:
        """Number of the last optimizer step, counted from 0; -1 before the first."""
        return self.trainer.global_step - 1

    def ends_step(self, batch_idx: int) -> bool:
        """Return True if an optimizer step ends with this batch of an epoch."""
        return is_end_of_step(self.trainer, batch_idx)

    def configure_model(self) -> None:
        """Shard the model over the devices if the strategy does so."""
        if self.device_mesh is not None:
            shard_model(self.model, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Build the optimizer and a schedule that advances with every optimizer step."""
        optimizer, self._groups = choose_optimizer(
            self.model, self.optimizer_settings, self.custom, precision=str(self.trainer.precision)
        )
        schedule = choose_schedule(
            optimizer,
            self.scheduler_settings,
            self.custom,
            lr=self.optimizer_settings.lr,
            total_steps=self.total_steps,
            scale=lambda: self.lr_scale,
            pace=self.pace,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Make the gradient of a tied embedding sparse when training on a single CPU. This saves a pass over the matrix."""
        self.record.observers = []
        one_cpu = self.device.type == "cpu" and not ranks.is_distributed()
        if not isinstance(self.model, CustomModel):
            self.model.tok_emb.sparse = self.model.config.tie_embeddings and one_cpu

    def on_train_start(self) -> None:
        """Replace the optimizer settings that a checkpoint has just restored by the current ones."""
        optimizer, schedule = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        assert isinstance(optimizer, Optimizer) and isinstance(schedule, LRScheduler)
        if "optimizer" not in self.custom or any(group.get("fused") for group in self._groups):
            check_optimizer_state(optimizer)
        self.reads_late = can_read_late(self.trainer, optimizer, self.device, own_optimizer="optimizer" in self.custom)
        self.started = "optimizer" not in self.custom  # A custom optimizer's first step shows whether its state fits.
        apply_current_settings(optimizer, schedule, self._groups)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Return this rank's part of the step's loss, a scalar: the mean loss of its batch, weighted by the batch's tokens.

        Raises:
            NonFiniteError: If the loss is NaN or infinite, and on_nonfinite is not "skip" or skipping the batch cannot help.
        """
        loss = None
        if [self.trainer.current_epoch, batch_idx] not in self.skipped:
            loss = next_token_loss(self.model, *batch, compiled=self.compiled)
        if self.reads_late and loss is not None:
            self.tokens_seen += batch[0].numel()
            origin = batch_origin(self.trainer, batch_idx, tokens_seen=self.tokens_seen)
            self._late_steps.begin(origin, loss=loss, counted=(batch[1] != IGNORED).sum())
            return loss
        self.catch_up()
        return self._read_at_once(batch, batch_idx, loss)

    def _read_at_once(self, batch: Batch, batch_idx: int, loss: Tensor | None) -> Tensor | None:
        """Wait for the loss of a batch, and return the result of `training_step`. The loss is None if the batch is left out."""
        totals = batch_totals(batch, loss, wants_stop=self.wants_stop)
        self.tokens_seen += totals.tokens
        self.stop_asked = totals.stop_asked
        usable = loss is not None and math.isfinite(totals.loss)
        result = BatchResult(
            batch_origin(self.trainer, batch_idx, tokens_seen=self.tokens_seen),
            loss=None if loss is None else totals.loss,
            counted=totals.counted if usable else 0,
            norm=None,
        )
        self.record.note_loss(result)
        if loss is not None and not usable:
            error = nonfinite_error(self.trainer, f"the loss of {{batches}} is {totals.loss}.", first=batch_idx)
            self.record.skip(error, "batch")
        if result.origin.ends_step:
            self._result = result
        else:
            self.record.publish(result)
        if loss is None or not usable:
            return skipped_batch_loss(self.model, device=self.device)
        weight = self._step_mean.add(totals.counted, totals.own_counted, n_ranks=ranks.world_size())
        return loss if weight == 1.0 else loss * weight

    def catch_up(self) -> None:
        """Wait for the numbers of all steps so far, and publish them.

        Raises:
            NonFiniteError: If one of them is NaN or infinite, and on_nonfinite is not "skip" or skipping it cannot help.
        """
        self._late_steps.catch_up()

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Scale the gradient so that it belongs to the step's mean loss, and clip its norm.

        Lightning's own clipping is not used: it refuses a fused optimizer under bf16-mixed.

        Raises:
            NonFiniteError: If the norm is NaN or infinite.
        """
        if self._late_steps.has_begun:
            self.grad_norm = gradient_norm(self.model.parameters())
            self._late_steps.clip(optimizer, self.grad_norm, max_norm=gradient_clip_val)
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
            raise nonfinite_error(self.trainer, f"the gradient of {{batches}} is {norm}.")
        if updates:
            self.record.note_update()
        clip_gradients(optimizer, self.grad_norm, max_norm=gradient_clip_val, factor=factor)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Update the weights, or skip the step if its gradients are NaN or infinite and on_nonfinite is "skip"."""
        try:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        except NonFiniteError as error:
            self.record.skip(error, "step")
        self.started = True
        if self._late_steps.has_begun:
            self._late_steps.queue()
        if self._result is not None:
            self.record.publish(self._result)
            self._result = None
        # Lightning would keep the gradients during the next forward pass, which needs the memory.
        optimizer.zero_grad()

    def check_weights(self) -> None:
        """Check that the weights are usable after the last step, before they are saved.

        Raises:
            NonFiniteError: If they are not.
        """
        self.catch_up()
        if not has_usable_weights(self.model):
            event = f"some weights are NaN, infinite or above {MAX_WEIGHT:g} after {{batches}}."
            raise nonfinite_error(self.trainer, event, step=self.step)

    def on_train_end(self) -> None:
        """Read the numbers of the last step. A save reads them too, but a training may end without one."""
        self.catch_up()

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
        self.catch_up()
        with self.trainer.precision_plugin.val_step_context():
            loss = mean_loss(self.model, batches, token_bytes=self.token_bytes, all_reduce=ranks.all_reduce_sum)
        return loss.nats_per_token

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store all that is needed to rebuild the model from the checkpoint alone, as plain containers."""
        checkpoint["architecture"] = self.model.config.to_dict()
        checkpoint["tokens_seen"] = self.tokens_seen
        checkpoint["lr_scale"] = self.lr_scale
        checkpoint["skipped"] = self.skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the token count and the effects of earlier rollbacks. A rollback in progress has already set the latter."""
        self.tokens_seen = int(checkpoint["tokens_seen"])
        if "scheduler" not in self.custom:
            checkpoint["lr_schedulers"][0].pop(OWN_STATE, None)  # state of a custom schedule that is no longer used
        if not self.skipped:
            self.lr_scale = float(checkpoint["lr_scale"])
            then, data = checkpoint["config"], self.trainer.datamodule  # type: ignore[attr-defined]
            before = then["data"]["batch_size"] * then["trainer"]["devices"] * then["trainer"]["num_nodes"]
            self.skipped = renumber_batches(checkpoint["skipped"], before=before, now=data.global_batch_size)
