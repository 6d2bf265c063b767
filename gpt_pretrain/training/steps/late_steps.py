"""Read the numbers of each step only once the next step has been queued, so that a GPU need not wait for the host.

The device itself leaves out a step if its loss or gradient is NaN or infinite. The host learns of it one step later.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from gpt_pretrain.training.distributed import ranks
from gpt_pretrain.training.optimization.optimizer import clip_gradients, skips_on_device
from gpt_pretrain.training.steps.batch_record import BatchRecord
from gpt_pretrain.training.steps.batch_results import BatchOrigin, BatchResult, PendingResults, unusable_step
from gpt_pretrain.training.steps.nonfinite import NonFiniteError


def can_read_late(trainer: L.Trainer, optimizer: Optimizer, device: torch.device, *, own_optimizer: bool) -> bool:
    """Return whether the device can leave out a step by itself, so that the host may learn of it later.

    Args:
        own_optimizer: Whether the optimizer is the user's own.
    """
    one_batch = trainer.accumulate_grad_batches == 1 and not ranks.is_distributed()
    reads = trainer.precision == "16-mixed" or own_optimizer  # a gradient scaler reads from the device
    # Torch's anomaly detection raises its own error in the backward pass of a NaN loss. Reading at once prevents that pass.
    reads = reads or torch.is_anomaly_enabled()
    return device.type == "cuda" and one_batch and not reads and skips_on_device(optimizer)


@dataclass(frozen=True)
class _Step:
    """The current step: its batch, and its numbers as scalars on the device."""

    origin: BatchOrigin
    loss: Tensor
    counted: Tensor
    norm: Tensor | None = None


class LateSteps:
    """Begin, clip and queue optimizer steps of one batch each, and read their numbers later.

    Args:
        record: Receives the numbers of each step once they have been read.
    """

    def __init__(self, record: BatchRecord) -> None:
        self._record = record
        self._pending = PendingResults()
        self._step: _Step | None = None

    @property
    def has_begun(self) -> bool:
        """True once a step has its loss, until the step has been queued."""
        return self._step is not None

    def begin(self, origin: BatchOrigin, *, loss: Tensor, counted: Tensor) -> None:
        """Begin a step with the mean loss of its batch and the number of its counted tokens."""
        self._step = _Step(origin, loss.detach(), counted)

    def clip(self, optimizer: Optimizer, norm: Tensor, *, max_norm: float | None) -> None:
        """Clip the gradients of the step, and let the optimizer leave it out if they or the loss are NaN or infinite."""
        assert self._step is not None
        self._step = step = replace(self._step, norm=norm)
        skip = unusable_step(loss=step.loss, counted=step.counted, norm=norm)
        clip_gradients(optimizer, norm, max_norm=max_norm, skip=skip)

    def queue(self) -> None:
        """End the step, and read the step before it. The device may not have begun the update of the ended step."""
        step, self._step = self._step, None
        assert step is not None and step.norm is not None
        self._pending.add(step.origin, loss=step.loss, counted=step.counted, norm=step.norm)
        self.catch_up(keep=1)

    def catch_up(self, *, keep: int = 0) -> None:
        """Wait for the numbers of all steps but the last `keep`, and publish them.

        Raises:
            NonFiniteError: If one of them is NaN or infinite, and on_nonfinite is not "skip" or skipping cannot help. That step
                has not changed the weights.
        """
        for result in self._pending.take(keep=keep):
            self._read(result)

    def _read(self, result: BatchResult) -> None:
        norm, event, what = result.norm, "", "step"
        assert result.loss is not None and norm is not None
        self._record.note_loss(result)
        if not math.isfinite(result.loss):
            event, what = f"the loss of {{batches}} is {result.loss}.", "batch"
            result = replace(result, counted=0, norm=0.0)
        elif not math.isfinite(norm):
            event = f"the gradient of {{batches}} is {norm}."
        elif result.counted:
            self._record.note_update()
        if event:
            at = result.origin
            self._record.skip(NonFiniteError(event, step=at.step, epoch=at.epoch, batches=[at.batch]), what)
        self._record.publish(result)
