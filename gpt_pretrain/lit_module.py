"""The LightningModule: training and validation steps around a `GPTModel`.

Shapes: B batch, T time, V vocab_size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from gpt_pretrain.data.windows import Batch
from gpt_pretrain.model import GPTModel
from gpt_pretrain.optim import build_optimizer, lr_at
from gpt_pretrain.settings import OptimizerSettings, SchedulerSettings


def next_token_loss(logits: Tensor, target_ids: Tensor, *, reduction: str = "mean") -> Tensor:
    """Cross-entropy in nats over all positions of logits (B, T, V) and target_ids (B, T)."""
    return F.cross_entropy(logits.flatten(0, 1).float(), target_ids.flatten(), reduction=reduction)


class GPTLitModule(L.LightningModule):
    """Next-token training of a model.

    Args:
        model: what is trained.
        optimizer, scheduler: their settings.
        total_steps: optimizer steps of the whole run, which schedules end at.
        token_bytes: bytes of text behind each token id, int64, (V,); for bits per byte.

    Attributes:
        tokens_seen: tokens trained on so far, by all devices together.
        last_loss: of the last batch, a tensor on the device.
        grad_norm: of all gradients together, before clipping, when it was last computed; likewise.
        val_loss: the last full validation's loss in nats a token; NaN before the first.
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
    ) -> None:
        super().__init__()
        self.model = model
        self.optimizer_settings = optimizer
        self.scheduler_settings = scheduler
        self.total_steps = total_steps
        self.register_buffer("token_bytes", token_bytes, persistent=False)
        self.tokens_seen = 0
        self.idle_seconds = 0.0
        self.val_loss = math.nan
        self.val_bits_per_byte = math.nan
        self.last_loss = torch.tensor(math.nan)
        self.grad_norm = torch.tensor(math.nan)

    @property
    def step(self) -> int:
        """The number of the last optimizer step done, the first being 0; -1 before it."""
        return self.trainer.global_step - 1

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss of a batch."""
        token_ids, target_ids = batch
        loss = next_token_loss(self.model(token_ids), target_ids)
        self.tokens_seen += token_ids.numel() * self.trainer.world_size
        self.last_loss = loss.detach()
        return loss

    def on_validation_epoch_start(self) -> None:
        self._val_start = time.perf_counter()
        self._val_sums = torch.zeros(3, dtype=torch.float64)  # nats, tokens, bytes

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the sums behind the validation loss."""
        token_ids, target_ids = batch
        nats = next_token_loss(self.model(token_ids), target_ids, reduction="sum")
        sums = torch.stack(
            [nats.double(), nats.new_tensor(target_ids.numel()).double(), self.token_bytes[target_ids].sum().double()]
        )
        self._val_sums = self._val_sums.to(sums.device) + sums

    def on_validation_epoch_end(self) -> None:
        nats, tokens, n_bytes = self._val_sums.tolist()
        self.val_loss = nats / tokens
        self.val_bits_per_byte = nats / math.log(2) / n_bytes if n_bytes else math.nan
        self.log("val/loss", self.val_loss, logger=False)  # for callbacks that monitor it
        self.idle_seconds += time.perf_counter() - self._val_start

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW, and a schedule stepped with it."""
        optimizer = build_optimizer(self.model, self.optimizer_settings, fused=self.trainer.precision != "16-mixed")
        lr = self.optimizer_settings.lr
        schedule = LambdaLR(
            optimizer,
            lambda step: lr_at(step, lr=lr, settings=self.scheduler_settings, total_steps=self.total_steps) / lr,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the norm of all gradients together; Lightning's own way refuses a fused optimizer under bf16-mixed."""
        if gradient_clip_val is not None:
            self.grad_norm = clip_grad_norm_(self.model.parameters(), gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what rebuilds the model unaided, as plain containers."""
        checkpoint["architecture"] = self.model.config.to_dict()
        checkpoint["tokens_seen"] = self.tokens_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting tokens."""
        self.tokens_seen = int(checkpoint["tokens_seen"])

    @torch.no_grad()
    def mean_loss(self, batches: Iterable[Batch]) -> float:
        """Loss in nats over all positions of some batches, with dropout off and the training's randomness untouched."""
        was_training = self.model.training
        self.model.eval()
        total, positions = torch.zeros((), dtype=torch.float64), 0
        try:
            with self.trainer.precision_plugin.val_step_context():
                for token_ids, target_ids in batches:
                    nats = next_token_loss(self.model(token_ids.to(self.device)), target_ids.to(self.device), reduction="sum")
                    total = total.to(nats.device) + nats.double()
                    positions += target_ids.numel()
        finally:
            self.model.train(was_training)
        return total.item() / positions

    @contextmanager
    def off_the_clock(self) -> Iterator[None]:
        """Leave the time spent inside out of tokens per second."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.idle_seconds += time.perf_counter() - start
