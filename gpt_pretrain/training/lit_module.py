"""The LightningModule: training and validation steps around a `GPTModel`.

Shapes: B batch, T time, V vocab_size.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from gpt_pretrain.config.schema import OptimizerSettings, SchedulerSettings
from gpt_pretrain.data.windows import Batch
from gpt_pretrain.evaluation.loss import next_token_loss
from gpt_pretrain.model.gpt2 import GPTModel, empty_model
from gpt_pretrain.model.kernels.loss import IGNORED
from gpt_pretrain.training.distributed import ranks
from gpt_pretrain.training.distributed.fsdp import shard, whole_weights
from gpt_pretrain.training.optimizer import build_optimizer, clip_gradients
from gpt_pretrain.training.schedule import lr_at

log = logging.getLogger(__name__)


class NonFiniteError(Exception):
    """A loss or the gradients are NaN or infinite; the weights are as they were before.

    Attributes:
        batches: where: epoch and batch of each that has a part in it, both counted from 0.
    """

    def __init__(self, what: str, value: float, *, step: int, epoch: int, batches: Sequence[int]) -> None:
        named = f"batch {batches[0]}" if len(batches) == 1 else f"batches {batches[0]} to {batches[-1]}"
        super().__init__(f"Step {step:06d}: the {what} of {named} in epoch {epoch + 1} is {value}.")
        self.batches = [[epoch, batch] for batch in batches]


def renumbered(batches: Sequence[Sequence[int]], *, before: int, now: int) -> list[list[int]]:
    """The batches, each by epoch and number, that have windows of these where another number of windows is taken at once."""
    first_and_last = ((epoch, batch * before // now, ((batch + 1) * before - 1) // now) for epoch, batch in batches)
    return [[epoch, number] for epoch, first, last in first_and_last for number in range(first, last + 1)]


class GPTLitModule(L.LightningModule):
    """Next-token training of a model.

    Args:
        model: what is trained.
        optimizer, scheduler: their settings.
        total_steps: optimizer steps of the whole run, which schedules end at.
        token_bytes: bytes of text behind each token id, int64, (V,); for bits per byte.
        on_nonfinite: what to do when a loss or gradient is NaN or infinite: "stop", "skip", "rollback".
        compiled: whether the model's blocks are, so that the training's loss is compiled too.

    Attributes:
        lr_scale: what the learning rate is multiplied by, after rollbacks.
        skipped: epoch and batch of each batch that is left out, both counted from 0.
        tokens_seen: tokens trained on so far, by all devices together.
        last_loss: of the last batch, its mean over all devices, a tensor; and loss_value, the same as a number.
        grad_norm: of all gradients together, before clipping, when it was last computed; likewise. Under 16-mixed there is no
            grad_norm_value, since nothing has to wait for it.
        val_loss: the last full validation's loss in nats a token; NaN before the first.
        wants_stop: whether this device was asked to end the run; stop_asked: whether any was, as of the last batch.
    """

    token_bytes: Tensor

    def __init__(
        self,
        model: GPTModel,
        *,
        optimizer: OptimizerSettings,
        scheduler: SchedulerSettings,
        total_steps: int,
        token_bytes: Tensor,
        on_nonfinite: str = "stop",
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.optimizer_settings = optimizer
        self.scheduler_settings = scheduler
        self.total_steps = total_steps
        self.register_buffer("token_bytes", token_bytes, persistent=False)
        self.on_nonfinite = on_nonfinite
        self.compiled = compiled
        self.lr_scale = 1.0
        self.skipped: list[list[int]] = []
        self.tokens_seen = 0
        self.wants_stop = self.stop_asked = False
        self.idle_seconds = 0.0
        self.val_loss = math.nan
        self.val_bits_per_byte = math.nan
        self._batches_in_step = 0  # without those that are left out
        self.last_loss, self.loss_value = torch.tensor(math.nan), math.nan
        self.grad_norm = torch.tensor(math.nan)
        self.grad_norm_value: float | None = None

    @property
    def _wide(self) -> torch.dtype:
        """What sums of many losses are kept in: float64, which Apple's GPUs do not have."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    @property
    def step(self) -> int:
        """The number of the last optimizer step done, the first being 0; -1 before it."""
        return self.trainer.global_step - 1

    def ends_step(self, batch_idx: int) -> bool:
        """Whether an optimizer step ends with that batch of an epoch."""
        return (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0 or self.trainer.is_last_batch

    def on_fit_start(self) -> None:
        """On a CPU alone, let a tied embedding's gradient be its few rows, which are added to the head's of the same matrix."""
        alone = self.device.type == "cpu" and not ranks.is_distributed()
        self.model.tok_emb.sparse = self.model.config.tie_embeddings and alone

    def configure_model(self) -> None:
        """Spread the model over the devices, where the strategy is to do that."""
        if self.device_mesh is not None:
            shard(self.model, self.device_mesh["data_parallel"])

    def on_train_start(self) -> None:
        """Give the optimizer the settings of now: a checkpoint's are others after a rollback, or where the user says so."""
        optimizer, schedule = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        assert isinstance(optimizer, Optimizer) and isinstance(schedule, LambdaLR)
        lr = self.optimizer_settings.lr
        schedule.base_lrs = [lr] * len(optimizer.param_groups)
        for group, wanted in zip(optimizer.param_groups, self._groups, strict=True):
            group.update(wanted, initial_lr=lr, lr=lr * schedule.lr_lambdas[0](schedule.last_epoch))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Mean loss of a batch; None for one that is left out."""
        loss = None
        if [self.trainer.current_epoch, batch_idx] not in self.skipped:
            loss = next_token_loss(self.model, *batch, compiled=self.compiled)
        self._count(loss, batch)
        if loss is None:
            return self._no_loss()
        if math.isfinite(self.loss_value):
            self._batches_in_step += 1
            return loss
        error = self._nonfinite("loss", self.loss_value, [batch_idx])
        if self.on_nonfinite != "skip":
            raise error
        log.warning("%s It is left out.", error)
        return self._no_loss()

    def whole_model(self) -> GPTModel | None:
        """The model, on the first rank alone; where it is spread over devices, a whole one, and every rank has to ask."""
        if self.device_mesh is None:
            return self.model if ranks.is_main() else None
        weights = whole_weights(self.model)
        if not ranks.is_main():
            return None
        model = empty_model(self.model.config)
        model.load_state_dict(weights, assign=True)
        return model

    def _count(self, loss: Tensor | None, batch: Batch) -> None:
        """Note a batch's tokens, and its mean loss over all ranks, of which some may have found no tokens left."""
        tokens = batch[0].numel()
        if not ranks.is_distributed():
            self.tokens_seen += tokens
            if loss is not None:
                self.last_loss, self.loss_value = loss.detach(), loss.item()
            return
        if not bool((batch[1] != IGNORED).any()):
            tokens = 0
        weighted = (
            torch.zeros((), device=self.device, dtype=self._wide)
            if loss is None or not tokens
            else loss.detach().to(self._wide) * tokens
        )
        sums = torch.stack([weighted, weighted.new_tensor(tokens), weighted.new_tensor(self.wants_stop)])
        nats, tokens, asking = ranks.all_reduce_sum(sums).tolist()
        self.stop_asked = asking > 0
        self.tokens_seen += int(tokens)
        if loss is not None:
            self.loss_value = nats / tokens
            self.last_loss = loss.new_tensor(self.loss_value)

    def _no_loss(self) -> Tensor | None:
        """What a batch that is left out gives Lightning: nothing, or, where ranks wait for each other, a loss without effect."""
        if not ranks.is_distributed():
            return None
        if isinstance(self.model, FSDPModule):
            self.model.reshard()  # else the embeddings, gathered for this batch, would outlive the step that changes them
            return torch.zeros((), device=self.device, requires_grad=True)
        return torch.stack([parameter.sum() for parameter in self.model.parameters()]).sum() * 0.0

    def _nonfinite(self, what: str, value: float, batches: Sequence[int]) -> NonFiniteError:
        trainer = self.trainer
        return NonFiniteError(what, value, step=trainer.global_step, epoch=trainer.current_epoch, batches=batches)

    def on_validation_epoch_start(self) -> None:
        self._val_start = time.perf_counter()
        self._val_sums = torch.zeros(3, dtype=self._wide)  # nats, tokens, bytes

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the sums behind the validation loss."""
        kept = batch[1] != IGNORED
        nats, count = next_token_loss(self.model, *batch).to(self._wide) * kept.sum(), kept.sum().to(self._wide)
        sums = torch.stack([nats, count, self.token_bytes[batch[1][kept]].sum().to(self._wide)])
        self._val_sums = self._val_sums.to(sums.device) + sums

    def on_validation_epoch_end(self) -> None:
        nats, tokens, n_bytes = ranks.all_reduce_sum(self._val_sums).tolist()
        self.val_loss = nats / tokens
        self.val_bits_per_byte = nats / math.log(2) / n_bytes if n_bytes else math.nan
        self.log("val/loss", self.val_loss, logger=False)  # for callbacks that monitor it
        self.idle_seconds += time.perf_counter() - self._val_start

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW, and a schedule stepped with it."""
        optimizer = build_optimizer(self.model, self.optimizer_settings, fused=self.trainer.precision != "16-mixed")
        self._groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
        lr = self.optimizer_settings.lr
        schedule = LambdaLR(
            optimizer,
            lambda step: lr_at(step, lr=lr, settings=self.scheduler_settings, total_steps=self.total_steps) / lr * self.lr_scale,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the norm of all gradients together; Lightning's own way refuses a fused optimizer under bf16-mixed."""
        if not self._batches_in_step:  # all were left out, and whatever gradients there are have no effect
            optimizer.zero_grad()
        self._batches_in_step = 0
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        norm = get_total_norm(gradients)
        self.grad_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        scaled = self.trainer.precision == "16-mixed"  # whose scaler leaves such a step out by itself
        self.grad_norm_value = None if scaled else self.grad_norm.item()
        if self.grad_norm_value is not None and not math.isfinite(self.grad_norm_value):
            last = self.trainer.fit_loop.epoch_loop.batch_idx
            first = last - last % self.trainer.accumulate_grad_batches
            raise self._nonfinite("gradient", self.grad_norm_value, range(first, last + 1))
        if gradient_clip_val is not None:
            clip_gradients(optimizer, self.grad_norm, max_norm=gradient_clip_val)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Step, or leave the batch out when its loss or gradients are no numbers and the settings say to.

        The gradients are given up at once: Lightning would keep them through the next forward pass, which needs the memory.
        """
        try:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            optimizer.zero_grad()
        except NonFiniteError as error:
            if self.on_nonfinite != "skip":
                raise
            log.warning("%s The step is left out.", error)
            optimizer.zero_grad()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what rebuilds the model unaided, as plain containers."""
        checkpoint["architecture"] = self.model.config.to_dict()
        checkpoint["tokens_seen"] = self.tokens_seen
        checkpoint["lr_scale"] = self.lr_scale
        checkpoint["skipped"] = self.skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting tokens, and with what rollbacks have changed, the one just made included."""
        self.tokens_seen = int(checkpoint["tokens_seen"])
        if not self.skipped:
            self.lr_scale = float(checkpoint["lr_scale"])
            then, data = checkpoint["config"], self.trainer.datamodule  # type: ignore[attr-defined]
            before = then["data"]["batch_size"] * then["trainer"]["devices"] * then["trainer"]["num_nodes"]
            self.skipped = renumbered(checkpoint["skipped"], before=before, now=data.batch_windows)

    @torch.no_grad()
    def mean_loss(self, batches: Iterable[Batch]) -> float:
        """Loss in nats over all positions of all ranks' batches, with dropout off and the training's randomness untouched.

        Args:
            batches: of this rank; all have as many.
        """
        was_training = self.model.training
        self.model.eval()
        sums = torch.zeros(2, dtype=self._wide, device=self.device)  # nats, tokens
        try:
            with self.trainer.precision_plugin.val_step_context():
                for batch in batches:
                    inputs, targets, *rest = (part.to(self.device) for part in batch)
                    tokens = (targets != IGNORED).sum()
                    sums = sums + torch.stack(
                        [next_token_loss(self.model, inputs, targets, *rest).to(self._wide) * tokens, tokens]
                    )
        finally:
            self.model.train(was_training)
        nats, positions = ranks.all_reduce_sum(sums).tolist()
        return float(nats / positions)

    @contextmanager
    def off_the_clock(self) -> Iterator[None]:
        """Leave the time spent inside out of tokens per second."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.idle_seconds += time.perf_counter() - start
