"""Find the position of Lightning's training loop: the batch and the optimizer step."""

from __future__ import annotations

import lightning as L

from gpt_pretrain.training.steps.batch_results import BatchOrigin
from gpt_pretrain.training.steps.nonfinite import NonFiniteError


def is_end_of_step(trainer: L.Trainer, batch_idx: int) -> bool:
    """Return True if an optimizer step ends with this batch of an epoch."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch


def batch_origin(trainer: L.Trainer, batch_idx: int, *, tokens_seen: int) -> BatchOrigin:
    """Return the position of the current batch.

    Args:
        tokens_seen: Tokens trained on by the end of the batch, by all devices together.
    """
    return BatchOrigin(
        epoch=trainer.current_epoch,
        batch=batch_idx,
        step=trainer.global_step,
        ends_step=is_end_of_step(trainer, batch_idx),
        lr=trainer.optimizers[0].param_groups[0]["lr"],
        tokens_seen=tokens_seen,
    )


def nonfinite_error(trainer: L.Trainer, event: str, *, first: int | None = None, step: int | None = None) -> NonFiniteError:
    """Return the error for the batches from the first one to the current one.

    Args:
        event: A sentence about the values that are not finite, with {batches} for the batches.
        first: The first batch; None for the first one of the current optimizer step.
        step: The optimizer step; None for the current one.
    """
    last = trainer.fit_loop.epoch_loop.batch_idx
    first = last - last % trainer.accumulate_grad_batches if first is None else first
    step = trainer.global_step if step is None else step
    return NonFiniteError(event, step=step, epoch=trainer.current_epoch, batches=range(first, last + 1))
