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
    """Return the number of optimizer steps in an epoch. The last step may accumulate fewer batches than the others."""
    return math.ceil(batches_per_epoch(data, settings) / settings.accumulate_grad_batches)


def windows_per_epoch(data: TextDataModule, settings: TrainerSettings) -> int:
    """Return the number of windows in an epoch of all devices together."""
    return min(batches_per_epoch(data, settings) * data.global_batch_size, data.epoch_windows)


def windows_per_step(data: TextDataModule, settings: TrainerSettings) -> tuple[int, int]:
    """Return the number of windows in an optimizer step of all devices together, and in the last step of an epoch."""
    epoch = windows_per_epoch(data, settings)
    step = min(data.global_batch_size * settings.accumulate_grad_batches, epoch)
    return step, epoch - (steps_per_epoch(data, settings) - 1) * step


def tokens_per_epoch(data: TextDataModule, settings: TrainerSettings) -> int:
    """Return the number of tokens in an epoch of all devices together."""
    return windows_per_epoch(data, settings) * data.context_length


def tokens_after(steps: int, data: TextDataModule, settings: TrainerSettings) -> int:
    """Return the number of tokens in the first optimizer steps of a run."""
    epochs, rest = divmod(steps, steps_per_epoch(data, settings))
    return epochs * tokens_per_epoch(data, settings) + rest * windows_per_step(data, settings)[0] * data.context_length


def total_steps(data: TextDataModule, settings: TrainerSettings) -> int:
    """Return the number of optimizer steps of the whole run. max_tokens or else max_epochs limits it, and so does max_steps."""
    per_epoch = steps_per_epoch(data, settings)
    steps = settings.max_epochs * per_epoch
    if settings.max_tokens is not None:
        epochs, rest = divmod(settings.max_tokens, tokens_per_epoch(data, settings))
        windows, _ = windows_per_step(data, settings)
        steps = epochs * per_epoch + math.ceil(rest / (windows * data.context_length))
    return steps if settings.max_steps == -1 else min(steps, settings.max_steps)


def total_epochs(data: TextDataModule, settings: TrainerSettings) -> int:
    """Return the number of epochs of a run that max_steps does not end, including an incomplete last epoch."""
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
