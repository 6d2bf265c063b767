"""Compute the learning rate as a pure function of the optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from gpt_pretrain.config.schema import SchedulerSettings
from gpt_pretrain.training.budget.pace import Pace

FULL_DECAY = ("warmup_cosine", "warmup_linear")  # decay from the end of the warm-up on
FINAL_DECAY = ("warmup_stable_decay", "warmup_stable_sqrt")  # constant, with a decay in the last steps


def lr_at(step: float, *, lr: float, settings: SchedulerSettings, total_steps: int) -> float:
    """Return the learning rate of an optimizer step.

    The warm-up is linear and reaches lr at step warmup_steps. The decay reaches min_lr at the last step and stays there.

    Args:
        step: Optimizer steps done before this one, so the first step is 0.
        lr: The highest learning rate.
        settings: The `scheduler` settings.
        total_steps: Optimizer steps of the whole run.

    Source: the cosine of Loshchilov & Hutter 2017 (arXiv:1608.03983) without restarts; warm-up, constant rate and final decay
        of Hu et al. 2024 (arXiv:2404.06395); the final decay by 1 - sqrt of Hägele et al. 2024 (arXiv:2405.18392).
    """
    if step < settings.warmup_steps:
        return lr * (step + 1) / (settings.warmup_steps + 1)
    if settings.name in FULL_DECAY:
        begin, length = settings.warmup_steps, total_steps - 1 - settings.warmup_steps
    elif settings.name in FINAL_DECAY:
        length = decay_length(settings, total_steps=total_steps)
        begin = total_steps - 1 - length
    else:
        return lr
    done = min(max((step - begin) / length, 0.0), 1.0) if length > 0 else float(step >= begin)
    return settings.min_lr + (lr - settings.min_lr) * _remaining(done, settings.name)


def decay_length(settings: SchedulerSettings, *, total_steps: int) -> int:
    """Return the optimizer steps of the final decay: decay_steps, or decay_fraction of the run."""
    return settings.decay_steps if settings.decay_fraction is None else round(settings.decay_fraction * total_steps)


def _remaining(done: float, name: str) -> float:
    """Return the remaining share of the way from lr down to min_lr after this share of a decay."""
    if name == "warmup_cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    return 1.0 - math.sqrt(done) if name == "warmup_stable_sqrt" else 1.0 - done


def build_schedule(
    optimizer: Optimizer,
    *,
    lr: float,
    settings: SchedulerSettings,
    total_steps: int,
    scale: Callable[[], float],
    pace: Pace | None = None,
) -> LambdaLR:
    """Build the schedule that sets the learning rate of each optimizer step. It scales all parameter groups alike.

    Args:
        lr: The highest learning rate. min_lr is relative to it.
        total_steps: Optimizer steps of the whole run.
        scale: Returns a further factor on the learning rate. Rollbacks lower it.
        pace: The progress of the schedule, if the number of steps may change; it replaces total_steps.
    """

    def factor(step: int) -> float:
        at, length = (step, total_steps) if pace is None else (pace.scheduled_step(step), pace.total)
        return lr_at(at, lr=lr, settings=settings, total_steps=length) / lr * scale()

    return LambdaLR(optimizer, factor)


def apply_settings(optimizer: Optimizer, schedule: LambdaLR, groups: Sequence[dict[str, Any]]) -> None:
    """Replace the settings that a checkpoint has restored in an optimizer and its schedule.

    Args:
        groups: The settings of each parameter group without its parameters, including its highest learning rate.
    """
    schedule.base_lrs = [requested["lr"] for requested in groups]
    for group, requested in zip(optimizer.param_groups, groups, strict=True):
        group.update(requested, initial_lr=requested["lr"], lr=requested["lr"] * schedule.lr_lambdas[0](schedule.last_epoch))
