"""What a run will do and cost, before its first step: counted and computed, nothing measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from gpt_pretrain.config.schema import TrainerSettings, TrainSettings
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.model import costs
from gpt_pretrain.model.cluster_costs import StepTraffic, step_traffic
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.costs import Parallelism, TrainingMemory
from gpt_pretrain.runs.folder import checkpoint_dir
from gpt_pretrain.system.devices import accelerator_device
from gpt_pretrain.system.formatting import format_si
from gpt_pretrain.training.run_length import steps_per_epoch, tokens_per_epoch, total_steps


@dataclass(frozen=True)
class TrainingPlan:
    """A run in numbers; where it is resumed, all but `total_steps` are of what is left.

    Args:
        parameters: trainable numbers.
        text_tokens: tokens of the training text, but for those between windows that are further apart than they are long.
        tokens_per_epoch: tokens that an epoch trains on.
        total_steps: optimizer steps of the whole run.
        steps: optimizer steps to do.
        tokens: tokens to train on.
        token_flops: floating-point operations of a token, those done a second time by activation checkpointing included.
        loss_lines: printed losses, that before training included.
        line_batches: batches behind each of them on each device, both parts together.
        validations: over the whole validation part, each followed by a checkpoint.
        val_batches: batches of each on each device.
        epoch_ends: with a sample each.
        sharing: how devices share the training.
        memory: of a training step, on each device.
        traffic: what each device sends in a training step.
        checkpoint: bytes of one.
        checkpoints: how many there are on disk at once, at most.
        export: bytes of the folder for transformers.
    """

    parameters: int
    text_tokens: int
    tokens_per_epoch: int
    total_steps: int
    steps: int
    tokens: int
    token_flops: float
    loss_lines: int
    line_batches: int
    validations: int
    val_batches: int
    epoch_ends: int
    sharing: Parallelism
    memory: TrainingMemory
    traffic: StepTraffic
    checkpoint: int
    checkpoints: int
    export: int

    @property
    def flops(self) -> float:
        """Floating-point operations of the training."""
        return self.token_flops * self.tokens

    @property
    def disk(self) -> int:
        """Bytes of all checkpoints, and of the exported folder."""
        return self.checkpoint * self.checkpoints + self.export

    @property
    def repeats(self) -> float:
        """How often each token of the text is trained on, on average."""
        return self.tokens / self.text_tokens


def sharing_of(trainer: TrainerSettings, devices: int) -> Parallelism:
    """How the settings have so many devices share a training."""
    return Parallelism(
        devices=devices,
        fsdp=trainer.strategy == "fsdp" and devices > 1,
        activation_checkpointing=trainer.activation_checkpointing,
        accumulate_grad_batches=trainer.accumulate_grad_batches,
    )


def make_plan(settings: TrainSettings, data: TextDataModule, config: GPTConfig, *, first_step: int = 0) -> TrainingPlan:
    """The plan of a run.

    Args:
        config: the model's architecture.
        first_step: optimizer steps that the run has done already.
    """
    trainer, size, W = settings.trainer, settings.data.batch_size, data.world_size
    sharing = sharing_of(trainer, W)
    total, per_epoch = total_steps(data, trainer), steps_per_epoch(data, trainer)
    tokens = tokens_per_epoch(data, trainer)
    val_batches = math.ceil(len(data.val) / size)
    train_line = min(settings.eval_iter, math.ceil(len(data.train) / size))
    line_batches = math.ceil(train_line / W) + math.ceil(min(settings.eval_iter, val_batches) / W)
    val_batches = math.ceil(val_batches / W)
    epoch_ends = math.ceil(total / per_epoch) - first_step // per_epoch
    between = _saves_between(settings.checkpoint.every_n_steps, first_step, total, per_epoch)
    validations = epoch_ends + between
    device = accelerator_device(trainer.accelerator).type
    parameters = costs.num_parameters(config)
    reads_all = settings.data.stride is None or settings.data.stride <= config.context_length
    return TrainingPlan(
        parameters=parameters,
        text_tokens=data.split.train.count if reads_all else len(data.train) * config.context_length,
        tokens_per_epoch=tokens,
        total_steps=total,
        steps=total - first_step,
        tokens=round((total - first_step) * tokens / per_epoch),
        token_flops=costs.training_flops(config, activation_checkpointing=sharing.activation_checkpointing),
        loss_lines=_multiples(settings.eval_freq, first_step, total) + (first_step == 0),
        line_batches=line_batches,
        validations=validations,
        val_batches=val_batches if trainer.limit_val_batches is None else min(val_batches, trainer.limit_val_batches),
        epoch_ends=epoch_ends,
        sharing=sharing,
        memory=costs.training_memory(config, batch_size=size, precision=trainer.precision, device=device, parallelism=sharing),
        traffic=step_traffic(config, precision=trainer.precision, parallelism=sharing),
        checkpoint=costs.checkpoint_bytes(config, precision=trainer.precision),
        checkpoints=3 + min(settings.checkpoint.keep, validations),  # last, best, and one that is being written
        export=4 * parameters if settings.export else 0,
    )


def plan_summary(plan: TrainingPlan) -> str:
    """The plan in short."""
    parts = [f"{plan.tokens:,} tokens, {plan.tokens_per_epoch:,} an epoch", f"{format_si(plan.flops, 'FLOP')} of training"]
    parts += [f"{format_si(plan.memory.peak, 'B')} of memory beside the program's own{per_device_note(plan)}"]
    parts += [f"{format_si(plan.traffic.total, 'B')} sent a step by each ({plan.sharing.name})"] * (plan.sharing.devices > 1)
    return "; ".join([*parts, f"up to {format_si(plan.disk, 'B')} of disk for checkpoints"])


def per_device_note(plan: TrainingPlan) -> str:
    """What to say behind a number that holds for each of several devices."""
    return f", on each of {plan.sharing.devices} devices" if plan.sharing.devices > 1 else ""


def disk_needed(plan: TrainingPlan, settings: TrainSettings) -> int:
    """Bytes that checkpoints will take beyond what the run has there already."""
    folder = checkpoint_dir(Path(settings.run_dir))
    there = sum(file.stat().st_size for kind in ("*.ckpt", "shards-*/*") for file in folder.glob(kind))
    return max(0, plan.disk - there)


def _multiples(of: int, first: int, end: int) -> int:
    """How many numbers from first to below end are multiples of another."""
    return math.ceil(end / of) - math.ceil(first / of)


def _saves_between(every: int | None, first_step: int, total: int, per_epoch: int) -> int:
    """Checkpoints by checkpoint.every_n_steps that are not those of an epoch's end or the run's."""
    if every is None:
        return 0
    both = math.lcm(every, per_epoch)
    return _multiples(every, first_step + 1, total) - _multiples(both, first_step + 1, total)
