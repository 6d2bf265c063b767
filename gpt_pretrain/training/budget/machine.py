"""Measure the speed, memory and disk of this machine for a training with the settings of a run."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.system.devices import accelerator_device
from gpt_pretrain.system.resources import available_memory, free_disk, memory_limit
from gpt_pretrain.training.acceleration import precision_for
from gpt_pretrain.training.budget import choice
from gpt_pretrain.training.budget.speed import Speed, measure_speed
from gpt_pretrain.training.distributed import ranks

CPU_SHAPES, GPU_SHAPES = ((64, 2), (128, 4), (256, 6)), ((128, 4), (384, 6), (768, 12))  # a short measurement skips the middle
CPU_BATCH, GPU_BATCH = 8, 64  # windows; a GPU needs many to be busy
FEW_SECONDS = 1.5
MEASURED_VOCABULARY = 1024
STEP_WORK = 8e-3  # seconds of the program's own work in a step


def measured_speed(settings: TrainSettings, text: choice.TextFacts, *, seconds: float = math.inf) -> Speed:
    """Measure the speed of this machine in training models of a few sizes.

    Args:
        seconds: Approximate time limit of the measurement.
    """
    device = accelerator_device(settings.trainer.accelerator)
    shapes, batch = (GPU_SHAPES, GPU_BATCH) if device.type == "cuda" else (CPU_SHAPES, CPU_BATCH)
    near = min(text.bytes_per_token, key=lambda size: abs(size - MEASURED_VOCABULARY))
    return measure_speed(
        choice.architectures([near], shapes if seconds > FEW_SECONDS else shapes[::2]),
        settings.optimizer,
        batch=batch,
        device=device,
        bf16=_precision(settings).startswith("bf16"),
        fixed=STEP_WORK,
        seconds=seconds,
    )


def measured_limits(settings: TrainSettings, seconds: float) -> choice.Limits:
    """Return the memory and disk that this machine has left for a training of these seconds. Processes on a CPU share memory."""
    device, local = accelerator_device(settings.trainer.accelerator), _local_devices(settings)
    memory = memory_limit(device)
    if device.type == "cpu" and (available := available_memory()) is not None and memory is not None:
        memory = min(memory, available) // local
    return choice.Limits(
        seconds,
        memory,
        free_disk(Path(settings.run_dir)),
        devices=local * settings.trainer.num_nodes,
        sharing=local if device.type == "cpu" and not ranks.is_distributed() else 1,
        accumulate=settings.trainer.accumulate_grad_batches,
        device=device.type,
        precision=_precision(settings),
        optimizer=settings.optimizer.name,
        averages=settings.ema_decay is not None,
    )


def _local_devices(settings: TrainSettings) -> int:
    devices = settings.trainer.devices
    return max(1, torch.cuda.device_count()) if devices == "auto" else int(devices)


def _precision(settings: TrainSettings) -> str:
    device = accelerator_device(settings.trainer.accelerator)
    return precision_for(settings.trainer.precision, device, deterministic=settings.trainer.deterministic)[0]
