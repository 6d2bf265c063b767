"""AdamW's parameter groups, and learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math

from gpt_pretrain.config.schema import SchedulerSettings


def lr_at(step: int, *, lr: float, settings: SchedulerSettings, total_steps: int) -> float:
    """The learning rate of an optimizer step.

    Warm-up rises in a straight line and reaches lr at step warmup_steps; a decay reaches min_lr at the last step and stays there.

    Args:
        step: optimizer steps done before it, so the first is 0.
        lr: the highest rate.
        settings: the `scheduler` settings.
        total_steps: optimizer steps of the whole run.

    Source: the cosine is that of Loshchilov & Hutter 2017 (arXiv:1608.03983) without restarts; warm-up, a level stretch and
        a final decay are Hu et al. 2024 (arXiv:2404.06395).
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
