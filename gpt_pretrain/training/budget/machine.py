"""Measure what this machine can do for a training, by the settings of a run."""

from __future__ import annotations

import math
from pathlib import Path

from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.system.devices import accelerator_device
from gpt_pretrain.system.resources import free_disk, memory_limit
from gpt_pretrain.training.acceleration import precision_for
from gpt_pretrain.training.budget import choice
from gpt_pretrain.training.budget.speed import Speed, measure_speed

MEASURED = ((64, 2), (128, 4), (256, 6))  # shapes; a short measurement leaves out the middle one
FEW_SECONDS = 1.5
MEASURED_BATCH, MEASURED_VOCABULARY = 8, 1024
STEP_WORK = 8e-3  # seconds of a step that the program needs around it


def measured_speed(settings: TrainSettings, text: choice.TextFacts, *, seconds: float = math.inf) -> Speed:
    """Measure how fast this machine trains models of a few sizes.

    Args:
        seconds: About how long that may take.
    """
    device = accelerator_device(settings.trainer.accelerator)
    near = min(text.bytes_per_token, key=lambda size: abs(size - MEASURED_VOCABULARY))
    return measure_speed(
        choice.architectures([near], MEASURED if seconds > FEW_SECONDS else MEASURED[::2]),
        settings.optimizer,
        batch=MEASURED_BATCH,
        device=device,
        bf16=_precision(settings).startswith("bf16"),
        fixed=STEP_WORK,
        seconds=seconds,
    )


def measured_limits(settings: TrainSettings, seconds: float) -> choice.Limits:
    """Return what this machine has left for a training of these seconds."""
    device = accelerator_device(settings.trainer.accelerator)
    return choice.Limits(
        seconds,
        memory_limit(device),
        free_disk(Path(settings.run_dir)),
        devices=int(settings.trainer.devices) * settings.trainer.num_nodes,
        accumulate=settings.trainer.accumulate_grad_batches,
        device=device.type,
        precision=_precision(settings),
    )


def _precision(settings: TrainSettings) -> str:
    device = accelerator_device(settings.trainer.accelerator)
    return precision_for(settings.trainer.precision, device, deterministic=settings.trainer.deterministic)[0]
