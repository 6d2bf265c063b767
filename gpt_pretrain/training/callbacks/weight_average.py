"""Keep an exponential moving average of the weights beside the trained ones.

Lightning's own callback (2.6) is not used. It refuses `configure_model`, which FSDP needs. It saves the average in place of the
trained weights. Before its first update, it validates with the initial weights.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.training.callbacks.metrics import log_metrics
from gpt_pretrain.training.lit_module import GPTLitModule

STORED = "ema"  # the field of a checkpoint

log = logging.getLogger(__name__)


class WeightAverage(Callback):
    """Average the weights after each optimizer step, and validate the average after each validation.

    The average has no effect on the training. It is stored in each checkpoint, in fp32, under the names of the weights.

    Args:
        data: The data module, for its validation set.
        decay: Share of the average that each step keeps, after the first steps; see `decay_at`.
    """

    def __init__(self, data: TextDataModule, *, decay: float) -> None:
        self.data = data
        self.decay = decay
        self.losses: list[float] = []
        self._average: dict[str, Tensor] = {}
        self._step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin with the checkpoint's average, or with the current weights."""
        restored, self._step = self._average, trainer.global_step
        self._average = {
            # A checkpoint's tensors may be mapped to its file, and may be on another device.
            name: restored.get(name, weight.detach()).to(weight.device, torch.float32, copy=True)
            for name, weight in sharded_parameters(pl_module)
        }

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:  # gradients are still being accumulated
            return
        self._step = trainer.global_step
        share = 1.0 - decay_at(self._step, self.decay)
        for name, weight in sharded_parameters(pl_module):
            local(self._average[name]).lerp_(local(weight.detach()).float(), share)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, GPTLitModule)
        self.validate(trainer, pl_module)

    def validate(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        """Compute and log the validation loss of the average."""
        limit = trainer.limit_val_batches if isinstance(trainer.limit_val_batches, int) else None
        with pl_module.clock.paused(), self.swapped(pl_module):
            self.losses.append(pl_module.mean_loss(islice(self.data.val_dataloader(), limit)))
        log_metrics(trainer, pl_module, {"val/ema_loss": self.losses[-1]})

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report the validation loss of the average."""
        assert isinstance(pl_module, GPTLitModule)
        if self.losses and trainer.is_global_zero:
            log.info(
                "Moving average of the weights (weights=ema): validation loss %.3f; the trained weights have %.3f",
                self.losses[-1],
                pl_module.val_loss if math.isfinite(pl_module.val_loss) else math.nan,
            )

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[STORED] = dict(self._average)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: Mapping[str, Any]) -> None:
        self._average = dict(checkpoint.get(STORED, {}))

    @contextmanager
    def swapped(self, module: L.LightningModule) -> Iterator[None]:
        """Exchange the weights and their average within the block."""
        self._exchange(module)
        try:
            yield
        finally:
            self._exchange(module)

    @torch.no_grad()
    def _exchange(self, module: L.LightningModule) -> None:
        for name, weight in sharded_parameters(module):
            own, average = local(weight), local(self._average[name])
            kept = own.clone()
            own.copy_(average)
            average.copy_(kept)


def decay_at(steps: int, decay: float) -> float:
    """Return the share that the average keeps after this many optimizer steps. A small share at first forgets early weights."""
    return min(decay, (1 + steps) / (10 + steps))


def sharded_parameters(module: L.LightningModule) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters. For a sharded model, these are the ones that the optimizer updates, not the gathered ones."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
    return list(module.named_parameters())


def local(value: Tensor) -> Tensor:
    """Return this rank's rows of a tensor."""
    rows: Tensor = value.to_local() if isinstance(value, DTensor) else value
    return rows
