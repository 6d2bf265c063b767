"""Compute the learning rate as a pure function of the optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from gpt_pretrain.config.schema import SchedulerSettings


def lr_at(step: int, *, lr: float, settings: SchedulerSettings, total_steps: int) -> float:
    """Return the learning rate of an optimizer step.

    The warm-up is linear and reaches lr at step warmup_steps. The decay reaches min_lr at the last step and stays there.

    Args:
        step: Optimizer steps done before this one, so the first step is 0.
        lr: The highest learning rate.
        settings: The `scheduler` settings.
        total_steps: Optimizer steps of the whole run.

    Source: the cosine of Loshchilov & Hutter 2017 (arXiv:1608.03983) without restarts; warm-up, constant rate and final decay
        of Hu et al. 2024 (arXiv:2404.06395).
    """
    if step < settings.warmup_steps:
        return lr * (step + 1) / (settings.warmup_steps + 1)
    if settings.name == "warmup_cosine":
        begin, length = settings.warmup_steps, total_steps - 1 - settings.warmup_steps
    elif settings.name == "warmup_stable_decay":
        begin, length = total_steps - 1 - settings.decay_steps, settings.decay_steps
    else:
        return lr
    done = min(max((step - begin) / length, 0.0), 1.0) if length > 0 else float(step >= begin)
    share = 0.5 * (1.0 + math.cos(math.pi * done)) if settings.name == "warmup_cosine" else 1.0 - done
    return settings.min_lr + (lr - settings.min_lr) * share


def build_schedule(
    optimizer: Optimizer, *, lr: float, settings: SchedulerSettings, total_steps: int, scale: Callable[[], float]
) -> LambdaLR:
    """Build the schedule that sets the learning rate of each optimizer step.

    Args:
        lr: The highest learning rate.
        total_steps: Optimizer steps of the whole run.
        scale: Returns a further factor, which rollbacks lower.
    """
    return LambdaLR(optimizer, lambda step: lr_at(step, lr=lr, settings=settings, total_steps=total_steps) / lr * scale())


def apply_settings(optimizer: Optimizer, schedule: LambdaLR, groups: Sequence[dict[str, Any]], *, lr: float) -> None:
    """Replace the settings that a checkpoint has restored in an optimizer and its schedule.

    Args:
        groups: The settings of each parameter group, without its parameters.
        lr: The highest learning rate.
    """
    schedule.base_lrs = [lr] * len(optimizer.param_groups)
    for group, requested in zip(optimizer.param_groups, groups, strict=True):
        group.update(requested, initial_lr=lr, lr=lr * schedule.lr_lambdas[0](schedule.last_epoch))
