"""Warn about settings that are allowed but do not have the expected effect. Each warning names a remedy.

To add a check, write a function that takes a `CheckContext` and returns a text or None, and add it to `find_warnings`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from gpt_pretrain.data.token_stream import sample_tokens
from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.model import costs
from gpt_pretrain.model.cluster_costs import step_traffic
from gpt_pretrain.model.config import CUSTOM_KIND
from gpt_pretrain.system.devices import accelerator_device
from gpt_pretrain.system.formatting import format_count, format_rounded, format_short, format_si
from gpt_pretrain.system.resources import free_disk
from gpt_pretrain.tokenizers.splitting import encode_prompt
from gpt_pretrain.training.planning.check_context import CheckContext
from gpt_pretrain.training.planning.memory import memory_per_device
from gpt_pretrain.training.planning.plan import disk_needed, per_device_note
from gpt_pretrain.training.planning.schedule_checks import (
    learning_rate_jumps,
    learning_rate_never_decays,
    schedule_too_long,
    unused_schedule_settings,
)
from gpt_pretrain.training.planning.unused_settings import unused_settings
from gpt_pretrain.training.planning.vocabulary_checks import (
    dropped_line_ends,
    missing_end_of_text,
    unknown_start_context,
    unknown_text,
    unsuitable_vocabulary,
)
from gpt_pretrain.training.run_length import batches_per_epoch, steps_per_epoch, total_steps

# Up to 4 epochs, repeated tokens are worth almost as much as new ones. Source: Muennighoff et al. 2023, arXiv:2305.16264.
MANY_REPEATS = 4
# Training tokens per parameter of the best model for a given compute. Source: Hoffmann et al. 2022, arXiv:2203.15556.
BEST_TOKENS_PER_PARAMETER = 20
MAX_DROPPED_SHARE = 0.25  # share of an epoch's windows
BF16_SPACING = 2.0**-8  # from 1 to the next lower number
NVIDIA_GPU = Path("/dev/nvidia0")


def find_warnings(context: CheckContext) -> list[str]:
    """Return the warnings about a run, one or two sentences each."""
    checks: list[Callable[[CheckContext], str | None]] = [
        _memory_too_small,
        _needless_fsdp,
        _disk_too_small,
        _too_little_text,
        _few_validation_windows,
        _incomplete_batch_dropped,
        _tokens_between_windows,
        _no_document_ends,
        missing_end_of_text,
        dropped_line_ends,
        unsuitable_vocabulary,
        unknown_text,
        unknown_start_context,
        learning_rate_jumps,
        schedule_too_long,
        unused_schedule_settings,
        learning_rate_never_decays,
        _lost_updates,
        _unused_gpu,
        _unreachable_max_steps,
        _accumulation_beyond_epoch,
        _interval_beyond_run,
        _ineffective_early_stopping,
        _sample_beyond_context,
        _unused_sampler_settings,
        unused_settings,
    ]
    return [warning for check in checks if (warning := check(context)) is not None]


def _unused_sampler_settings(context: CheckContext) -> str | None:
    return SamplerConfig(**vars(context.settings.sampler)).unused_settings()


def _memory_too_small(context: CheckContext) -> str | None:
    settings, plan = context.settings, context.plan
    limit = memory_per_device(settings)
    if limit is None or plan.memory.peak <= limit:
        return None
    size = settings.data.batch_windows
    remedy = (
        f"data.batch_size={size // 2} trainer.accumulate_grad_batches={2 * settings.trainer.accumulate_grad_batches} needs less"
        if size > 1 and plan.memory.activations > plan.memory.gradients
        else "A smaller model or a shorter model.context_length needs less"
    )
    with_fsdp = _peak_memory(context, replace(plan.parallelism, fsdp=True, activation_checkpointing=True))
    if plan.parallelism.devices > 1 and not plan.parallelism.fsdp and with_fsdp <= limit:
        remedy = f"trainer=fsdp, which splits the model over the devices, needs {format_si(with_fsdp, 'B')}"
    return (
        f"data.batch_size={size} needs {format_si(plan.memory.peak, 'B')} of memory per step{per_device_note(plan)}, but only "
        f"{format_si(limit, 'B')} are available. {remedy}."
    )


def _needless_fsdp(context: CheckContext) -> str | None:
    settings, plan = context.settings, context.plan
    limit, with_ddp = memory_per_device(settings), replace(plan.parallelism, fsdp=False)
    needed = _peak_memory(context, with_ddp)
    if limit is None or not plan.parallelism.fsdp or needed > settings.doubts.max_ddp_memory * limit:
        return None
    sent = step_traffic(context.config, precision=settings.trainer.precision, parallelism=with_ddp).total
    return (
        f"trainer.strategy=fsdp is not needed: with the whole model on each of {with_ddp.devices} devices a step needs "
        f"{format_si(needed, 'B')} of their {format_si(limit, 'B')}. trainer.strategy=ddp sends {format_si(sent, 'B')} per step "
        f"instead of {format_si(plan.traffic.total, 'B')}."
    )


def _peak_memory(context: CheckContext, parallelism: costs.Parallelism) -> int:
    """Return the bytes that a step would need on each device with this parallelism. For the user's own model, keep the plan's."""
    if context.config.kind == CUSTOM_KIND:
        return context.plan.memory.peak
    data, trainer = context.settings.data, context.settings.trainer
    device = accelerator_device(trainer.accelerator).type
    memory = costs.training_memory(
        context.config,
        batch_size=data.batch_windows,
        precision=trainer.precision,
        device=device,
        parallelism=parallelism,
        optimizer=context.settings.optimizer.name,
        averages=context.settings.ema_decay is not None,
    )
    return memory.peak


def _disk_too_small(context: CheckContext) -> str | None:
    free, needed = free_disk(Path(context.settings.run_dir)), disk_needed(context.plan, context.settings)
    if needed <= free:
        return None
    return (
        f"hydra.run.dir: the checkpoints need up to {format_si(needed, 'B')} there, but only {format_si(free, 'B')} are free. "
        "Free some space, choose another folder or keep fewer checkpoints (checkpoint.keep)."
    )


def _too_little_text(context: CheckContext) -> str | None:
    settings, plan = context.settings, context.plan
    ratio, memorizes = plan.text_tokens / plan.parameters, plan.repeats > MANY_REPEATS
    if ratio >= settings.doubts.min_tokens_per_parameter or (settings.init_from is not None and not memorizes):
        return None
    size = format_short(plan.parameters, "parameters")
    will, times = ("will", f"{format_rounded(plan.repeats)} times")
    if settings.trainer.max_time is not None:  # the number of steps that fit is not known yet
        will, times = "may", f"up to {times}, if trainer.max_time={settings.trainer.max_time} does not end the run before"
    outcome = f"The model {will} memorize the text" if memorizes else "The model will learn little"
    seen = f"each token is seen {times}" if plan.repeats >= 1 else f"{format_rounded(100 * plan.repeats)}% of them are seen"
    is_own_text = settings.data.path is not None and settings.data.name not in ("shards", "mixture")
    is_usual = settings.tokenizer.name == "gpt2" or settings.tokenizer.vocab_size is not None
    may_choose = is_own_text and settings.init_from is None and is_usual
    dial = "; budget=20m, or another time, chooses the model and the vocabulary for this text" if may_choose else ""
    return (
        f"data: {plan.text_tokens:,} training tokens for {size} are {format_rounded(ratio)} per parameter, while "
        f"about {BEST_TOKENS_PER_PARAMETER} are best, and {seen}. {outcome}. "
        f"Use more text (data.path=...) or a smaller model{dial}."
    )


def _few_validation_windows(context: CheckContext) -> str | None:
    settings, data = context.settings, context.data
    count = len(data.val)
    if count >= settings.doubts.min_val_windows:
        return None
    windows = format_count(count, "validation window")
    if settings.data.val_tokens is not None:
        enough = settings.doubts.min_val_windows * data.context_length
        return (
            f"data.val_tokens={settings.data.val_tokens} gives {windows}, so the validation loss is only a rough estimate. "
            f"data.val_tokens={enough} or more gives enough, if the validation set is that large."
        )
    if data.split.is_given:
        return (
            f"The validation set has only {format_count(count, 'window')}, so the validation loss is only a rough estimate. A "
            "larger validation set or a shorter model.context_length gives more."
        )
    return (
        f"data.train_ratio={settings.data.train_ratio:g} leaves only {windows}, so the validation loss is only a rough estimate. "
        "More text, a lower ratio or a shorter model.context_length gives more."
    )


def _incomplete_batch_dropped(context: CheckContext) -> str | None:
    size, windows = context.settings.data.batch_windows, len(context.data.train)
    dropped = windows % size
    if dropped < MAX_DROPPED_SHARE * windows:
        return None
    better = windows // math.ceil(windows / size)
    return (
        f"data.batch_size={size} drops {dropped:,} of {windows:,} windows in each epoch, since they do not fill a batch. "
        f"data.batch_size={better} drops {windows % better}."
    )


def _tokens_between_windows(context: CheckContext) -> str | None:
    stride, T = context.settings.data.stride, context.config.context_length
    if stride is None or stride <= T:
        return None
    return (
        f"data.stride={stride} never trains on {stride - T} of every {stride} tokens, since a window has "
        f"model.context_length={T} tokens. data.stride=null uses all of them."
    )


def _no_document_ends(context: CheckContext) -> str | None:
    data = context.data
    if not context.settings.data.respect_documents or (sample_tokens(data.split.train) == data.tokenizer.eos_id).any():
        return None
    return (
        "data.respect_documents=true may have no effect: a sample of the training set contains no <|endoftext|>. "
        "data.respect_documents=false is faster."
    )


def _lost_updates(context: CheckContext) -> str | None:
    """Warn if bf16 weights lose their updates. An update is about lr, but bf16 has no numbers between 1 and 1 - 1/256."""
    settings = context.settings
    if settings.trainer.precision != "bf16-true" or settings.optimizer.lr >= BF16_SPACING / 2:
        return None
    return (
        f"trainer.precision=bf16-true stores weights in bf16, where updates with optimizer.lr={settings.optimizer.lr:g} are too "
        "small to change weights near 1. trainer.precision=bf16-mixed keeps them in fp32."
    )


def _unused_gpu(context: CheckContext) -> str | None:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if context.settings.trainer.accelerator != "auto" or hidden or torch.cuda.is_available() or not NVIDIA_GPU.exists():
        return None
    return (
        f"This machine has an NVIDIA GPU, but PyTorch {torch.__version__} cannot use it, so the training runs on the CPU. "
        "Install a PyTorch with CUDA that fits the driver, or set trainer.accelerator=cpu."
    )


def _unreachable_max_steps(context: CheckContext) -> str | None:
    trainer, data = context.settings.trainer, context.data
    if trainer.max_tokens is not None:
        steps = total_steps(data, replace(trainer, max_steps=-1))
        if trainer.max_steps <= steps:
            return None
        return (
            f"trainer.max_steps={trainer.max_steps} is never reached: trainer.max_tokens={trainer.max_tokens} ends the run after "
            f"{format_count(steps, 'step')}. Set only one of them."
        )
    per_epoch = steps_per_epoch(data, trainer)
    steps = trainer.max_epochs * per_epoch
    if trainer.max_steps <= steps:
        return None
    return (
        f"trainer.max_steps={trainer.max_steps} is never reached: trainer.max_epochs={trainer.max_epochs} ends the run after "
        f"{format_count(steps, 'step')}. trainer.max_epochs={math.ceil(trainer.max_steps / per_epoch)} is enough to reach it."
    )


def _accumulation_beyond_epoch(context: CheckContext) -> str | None:
    trainer = context.settings.trainer
    batches = batches_per_epoch(context.data, trainer)
    if trainer.accumulate_grad_batches <= batches:
        return None
    return (
        f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches} is more than the {batches:,} batches of an epoch, "
        f"and no step spans two epochs. trainer.accumulate_grad_batches={batches} does the same."
    )


def _interval_beyond_run(context: CheckContext) -> str | None:
    settings, steps = context.settings, context.plan.total_steps
    intervals = {
        "eval_freq": settings.eval_freq,
        "trainer.log_every_n_steps": settings.trainer.log_every_n_steps,
        "checkpoint.every_n_steps": settings.checkpoint.every_n_steps,
    }
    too_long = [f"{name}={value}" for name, value in intervals.items() if value is not None and value >= steps > 1]
    if not too_long:
        return None
    return (
        f"{' and '.join(too_long)} {'is' if len(too_long) == 1 else 'are'} too long for a run of {format_count(steps, 'step')}. "
        f"Try {max(1, steps // 10)}."
    )


def _ineffective_early_stopping(context: CheckContext) -> str | None:
    stop = context.settings.callbacks.early_stopping
    validations = math.ceil(context.plan.total_steps / steps_per_epoch(context.data, context.settings.trainer))
    if stop is None or max(1, stop.patience) + 1 < validations:
        return None
    return (
        f"callbacks.early_stopping.patience={stop.patience} never stops this run: it has "
        f"{format_count(validations, 'validation')}, one at the end of each epoch, and the first only "
        "sets the reference. Lower the patience or raise trainer.max_epochs."
    )


def _sample_beyond_context(context: CheckContext) -> str | None:
    settings = context.settings
    prompt, new = len(encode_prompt(settings.start_context, context.data.tokenizer)), settings.sampler.max_new_tokens
    context_length = settings.model.context_length
    excess = prompt + new - context_length
    if not settings.callbacks.samples or excess <= 0:
        return None
    remedy = f"sampler.max_new_tokens={new - excess} fits" if excess < new else "A shorter start_context fits"
    return (
        f"sampler.max_new_tokens={new} and the {prompt} tokens of start_context exceed model.context_length={context_length} by "
        f"{excess}. The end of a sample does not see its beginning, and sampling becomes slower. {remedy}."
    )
