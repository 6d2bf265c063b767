"""Build the optimizer and the schedule of a run. The settings name built-in ones or the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from gpt_pretrain.config.schema import OptimizerSettings, SchedulerSettings
from gpt_pretrain.model.language_model import LanguageModel
from gpt_pretrain.training.budget.pace import Pace
from gpt_pretrain.training.optimization.custom_optimizer import build_custom_optimizer, typed_group_settings
from gpt_pretrain.training.optimization.custom_schedule import ScaledSchedule, build_custom_schedule
from gpt_pretrain.training.optimization.optimizer import build_optimizer, group_settings
from gpt_pretrain.training.optimization.schedule import apply_settings, build_schedule


def choose_optimizer(
    model: LanguageModel, settings: OptimizerSettings, custom: Mapping[str, Mapping[str, Any]], *, precision: str
) -> tuple[Optimizer, list[dict[str, Any]]]:
    """Return the optimizer, and the settings of its parameter groups.

    Args:
        custom: The user's own optimizer and schedule, by group.
        precision: Lightning's name of the precision.
    """
    if (own := custom.get("optimizer")) is not None:
        optimizer = build_custom_optimizer(model, own)
        return optimizer, typed_group_settings(group_settings(optimizer), own)
    optimizer = build_optimizer(model, settings, fused=precision != "16-mixed", bf16=precision.startswith("bf16"))
    return optimizer, group_settings(optimizer)


def choose_schedule(
    optimizer: Optimizer,
    settings: SchedulerSettings,
    custom: Mapping[str, Mapping[str, Any]],
    *,
    lr: float,
    total_steps: int,
    scale: Callable[[], float],
    pace: Pace | None,
) -> LRScheduler:
    """Return the schedule, which advances with every optimizer step.

    Args:
        custom: The user's own optimizer and schedule, by group.
        lr: The learning rate in the settings; an optimizer of the user's own has its own.
        total_steps: Optimizer steps of the whole run. Schedules end there.
        scale: Returns the factor by which rollbacks have lowered the learning rate.
        pace: The progress of the schedule after each step, if a budget decides it.
    """
    if (own := custom.get("scheduler")) is not None:
        return build_custom_schedule(optimizer, own, total_steps=total_steps, scale=scale)
    if "optimizer" in custom:
        lr = max(group["lr"] for group in optimizer.param_groups)
    return build_schedule(optimizer, lr=lr, settings=settings, total_steps=total_steps, scale=scale, pace=pace)


def apply_current_settings(optimizer: Optimizer, schedule: LRScheduler, groups: Sequence[dict[str, Any]]) -> None:
    """Replace the settings of parameter groups that a checkpoint has restored by these."""
    if isinstance(schedule, ScaledSchedule):
        schedule.apply_settings(groups)
    elif isinstance(schedule, LambdaLR):
        apply_settings(optimizer, schedule, groups)
