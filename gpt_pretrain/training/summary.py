"""Describe a run on screen before its first and after its last step, and describe it for its metadata."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping

from gpt_pretrain.checkpoints.weight_averages import EMA
from gpt_pretrain.config.custom_parts import TARGET, callback_overrides, naming_overrides
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.data.mixture import MixedWindows
from gpt_pretrain.evaluation.memorization import MAX_SEARCHED
from gpt_pretrain.model.config import CUSTOM_KIND, GPTConfig
from gpt_pretrain.model.language_model import LanguageModel
from gpt_pretrain.runs.folder import EXPORTED, checkpoint_dir, display_path
from gpt_pretrain.runs.metadata import describe_environment
from gpt_pretrain.runs.next_commands import generate_command, page_command, resume_command, tensorboard_command
from gpt_pretrain.system.formatting import format_count, format_duration, format_perplexity, format_rounded
from gpt_pretrain.system.resources import device_name, memory_limit
from gpt_pretrain.system.terminal import escape_line
from gpt_pretrain.system.urls import without_secrets
from gpt_pretrain.training.callbacks.evaluation import PeriodicEvaluation
from gpt_pretrain.training.callbacks.health import WarningSigns
from gpt_pretrain.training.callbacks.metrics import TrainMetrics
from gpt_pretrain.training.callbacks.save import SaveRun
from gpt_pretrain.training.callbacks.stop import FinishAtLimit
from gpt_pretrain.training.lit_module import GPTLitModule
from gpt_pretrain.training.planning.check_context import CheckContext
from gpt_pretrain.training.planning.checks import find_warnings
from gpt_pretrain.training.planning.plan import make_plan, plan_summary
from gpt_pretrain.training.planning.schedule_checks import describe_resumed_rate
from gpt_pretrain.training.planning.time_checks import costly_orthogonalization, estimated_times, time_warnings
from gpt_pretrain.training.planning.vocabulary_checks import describe_rare_unknown
from gpt_pretrain.training.preflight import TrainingSetup
from gpt_pretrain.training.run_length import reached_limit, steps_per_epoch, total_steps, windows_per_step

CallbackType = TypeVar("CallbackType")
VISIBLE = 0.1  # nats per token
MAX_SIGN = 100  # characters


def describe_start(setup: TrainingSetup, model: LanguageModel) -> str:
    """Return lines about the model, the data, the length, the cost and the folder of a run, and warnings."""
    settings, data = setup.settings, setup.data
    plan = make_plan(settings, data, model.config, first_step=setup.start.step, parameters=model.num_parameters())
    context = CheckContext(settings, data, model.config, plan, setup.start, setup.overridden)
    warnings = find_warnings(context) + time_warnings(context, estimated_times(context))
    if setup.budget is None:  # a budget has chosen the batch
        warnings += [] if (costly := costly_orthogonalization(context)) is None else [costly]
    return "\n".join(
        [
            *run_facts(settings, data, model),
            *([line] if (line := describe_resumed_rate(context)) is not None else []),
            f"plan    {plan_summary(plan)}",
            f"run     {display_path(Path(settings.run_dir))}",
            *(f"warning {warning}" for warning in warnings),
        ]
    )


def run_facts(settings: TrainSettings, data: TextDataModule, model: LanguageModel) -> list[str]:
    """Return lines about the model, the data and the length of a run."""
    config, split, trainer = model.config, data.split, settings.trainer
    step_windows, last_windows = windows_per_step(data, trainer)
    shorter = f", but {last_windows:,} in the last step of an epoch" if last_windows < step_windows else ""
    on_devices = f", on {data.world_size} devices" if data.world_size > 1 else ""
    lines = [
        f"model   {_format_parameters(model.num_parameters())}: {_shape(config)}"
        f"context {config.context_length}, vocabulary {config.vocab_size:,} "
        f"({escape_line(data.tokenizer.name)})",
        f"data    {escape_line(without_secrets(settings.data.path or settings.data.name))}: "
        f"{split.text_size}{split.text_size and '; '}"
        f"{format_count(split.train.count, 'training token')} in {format_count(len(data.train), 'window')}, "
        f"{format_count(split.val.count, 'validation token')} in {format_count(len(data.val), 'window')}",
        *([f"        {unknown}"] if (unknown := describe_rare_unknown(split)) is not None else []),
        *(f"        {source}" for source in mixture_facts(data)),
        *(f"own     {group}: {escape_line(fields[TARGET])}" for group, fields in settings.custom.items()),
        f"length  {format_count(total_steps(data, trainer), 'optimizer step')}, {steps_per_epoch(data, trainer):,} per epoch, "
        f"of {format_count(step_windows, 'window')} each{shorter}{on_devices}",
    ]
    if settings.callbacks.samples and split.train.count > MAX_SEARCHED:
        lines.append(f"samples are compared with {MAX_SEARCHED:,} evenly spaced training tokens")
    return lines


def mixture_facts(data: TextDataModule) -> list[str]:
    """Return a line for each source of a mixture; none for other data."""
    if not isinstance(data.train, MixedWindows):
        return []
    train = data.train
    return [
        f"{100 * share / len(train):.3g}% of {escape_line(source.name)}: "
        f"each of {len(own):,} windows {format_rounded(share / len(own))} times per epoch"
        for source, own, share in zip(data.sources, train.sources, train.windows_per_epoch, strict=True)
    ]


def setup_metadata(
    settings: TrainSettings, data: TextDataModule, module: GPTLitModule, *, device: torch.device
) -> dict[str, Any]:
    """Return the part of the run metadata that describes the machine, the data and the model."""
    split, config = data.split, module.model.config
    environment = describe_environment()
    environment["machine"] |= {"device": device_name(device), "memory_bytes": memory_limit(device)}
    return environment | {
        "precision": settings.trainer.precision,
        "compiled": module.compiled,
        "tokenizer": data.tokenizer.name,
        "data": {
            "name": settings.data.name,
            "path": None if settings.data.path is None else without_secrets(settings.data.path),
            "sha256": split.text_sha256,
            "characters": split.characters,
            "documents": split.documents,
            "bytes": split.n_bytes,
            "train_tokens": split.train.count,
            "val_tokens": split.val.count,
            "train_windows": len(data.train),
            "val_windows": len(data.val),
            "own_validation_set": data.split.is_given,
        },
        "model": {"parameters": module.model.num_parameters(), "vocab_size": config.vocab_size},
    }


def describe_result(settings: TrainSettings, trainer: L.Trainer, module: GPTLitModule, run_dir: Path) -> str:
    """Return lines about the result of a finished run, its files, and what to do next."""
    metrics, folder = find_callback(trainer, TrainMetrics), display_path(run_dir)
    own_model = {group: fields for group, fields in settings.custom.items() if group == "model"}
    is_out_of_time = find_callback(trainer, FinishAtLimit).is_out_of_time
    before_resume = "" if metrics.new_tokens == module.tokens_seen else f", {metrics.new_tokens:,} of them"
    lines = [
        "",
        f"Done: {_describe_length(trainer)}, {module.tokens_seen:,} tokens seen{before_resume} "
        f"in {format_duration(metrics.total_seconds)} ({metrics.tokens_per_second:,.0f} tokens/s while training)",
        _describe_best(find_callback(trainer, SaveRun), module),
        *_describe_rough_losses(find_callback(trainer, PeriodicEvaluation), module.val_loss),
    ]
    if is_out_of_time:
        lines.append(f"trainer.max_time={settings.trainer.max_time} ended the run. If resumed, it trains for as long again.")
    if findings := describe_findings(trainer):
        lines.append(f"The doctor found: {findings}. Its warnings above and in train.log suggest remedies.")
    lines += [
        f"Files in {folder}:",
        f"  {', '.join(_list_files(run_dir))}",
        "Next:",
        f"  {generate_command(folder, start_context=settings.start_context, named=naming_overrides(own_model))}",
    ]
    if settings.logger.tensorboard:
        lines.append(f"  {tensorboard_command(display_path(run_dir.parent))}")
    if settings.budget is None:  # a run that has spent its budget is complete
        lines.append(f"  {_resume_further(settings, trainer, module, folder)}")
    lines.append(f"  {page_command(folder, named=naming_overrides(own_model))}")
    return "\n".join(lines)


def _shape(config: GPTConfig) -> str:
    """Return layers, heads and width. For the user's own model they are unknown, and nothing is returned."""
    if config.kind == CUSTOM_KIND:
        return ""
    return f"{format_count(config.n_layers, 'layer')}, {format_count(config.n_heads, 'head')}, emb_dim {config.emb_dim}, "


def _format_parameters(count: int) -> str:
    return f"{count / 1e6:.1f}M parameters" if count >= 1e6 else format_count(count, "parameter")


def _describe_length(trainer: L.Trainer) -> str:
    """Return the length of a run in epochs and steps, or in steps alone if it is a part of an epoch."""
    batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    epochs = trainer.current_epoch - 1 + batches / trainer.num_training_batches
    if epochs < 1:
        of_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        return f"{trainer.global_step:,} of the {format_count(of_epoch, 'step')} of an epoch"
    rounded = f"{epochs:,.2f}".rstrip("0").rstrip(".")
    return f"{rounded} {'epoch' if rounded == '1' else 'epochs'}, {format_count(trainer.global_step, 'step')}"


def _describe_best(save: SaveRun, module: GPTLitModule) -> str:
    if save.best_step < 0:
        return f"Best validation loss: none. The last is {module.val_loss}, so the training diverged; try a lower optimizer.lr."
    average = ", of the moving average (weights=ema)" if save.best_weights == EMA else ""
    bits = save.best_loss * module.bits_per_byte_of_loss  # comparable between vocabularies
    measures = [
        f"perplexity {format_perplexity(save.best_loss)}",
        *([f"{bits:.3f} bits per byte"] if math.isfinite(bits) else []),
    ]
    return (
        f"Best validation loss: {save.best_loss:.3f} nats per token ({', '.join(measures)}), "
        f"in epoch {save.best_epoch:,}, step {save.best_step:,}{average}; last: {module.val_loss:.3f}"
    )


def _describe_rough_losses(evaluation: PeriodicEvaluation, val_loss: float) -> list[str]:
    """Explain losses over a few validation batches, if the last one differs visibly from the loss over the whole set."""
    losses, n_windows = evaluation.val_losses, len(evaluation.data.val)
    if (
        not losses
        or evaluation.eval_iter * evaluation.data.settings.batch_windows >= n_windows
        or abs(losses[-1] - val_loss) < VISIBLE
    ):
        return []
    batches = f"{evaluation.eval_iter} batch{'es' * (evaluation.eval_iter > 1)}"
    return [f"These are means over all {n_windows:,} validation windows; the losses printed before are of {batches} (eval_iter)."]


def _resume_further(settings: TrainSettings, trainer: L.Trainer, module: GPTLitModule, folder: str) -> str:
    """Return the command that resumes a finished run and raises the limit that has ended it."""
    limit = reached_limit(settings.trainer, steps=trainer.global_step, tokens=module.tokens_seen)
    stop = settings.callbacks.early_stopping
    has_stopped = stop is not None and find_callback(trainer, EarlyStopping).wait_count >= max(1, stop.patience)
    if limit is None and not has_stopped and not find_callback(trainer, FinishAtLimit).is_out_of_time:
        limit = "max_epochs"
    return resume_command(
        folder,
        limit=None if limit is None else (limit, getattr(settings.trainer, limit)),
        patience=stop.patience if stop is not None and has_stopped else None,
        named=[*naming_overrides(settings.custom), *callback_overrides(settings.callbacks.custom)],
    )


def _list_files(run_dir: Path) -> list[str]:
    names = "checkpoints/last.ckpt checkpoints/best.ckpt losses.png losses.pdf samples.txt metrics.csv train.log config.yaml"
    files = [name for name in [*names.split(), EXPORTED] if (run_dir / name).exists()]
    if any(checkpoint_dir(run_dir).glob("shards-*")):
        files.append("checkpoints/shards-* (required by last.ckpt and best.ckpt)")
    return files


def describe_findings(trainer: L.Trainer) -> str:
    """Return each warning sign of the run, with its first step and the number of later ones; empty if there are none."""
    callbacks: list[object] = trainer.callbacks  # type: ignore[attr-defined]
    steps: dict[str, list[int]] = {}
    for callback in callbacks:
        for finding in callback.findings if isinstance(callback, WarningSigns) else []:
            steps.setdefault(escape_line(finding["sign"])[:MAX_SIGN], []).append(finding["step"])  # it may be from a checkpoint
    return ", ".join(f"{sign} (step {at[0]}{f' and {len(at) - 1} more' * (len(at) > 1)})" for sign, at in steps.items())


def describe_interruption(settings: TrainSettings, trainer: L.Trainer, run_dir: Path) -> str:
    """Return lines about a run that a signal has ended, with the command to resume it."""
    saved = ", but the run could not be saved there." if find_callback(trainer, SaveRun).failed else " and saved."
    text = f"Stopped after {format_count(trainer.global_step, 'step')}{saved}"
    if not any(checkpoint_dir(run_dir).glob("*.ckpt")):
        return text
    assert isinstance(trainer.lightning_module, GPTLitModule)
    named = [*naming_overrides(trainer.lightning_module.custom), *callback_overrides(settings.callbacks.custom)]
    return f"{text} Resume with:\n  {resume_command(display_path(run_dir), named=named)}"


def find_callback(trainer: L.Trainer, kind: type[CallbackType]) -> CallbackType:
    """Return the Trainer's callback of a type."""
    callbacks: list[object] = trainer.callbacks  # type: ignore[attr-defined]
    return next(callback for callback in callbacks if isinstance(callback, kind))
