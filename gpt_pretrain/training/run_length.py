"""From settings to Lightning's Trainer, its callbacks and the length of the run."""

from __future__ import annotations

import math

from gpt_pretrain.config.schema import TrainerSettings
from gpt_pretrain.data.datamodule import TextDataModule


def batches_per_epoch(data: TextDataModule, settings: TrainerSettings) -> int:
    """Batches of one epoch on each device."""
    batches = math.ceil(data.epoch_windows / data.batch_windows)
    return batches if settings.limit_train_batches is None else min(batches, settings.limit_train_batches)


def steps_per_epoch(data: TextDataModule, settings: TrainerSettings) -> int:
    """Optimizer steps of one epoch; a last group of batches that is too small to accumulate in full makes a step too."""
    return math.ceil(batches_per_epoch(data, settings) / settings.accumulate_grad_batches)


def tokens_per_epoch(data: TextDataModule, settings: TrainerSettings) -> int:
    """Tokens that all devices together train on in an epoch."""
    return min(batches_per_epoch(data, settings) * data.batch_windows, data.epoch_windows) * data.context_length


def total_steps(data: TextDataModule, settings: TrainerSettings) -> int:
    """Optimizer steps of the whole run, by max_tokens or else max_epochs, and max_steps."""
    per_epoch = steps_per_epoch(data, settings)
    steps = settings.max_epochs * per_epoch
    if settings.max_tokens is not None:
        epochs, rest = divmod(settings.max_tokens, tokens_per_epoch(data, settings))
        step = data.batch_windows * settings.accumulate_grad_batches * data.context_length  # tokens
        steps = epochs * per_epoch + math.ceil(rest / step)
    return steps if settings.max_steps == -1 else min(steps, settings.max_steps)


def total_epochs(data: TextDataModule, settings: TrainerSettings) -> int:
    """Epochs of the whole run, a last one that is not whole included, if max_steps does not end it."""
    if settings.max_tokens is None:
        return settings.max_epochs
    return math.ceil(total_steps(data, settings) / steps_per_epoch(data, settings))


def reached_limit(trainer: TrainerSettings, *, steps: int, tokens: int) -> str | None:
    """Which of max_steps and max_tokens has ended a run of so many optimizer steps and tokens; None if neither has.

    Args:
        tokens: seen so far.
    """
    if steps >= trainer.max_steps > 0:
        return "max_steps"
    return "max_tokens" if trainer.max_tokens is not None and tokens >= trainer.max_tokens else None
