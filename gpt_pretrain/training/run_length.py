"""Compute the length of a run in batches, optimizer steps, tokens and epochs."""

from __future__ import annotations

import math

from gpt_pretrain.config.schema import TrainerSettings
from gpt_pretrain.data.datamodule import TextDataModule


def batches_per_epoch(data: TextDataModule, settings: TrainerSettings) -> int:
    """Return the number of batches in an epoch on each device."""
    batches = math.ceil(data.epoch_windows / data.global_batch_size)
    return batches if settings.limit_train_batches is None else min(batches, settings.limit_train_batches)


def steps_per_epoch(data: TextDataModule, settings: TrainerSettings) -> int:
    """Return the number of optimizer steps in an epoch; the last step may accumulate fewer batches than the others."""
    return math.ceil(batches_per_epoch(data, settings) / settings.accumulate_grad_batches)


def tokens_per_epoch(data: TextDataModule, settings: TrainerSettings) -> int:
    """Return the number of tokens in an epoch of all devices together."""
    return min(batches_per_epoch(data, settings) * data.global_batch_size, data.epoch_windows) * data.context_length


def total_steps(data: TextDataModule, settings: TrainerSettings) -> int:
    """Return the number of optimizer steps of the whole run, given by max_tokens or else max_epochs, and by max_steps."""
    per_epoch = steps_per_epoch(data, settings)
    steps = settings.max_epochs * per_epoch
    if settings.max_tokens is not None:
        epochs, rest = divmod(settings.max_tokens, tokens_per_epoch(data, settings))
        step = data.global_batch_size * settings.accumulate_grad_batches * data.context_length  # tokens
        steps = epochs * per_epoch + math.ceil(rest / step)
    return steps if settings.max_steps == -1 else min(steps, settings.max_steps)


def total_epochs(data: TextDataModule, settings: TrainerSettings) -> int:
    """Return the number of epochs of the whole run if max_steps does not end it, including an incomplete last epoch."""
    if settings.max_tokens is None:
        return settings.max_epochs
    return math.ceil(total_steps(data, settings) / steps_per_epoch(data, settings))


def reached_limit(trainer: TrainerSettings, *, steps: int, tokens: int) -> str | None:
    """Return the limit that ends a run, "max_steps" or "max_tokens", or None if it has reached neither.

    Args:
        steps: Optimizer steps done.
        tokens: Tokens seen.
    """
    if steps >= trainer.max_steps > 0:
        return "max_steps"
    return "max_tokens" if trainer.max_tokens is not None and tokens >= trainer.max_tokens else None
