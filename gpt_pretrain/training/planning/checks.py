"""Settings that are allowed, and yet will not do what they seem to say: each told with its remedy before the first step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.data.tokens import sample_tokens
from gpt_pretrain.model import costs
from gpt_pretrain.model.cluster_costs import step_traffic
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.system.devices import accelerator_device
from gpt_pretrain.system.formatting import format_si
from gpt_pretrain.system.resources import free_disk, memory_limit
from gpt_pretrain.training.planning.plan import TrainingPlan, disk_needed, per_device_note
from gpt_pretrain.training.run_length import batches_per_epoch, steps_per_epoch, total_steps

MANY_REPEATS = 4  # up to which tokens seen again are worth almost as much as new ones: Muennighoff et al. 2023, arXiv:2305.16264
ENOUGH_TOKENS = 20  # a parameter, of the best model for its compute: Hoffmann et al. 2022, arXiv:2203.15556
MOST_LEFT_OUT = 0.25  # of an epoch's windows


def find_warnings(settings: TrainSettings, data: TextDataModule, config: GPTConfig, plan: TrainingPlan) -> list[str]:
    """What is doubtful about a run, one or two sentences each; none for a sound one."""
    checks: list[Callable[[], str | None]] = [
        lambda: _memory(settings, config, plan),
        lambda: _needless_fsdp(settings, config, plan),
        lambda: _disk(settings, plan),
        lambda: _little_text(settings, plan),
        lambda: _few_windows(settings, data),
        lambda: _left_out(settings, data),
        lambda: _gaps(settings, config),
        lambda: _one_document(settings, data),
        lambda: _warmup(settings, plan.total_steps),
        lambda: _unused_schedule(settings),
        lambda: _max_steps(settings, data),
        lambda: _accumulation(settings, data),
        lambda: _cadences(settings, plan.total_steps),
        lambda: _early_stopping(settings, data, plan.total_steps),
        lambda: _sample(settings, data),
    ]
    return [told for check in checks if (told := check()) is not None]


def _memory(settings: TrainSettings, config: GPTConfig, plan: TrainingPlan) -> str | None:
    limit = _device_memory(settings)
    if limit is None or plan.memory.peak <= limit:
        return None
    size = settings.data.batch_size
    smaller = (
        f"data.batch_size={size // 2} trainer.accumulate_grad_batches={2 * settings.trainer.accumulate_grad_batches} needs less"
        if size > 1 and plan.memory.activations > plan.memory.gradients
        else "a smaller model or a shorter model.context_length needs less"
    )
    spread = _peak(settings, config, replace(plan.sharing, fsdp=True, activation_checkpointing=True))
    if plan.sharing.devices > 1 and not plan.sharing.fsdp and spread <= limit:
        smaller = f"trainer=fsdp, which spreads the model over the devices, needs {format_si(spread, 'B')}"
    return (
        f"data.batch_size={size}: a step needs {format_si(plan.memory.peak, 'B')} of "
        f"memory{per_device_note(plan)}, and there are "
        f"{format_si(limit, 'B')}; {smaller}."
    )


def _needless_fsdp(settings: TrainSettings, config: GPTConfig, plan: TrainingPlan) -> str | None:
    limit, whole = _device_memory(settings), replace(plan.sharing, fsdp=False)
    needed, most = _peak(settings, config, whole), settings.doubts.max_ddp_memory
    if limit is None or not plan.sharing.fsdp or needed > most * limit:
        return None
    sent = step_traffic(config, precision=settings.trainer.precision, parallelism=whole).total
    return (
        f"trainer.strategy=fsdp: with the whole model on each of {whole.devices} devices a step needs {format_si(needed, 'B')} of "  # noqa: E501
        f"their {format_si(limit, 'B')}; trainer.strategy=ddp has room there, and sends {format_si(sent, 'B')} a step instead of "
        f"{format_si(plan.traffic.total, 'B')}."
    )


def _device_memory(settings: TrainSettings) -> int | None:
    """Bytes for each device; those that are a CPU's processes share its memory."""
    device, trainer = accelerator_device(settings.trainer.accelerator), settings.trainer
    limit = memory_limit(device)
    sharing = int(trainer.devices) if device.type == "cpu" and trainer.devices != "auto" else 1
    return None if limit is None else limit // sharing


def _peak(settings: TrainSettings, config: GPTConfig, sharing: costs.Parallelism) -> int:
    """What a step would need on each device, if it were shared like that."""
    device = accelerator_device(settings.trainer.accelerator).type
    size, precision = settings.data.batch_size, settings.trainer.precision
    return costs.training_memory(config, batch_size=size, precision=precision, device=device, parallelism=sharing).peak


def _disk(settings: TrainSettings, plan: TrainingPlan) -> str | None:
    free, needed = free_disk(Path(settings.run_dir)), disk_needed(plan, settings)
    if needed <= free:
        return None
    return (
        f"hydra.run.dir: the checkpoints take up to {format_si(needed, 'B')} there, and {format_si(free, 'B')} are free. "
        "Make room, choose another folder, or keep fewer (checkpoint.keep)."
    )


def _little_text(settings: TrainSettings, plan: TrainingPlan) -> str | None:
    ratio, least = plan.text_tokens / plan.parameters, settings.doubts.min_tokens_per_parameter
    by_heart = plan.repeats > MANY_REPEATS
    if ratio >= least or (settings.init_from is not None and not by_heart):
        return None
    count = format_si(plan.parameters, "").replace(" ", "")  # 124M
    outcome = "the model will learn the text by heart" if by_heart else "the model will learn little"
    return (
        f"data: {plan.text_tokens:,} tokens of text for {count} parameters are {ratio:.2g} a parameter, "
        f"where about {ENOUGH_TOKENS} are best, and each is seen {plan.repeats:.2g} times: {outcome}. "
        "More text (data.path=...) or a smaller model mends that."
    )


def _few_windows(settings: TrainSettings, data: TextDataModule) -> str | None:
    count = len(data.val)
    if count >= settings.doubts.min_val_windows:
        return None
    if settings.data.val_tokens is not None:
        enough = settings.doubts.min_val_windows * data.context_length
        return (
            f"data.val_tokens={settings.data.val_tokens}: that is {count} window{'' if count == 1 else 's'} to validate on, so "
            f"the validation loss is a rough guess; data.val_tokens={enough} or more mends that, as far as there are so many."
        )
    return (
        f"data.train_ratio={settings.data.train_ratio:g}: there {'is' if count == 1 else 'are'} only {count} window"
        f"{'' if count == 1 else 's'} to validate on, so the validation loss is a rough guess. More text, a lower ratio or a "
        "shorter model.context_length gives more."
    )


def _left_out(settings: TrainSettings, data: TextDataModule) -> str | None:
    size, windows = settings.data.batch_size, len(data.train)
    left_out = windows % size
    if left_out < MOST_LEFT_OUT * windows:
        return None
    better = windows // math.ceil(windows / size)
    return (
        f"data.batch_size={size}: of {windows:,} windows each epoch leaves out {left_out:,}, which make no whole batch; "
        f"data.batch_size={better} leaves out {windows % better}."
    )


def _gaps(settings: TrainSettings, config: GPTConfig) -> str | None:
    stride, T = settings.data.stride, config.context_length
    if stride is None or stride <= T:
        return None
    return (
        f"data.stride={stride}: {stride - T} of every {stride} tokens are never trained on, since a window has "
        f"model.context_length={T}; data.stride=null reads all."
    )


def _one_document(settings: TrainSettings, data: TextDataModule) -> str | None:
    if not settings.data.respect_documents or (sample_tokens(data.split.train) == data.tokenizer.eos_id).any():
        return None
    return (
        "data.respect_documents=true: there is no <|endoftext|> in a sample of the training part, so nothing may be kept apart; "
        "data.respect_documents=false is faster."
    )


def _warmup(settings: TrainSettings, steps: int) -> str | None:
    schedule = settings.scheduler
    if schedule.warmup_steps >= steps:
        return (
            f"scheduler.warmup_steps={schedule.warmup_steps}: the run has {steps} steps, so the learning rate never reaches "
            f"optimizer.lr={settings.optimizer.lr:g}; scheduler.warmup_steps={steps // 20} would."
        )
    if schedule.name == "warmup_stable_decay" and schedule.warmup_steps + schedule.decay_steps >= steps:
        return (
            f"scheduler.decay_steps={schedule.decay_steps}: with scheduler.warmup_steps={schedule.warmup_steps} that is all of "
            f"the run's {steps} steps, and no level stretch is left; scheduler.decay_steps={steps // 5} leaves one."
        )
    return None


def _unused_schedule(settings: TrainSettings) -> str | None:
    schedule = settings.scheduler
    unused: list[tuple[str, float]] = (
        [("scheduler.decay_steps", schedule.decay_steps)] if schedule.name != "warmup_stable_decay" else []
    )
    unused += [("scheduler.min_lr", schedule.min_lr)] if schedule.name == "constant" else []
    told = [f"{name}={value:g}" for name, value in unused if value]
    if not told:
        return None
    return f"{' and '.join(told)}: scheduler={schedule.name} does not go by that; scheduler=warmup_stable_decay does."


def _max_steps(settings: TrainSettings, data: TextDataModule) -> str | None:
    trainer, per_epoch = settings.trainer, steps_per_epoch(data, settings.trainer)
    if trainer.max_tokens is not None:
        by_tokens = total_steps(data, replace(trainer, max_steps=-1))
        if trainer.max_steps <= by_tokens:
            return None
        return (
            f"trainer.max_steps={trainer.max_steps} is never reached: trainer.max_tokens={trainer.max_tokens} ends the run after "
            f"{by_tokens:,} steps; leave one of them out."
        )
    if trainer.max_steps <= trainer.max_epochs * per_epoch:
        return None
    return (
        f"trainer.max_steps={trainer.max_steps} is never reached: trainer.max_epochs={trainer.max_epochs} ends the run after "
        f"{trainer.max_epochs * per_epoch:,} steps; trainer.max_epochs={math.ceil(trainer.max_steps / per_epoch)} lets it go on."
    )


def _accumulation(settings: TrainSettings, data: TextDataModule) -> str | None:
    wanted, batches = settings.trainer.accumulate_grad_batches, batches_per_epoch(data, settings.trainer)
    if wanted <= batches:
        return None
    return (
        f"trainer.accumulate_grad_batches={wanted}: an epoch has {batches}, and a step ends with it; "
        f"trainer.accumulate_grad_batches={batches} does the same."
    )


def _cadences(settings: TrainSettings, steps: int) -> str | None:
    every = {
        "eval_freq": settings.eval_freq,
        "trainer.log_every_n_steps": settings.trainer.log_every_n_steps,
        "checkpoint.every_n_steps": settings.checkpoint.every_n_steps,
    }
    beyond = [f"{name}={value}" for name, value in every.items() if value is not None and value >= steps > 1]
    if not beyond:
        return None
    return (
        f"{' and '.join(beyond)}: the run has {steps} steps, so that comes with the first of them at most; "
        f"{max(1, steps // 10)} would give a few."
    )


def _early_stopping(settings: TrainSettings, data: TextDataModule, steps: int) -> str | None:
    stop, validations = settings.callbacks.early_stopping, math.ceil(steps / steps_per_epoch(data, settings.trainer))
    if stop is None or max(1, stop.patience) + 1 < validations:
        return None
    return (
        f"callbacks.early_stopping.patience={stop.patience} can never act: the run is validated {validations} times, at the end "
        "of each epoch, and the first of them sets the mark. Ask for less patience or more trainer.max_epochs."
    )


def _sample(settings: TrainSettings, data: TextDataModule) -> str | None:
    prompt, new = len(data.tokenizer.encode(settings.start_context)), settings.sampler.max_new_tokens
    beyond = prompt + new - settings.model.context_length
    if not settings.callbacks.samples or beyond <= 0:
        return None
    remedy = f"sampler.max_new_tokens={new - beyond} fits" if beyond < new else "a shorter start_context mends that"
    return (
        f"sampler.max_new_tokens={new}: with the {prompt} of start_context that is {beyond} more than model.context_length="
        f"{settings.model.context_length}, so the end of a sample no longer sees its beginning, and takes longer; {remedy}."
    )
