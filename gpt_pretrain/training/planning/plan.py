"""Compute the work and the cost of a run before its first step, without measuring anything."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_pretrain.config.schema import TrainerSettings, TrainSettings
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.model import costs
from gpt_pretrain.model.cluster_costs import StepTraffic, step_traffic
from gpt_pretrain.model.config import CUSTOM_KIND, GPTConfig
from gpt_pretrain.model.costs import Parallelism, TrainingMemory
from gpt_pretrain.model.custom_costs import custom_costs
from gpt_pretrain.runs.folder import checkpoint_dir
from gpt_pretrain.system.devices import accelerator_device
from gpt_pretrain.system.formatting import format_count, format_si
from gpt_pretrain.training.run_length import steps_per_epoch, tokens_after, tokens_per_epoch, total_steps


@dataclass(frozen=True)
class TrainingPlan:
    """A run in numbers. For a resumed run, `total_steps`, `total_tokens` and `repeats` cover the whole run, all others the rest.

    Args:
        parameters: Trainable parameters.
        text_tokens: Tokens of the training set, without tokens between windows.
        tokens_per_epoch: Tokens that an epoch trains on.
        total_steps: Optimizer steps of the whole run.
        steps: Optimizer steps that remain.
        tokens: Tokens to train on.
        total_tokens: Tokens that the whole run trains on.
        token_flops: Floating-point operations per token, including recomputation by activation checkpointing.
        evaluations: Evaluations of both losses every eval_freq steps, including the one before training.
        evaluation_batches: Batches of both sets in one evaluation, on each device.
        validations: Passes over the validation set, each followed by a checkpoint.
        val_batches: Batches of one validation on each device, including the validation of a weight average.
        epoch_ends: Ends of epochs, each with a sample.
        held_out_evaluations: Evaluations on held-out texts and tasks, if there are any.
        parallelism: The way in which devices share the training.
        memory: Memory of a training step on each device.
        traffic: Bytes that each device sends in a training step.
        checkpoint: Bytes of one checkpoint.
        max_checkpoints: The most checkpoints on disk at the same time, if no two of them share their content.
        export: Bytes of the exported Hugging Face folder.
    """

    parameters: int
    text_tokens: int
    tokens_per_epoch: int
    total_steps: int
    steps: int
    tokens: int
    total_tokens: int
    token_flops: float
    evaluations: int
    evaluation_batches: int
    validations: int
    val_batches: int
    epoch_ends: int
    held_out_evaluations: int
    parallelism: Parallelism
    memory: TrainingMemory
    traffic: StepTraffic
    checkpoint: int
    max_checkpoints: int
    export: int

    @property
    def flops(self) -> float:
        """Floating-point operations of the training."""
        return self.token_flops * self.tokens

    @property
    def disk(self) -> int:
        """Bytes of all checkpoints and of the exported folder."""
        return self.checkpoint * self.max_checkpoints + self.export

    @property
    def repeats(self) -> float:
        """The mean number of times that the whole run, from its first step, trains on each token of the training set."""
        return self.total_tokens / self.text_tokens


def make_plan(
    settings: TrainSettings, data: TextDataModule, config: GPTConfig, *, first_step: int = 0, parameters: int | None = None
) -> TrainingPlan:
    """Return the plan of a run.

    Args:
        config: The model's architecture.
        parameters: Trainable parameters of the user's own model, for which there is no formula; None uses the formula.
        first_step: Optimizer steps that the run has done already.
    """
    trainer, size, W = settings.trainer, settings.data.batch_windows, data.world_size
    parallelism = _parallelism(trainer, devices=W)
    model_costs = _model_costs(settings, config, parallelism, parameters=parameters)
    total, per_epoch = total_steps(data, trainer), steps_per_epoch(data, trainer)
    total_tokens = tokens_after(total, data, trainer)
    epoch_ends = math.ceil(total / per_epoch) - first_step // per_epoch
    validations = epoch_ends + _saves_between(settings.checkpoint.every_n_steps, first_step, total, per_epoch)
    train_batches, val_batches = math.ceil(len(data.train) / size), math.ceil(len(data.val) / size)
    evaluation_batches = [min(settings.eval_iter, batches) for batches in (train_batches, val_batches)]
    val_batches_per_device = math.ceil(val_batches / W)
    if trainer.limit_val_batches is not None:
        val_batches_per_device = min(val_batches_per_device, trainer.limit_val_batches)
    uses_all_tokens = settings.data.stride is None or settings.data.stride <= config.context_length
    return TrainingPlan(
        text_tokens=data.split.train.count if uses_all_tokens else len(data.train) * config.context_length,
        tokens_per_epoch=tokens_per_epoch(data, trainer),
        total_steps=total,
        steps=total - first_step,
        tokens=total_tokens - tokens_after(first_step, data, trainer),
        total_tokens=total_tokens,
        evaluations=_count_multiples(settings.eval_freq, first_step, total) + (first_step == 0),
        evaluation_batches=sum(math.ceil(batches / W) for batches in evaluation_batches),
        validations=validations,
        val_batches=val_batches_per_device * (1 if settings.ema_decay is None else 2),
        epoch_ends=epoch_ends,
        held_out_evaluations=(first_step == 0)
        + _evaluations_between(settings.evaluation.every_n_steps, first_step, total, epoch_ends),
        parallelism=parallelism,
        max_checkpoints=3 + min(settings.checkpoint.keep, validations),  # last, best and the one being written
        **model_costs,
    )


def _model_costs(
    settings: TrainSettings, config: GPTConfig, parallelism: Parallelism, *, parameters: int | None
) -> dict[str, Any]:
    """Return the fields of a plan that follow from the model."""
    precision, averages = settings.trainer.precision, settings.ema_decay is not None
    device = accelerator_device(settings.trainer.accelerator).type
    batch: dict[str, Any] = {"batch_size": settings.data.batch_windows, "precision": precision}
    if config.kind == CUSTOM_KIND:
        assert parameters is not None
        return custom_costs(config, parameters, parallelism=parallelism, averages=averages, **batch)
    optimizer = settings.optimizer.name
    return {
        "parameters": (count := costs.num_parameters(config)),
        "token_flops": costs.training_flops_per_token(config, activation_checkpointing=parallelism.activation_checkpointing),
        "memory": costs.training_memory(
            config, device=device, parallelism=parallelism, optimizer=optimizer, averages=averages, **batch
        ),
        "traffic": step_traffic(config, precision=precision, parallelism=parallelism),
        "checkpoint": costs.checkpoint_bytes(config, precision=precision, optimizer=optimizer, averages=averages),
        "export": 4 * count if settings.export else 0,
    }


def plan_summary(plan: TrainingPlan) -> str:
    """Return the plan in one line."""
    left = f"{plan.steps:,} of {format_count(plan.total_steps, 'step')} left: " if plan.steps < plan.total_steps else ""
    parts = [f"{left}{plan.tokens:,} tokens ({plan.tokens_per_epoch:,} per epoch)", format_si(plan.flops, "FLOP")]
    bound = "" if plan.memory.activations else "more than "
    parts += [f"{bound}{format_si(plan.memory.peak, 'B')} of memory{per_device_note(plan)} beyond the program's own"]
    if plan.parallelism.devices > 1:
        parts += [f"{format_si(plan.traffic.total, 'B')} sent per step by each device ({plan.parallelism.name})"]
    return "; ".join([*parts, f"up to {format_si(plan.disk, 'B')} of disk for checkpoints"])


def per_device_note(plan: TrainingPlan) -> str:
    """Return " on each of N devices" if there are several devices, and "" for one device."""
    return f" on each of {plan.parallelism.devices} devices" if plan.parallelism.devices > 1 else ""


def disk_needed(plan: TrainingPlan, settings: TrainSettings) -> int:
    """Return the bytes that the run's checkpoints will need in addition to the existing ones."""
    folder = checkpoint_dir(Path(settings.run_dir))
    files = [file for kind in ("*.ckpt", "shards-*/*") for file in folder.glob(kind)]
    present = sum(file.stat().st_size for file in files if file.is_file())  # not a link that leads nowhere
    return max(0, plan.disk - present)


def _parallelism(trainer: TrainerSettings, *, devices: int) -> Parallelism:
    return Parallelism(
        devices=devices,
        fsdp=trainer.strategy == "fsdp" and devices > 1,
        activation_checkpointing=trainer.activation_checkpointing,
        accumulate_grad_batches=trainer.accumulate_grad_batches,
    )


def _count_multiples(divisor: int, start: int, stop: int) -> int:
    """Return the number of multiples of a number in range(start, stop)."""
    return math.ceil(stop / divisor) - math.ceil(start / divisor)


def _evaluations_between(every: int | None, first_step: int, total: int, epoch_ends: int) -> int:
    """Return the number of evaluations on held-out texts after the first step, including the one at the end."""
    return epoch_ends if every is None else _count_multiples(every, first_step + 1, total) + 1


def _saves_between(every: int | None, first_step: int, total: int, per_epoch: int) -> int:
    """Return the number of checkpoints by checkpoint.every_n_steps, without those at the end of an epoch or of the run."""
    if every is None:
        return 0
    both = math.lcm(every, per_epoch)
    return _count_multiples(every, first_step + 1, total) - _count_multiples(both, first_step + 1, total)
