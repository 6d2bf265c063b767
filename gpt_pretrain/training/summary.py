"""What a run says about itself before the first step and after the last."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch

from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.data.mixture import MixedWindows
from gpt_pretrain.evaluation.memorization import MAX_SEARCHED
from gpt_pretrain.model.gpt2 import GPTModel
from gpt_pretrain.runs.folder import EXPORTED, checkpoint_dir, display_path
from gpt_pretrain.runs.metadata import describe_environment
from gpt_pretrain.runs.next_commands import generate_command, resume_command, tensorboard_command
from gpt_pretrain.system.formatting import format_count, format_duration, format_perplexity
from gpt_pretrain.system.resources import device_name, memory_limit
from gpt_pretrain.training.callbacks.health import WarningSigns
from gpt_pretrain.training.callbacks.metrics import TrainMetrics
from gpt_pretrain.training.callbacks.save import SaveRun
from gpt_pretrain.training.lit_module import GPTLitModule
from gpt_pretrain.training.planning.checks import find_warnings
from gpt_pretrain.training.planning.plan import make_plan, plan_summary
from gpt_pretrain.training.run_length import reached_limit, steps_per_epoch, total_steps

Kind = TypeVar("Kind")


def describe_start(settings: TrainSettings, data: TextDataModule, model: GPTModel, *, first_step: int = 0) -> str:
    """The run in a few lines: model, data, length, place, what it will cost, and what is doubtful about it."""
    plan = make_plan(settings, data, model.config, first_step=first_step)
    return "\n".join(
        [
            *run_facts(settings, data, model),
            f"plan    {plan_summary(plan)}",
            f"run     {display_path(Path(settings.run_dir))}",
            *(f"warning {warning}" for warning in find_warnings(settings, data, model.config, plan)),
        ]
    )


def run_facts(settings: TrainSettings, data: TextDataModule, model: GPTModel) -> list[str]:
    """A line each about model, data and length."""
    config, split, trainer = model.config, data.split, settings.trainer
    searched = settings.callbacks.samples and split.train.count > MAX_SEARCHED
    return [
        f"model   {model.num_parameters() / 1e6:.1f}M parameters: {config.n_layers} layers, {config.n_heads} heads, "
        f"emb_dim {config.emb_dim}, context {config.context_length}, vocabulary {config.vocab_size:,} "
        f"({data.tokenizer.name})",
        f"data    {settings.data.path or settings.data.name}: {split.extent}{split.extent and '; '}"
        f"{split.train.count:,} tokens in {len(data.train):,} windows to train on, "
        f"{split.val.count:,} in {len(data.val):,} to validate",
        *(f"        {plan_summary}" for plan_summary in mixture(data)),
        f"length  {format_count(total_steps(data, trainer), 'optimizer step')}, {steps_per_epoch(data, trainer):,} an epoch, of "
        f"{settings.data.batch_size * trainer.accumulate_grad_batches * data.world_size:,} windows each"
        + (f", on {data.world_size} devices" if data.world_size > 1 else ""),
        *([f"samples are compared with {MAX_SEARCHED:,} of the training tokens, spread evenly"] if searched else []),
    ]


def mixture(data: TextDataModule) -> list[str]:
    """A line for each source of a mixture; none for anything else."""
    if not isinstance(data.train, MixedWindows):
        return []
    train = data.train
    return [
        f"{100 * share / len(train):.3g} % of {source.name}: each of {len(own):,} windows {share / len(own):.2g} times an epoch"
        for source, own, share in zip(data.sources, train.sources, train.places, strict=True)
    ]


def setup_metadata(
    settings: TrainSettings, data: TextDataModule, module: GPTLitModule, *, device: torch.device
) -> dict[str, Any]:
    """What a run's record says about what was trained on what."""
    split, config = data.split, module.model.config
    around = describe_environment()
    around["machine"] |= {"device": device_name(device), "memory_bytes": memory_limit(device)}
    return around | {
        "precision": settings.trainer.precision,
        "compiled": module.compiled,
        "tokenizer": data.tokenizer.name,
        "data": {
            "name": settings.data.name,
            "path": settings.data.path,
            "sha256": split.text_sha256,
            "characters": split.characters,
            "documents": split.documents,
            "bytes": split.n_bytes,
            "train_tokens": split.train.count,
            "val_tokens": split.val.count,
            "train_windows": len(data.train),
            "val_windows": len(data.val),
        },
        "model": {"parameters": module.model.num_parameters(), "vocab_size": config.vocab_size},
    }


def describe_result(settings: TrainSettings, trainer: L.Trainer, module: GPTLitModule, run_dir: Path) -> str:
    """What came out, where it is, and what to do next."""
    save, metrics = find_callback(trainer, SaveRun), find_callback(trainer, TrainMetrics)
    folder = display_path(run_dir)
    batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    epochs = trainer.current_epoch - 1 + batches / trainer.num_training_batches
    best = f"none, the last is {module.val_loss} (the training has diverged; try a lower optimizer.lr)"
    if save.best_step >= 0:
        best = (
            f"{save.best_loss:.3f} nats a token (perplexity {format_perplexity(save.best_loss)}) "
            f"in epoch {save.best_epoch}, step {save.best_step}; the last is {module.val_loss:.3f}"
        )
    files = "checkpoints/last.ckpt checkpoints/best.ckpt losses.png losses.pdf samples.txt metrics.csv train.log config.yaml"
    there = [name for name in [*files.split(), EXPORTED] if (run_dir / name).exists()]
    if any(checkpoint_dir(run_dir).glob("shards-*")):
        there.append("checkpoints/shards-* (which last.ckpt and best.ckpt need beside them)")
    limit = reached_limit(settings.trainer, steps=trainer.global_step, tokens=module.tokens_seen) or "max_epochs"
    told = describe_findings(trainer)
    lines = [
        "",
        f"Done: {epochs:.4g} {'epoch' if epochs == 1 else 'epochs'}, {format_count(trainer.global_step, 'step')}, "
        f"{module.tokens_seen:,} tokens seen, in {format_duration(metrics.total_seconds)} "
        f"({metrics.tokens_per_second:,.0f} tokens/s while training)",
        f"Best validation loss: {best}",
        *([f"The doctor found: {told}; its warnings above, and in train.log, say what may help."] if told else []),
        f"Files in {folder}:",
        f"  {', '.join(there)}",
        "Next:",
        f"  {generate_command(folder, start_context=settings.start_context)}",
    ]
    if settings.logger.tensorboard:
        lines.append(f"  {tensorboard_command(display_path(run_dir.parent))}")
    lines.append(f"  {resume_command(folder, limit=(limit, getattr(settings.trainer, limit)))}")
    return "\n".join(lines)


def describe_findings(trainer: L.Trainer) -> str:
    """The warning signs of the run, and when each was first told; empty when there were none."""
    callbacks: list[object] = trainer.callbacks  # type: ignore[attr-defined]
    steps: dict[str, list[int]] = {}
    for finding in (finding for one in callbacks if isinstance(one, WarningSigns) for finding in one.findings):
        steps.setdefault(finding["sign"], []).append(finding["step"])
    return ", ".join(f"{sign} (step {at[0]}{f' and {len(at) - 1} more' * (len(at) > 1)})" for sign, at in steps.items())


def describe_interruption(trainer: L.Trainer, run_dir: Path) -> str:
    """What a run that a signal ended has left, and how to go on."""
    done = f"Stopped after {format_count(trainer.global_step, 'step')}"
    saved = "; the run could not be saved there" if find_callback(trainer, SaveRun).failed else " and saved"
    if not any(checkpoint_dir(run_dir).glob("*.ckpt")):
        return f"{done}{saved}."
    return f"{done}{saved}. Go on with:\n  {resume_command(display_path(run_dir))}"


def find_callback(trainer: L.Trainer, kind: type[Kind]) -> Kind:
    callbacks: list[object] = trainer.callbacks  # type: ignore[attr-defined]
    return next(one for one in callbacks if isinstance(one, kind))
