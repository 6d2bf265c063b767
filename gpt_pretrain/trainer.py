"""From settings to Lightning's Trainer, its callbacks and the length of the run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping

from gpt_pretrain.callbacks.doctor import WarningSigns
from gpt_pretrain.callbacks.loss_curve import LossCurve
from gpt_pretrain.callbacks.losses import LossLines
from gpt_pretrain.callbacks.metrics import TrainMetrics
from gpt_pretrain.callbacks.progress import ProgressBar
from gpt_pretrain.callbacks.prune import EndWhenBehind, running_trial
from gpt_pretrain.callbacks.randomness import Randomness
from gpt_pretrain.callbacks.record import KeepRecord
from gpt_pretrain.callbacks.samples import Samples
from gpt_pretrain.callbacks.save import SafeCheckpointIO, SaveRun
from gpt_pretrain.callbacks.stop import FinishAtLimit, StopOnSignal
from gpt_pretrain.callbacks.time_left import TimeLeft
from gpt_pretrain.config import SamplerConfig
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.loggers import build_loggers
from gpt_pretrain.runs import checkpoint_dir
from gpt_pretrain.settings import TrainerSettings, TrainSettings
from gpt_pretrain.tokenizer import Tokenizer


def batches_per_epoch(data: TextDataModule, settings: TrainerSettings) -> int:
    """Batches of one epoch on one device."""
    batches = len(data.train) // data.settings.batch_size
    return batches if settings.limit_train_batches is None else min(batches, settings.limit_train_batches)


def steps_per_epoch(data: TextDataModule, settings: TrainerSettings) -> int:
    """Optimizer steps of one epoch; a last group of batches that is too small to accumulate in full makes a step too."""
    return math.ceil(batches_per_epoch(data, settings) / settings.accumulate_grad_batches)


def total_steps(data: TextDataModule, settings: TrainerSettings) -> int:
    """Optimizer steps of the whole run, by max_epochs and max_steps."""
    steps = settings.max_epochs * steps_per_epoch(data, settings)
    return steps if settings.max_steps == -1 else min(steps, settings.max_steps)


def build_trainer(
    settings: TrainSettings,
    data: TextDataModule,
    tokenizer: Tokenizer,
    *,
    config: dict[str, Any],
    run_dir: Path,
    first_step: int,
    custom: list[Callback],
) -> L.Trainer:
    """Lightning's Trainer with this program's callbacks, loggers and checkpoints.

    Args:
        config: the resolved settings as plain containers, for the checkpoint.
        run_dir: where everything of the run is written.
        first_step: optimizer steps that the run has done already.
        custom: callbacks of the user's own.
    """
    trainer = settings.trainer
    return L.Trainer(
        accelerator=trainer.accelerator,
        devices=trainer.devices,
        precision=trainer.precision,  # type: ignore[arg-type]
        max_epochs=trainer.max_epochs,
        max_steps=-1,  # FinishAtLimit's
        accumulate_grad_batches=trainer.accumulate_grad_batches,
        gradient_clip_val=trainer.gradient_clip_val,
        limit_train_batches=trainer.limit_train_batches,
        limit_val_batches=trainer.limit_val_batches,
        deterministic=trainer.deterministic,
        detect_anomaly=trainer.detect_anomaly,
        profiler=trainer.profiler,
        callbacks=[*build_callbacks(settings, data, tokenizer, config=config, run_dir=run_dir), *custom],
        logger=build_loggers(settings.logger, run_dir=run_dir, first_step=first_step),
        plugins=[SafeCheckpointIO()],
        default_root_dir=run_dir,
        log_every_n_steps=1,  # Lightning's own logging; this program's cadence is TrainMetrics'
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def build_callbacks(
    settings: TrainSettings, data: TextDataModule, tokenizer: Tokenizer, *, config: dict[str, Any], run_dir: Path
) -> list[Callback]:
    """The callbacks that the settings name, in the order in which they act."""
    chosen = settings.callbacks
    losses = LossLines(data, eval_freq=settings.eval_freq, eval_iter=settings.eval_iter)
    metrics = TrainMetrics(every_n_steps=settings.trainer.log_every_n_steps)
    callbacks: list[Callback] = [
        Randomness(),
        metrics,
        losses,
        TimeLeft(losses, total_steps=total_steps(data, settings.trainer)),
        FinishAtLimit(max_steps=settings.trainer.max_steps, max_time=settings.trainer.max_time),
    ]
    signs = samples = None
    if chosen.doctor is not None:
        callbacks.append(signs := WarningSigns(settings, chosen.doctor, data, losses))
    if chosen.samples:
        samples = Samples(
            tokenizer,
            data,
            start_context=settings.start_context,
            sampler=SamplerConfig(**vars(settings.sampler)),
            grid=chosen.grid,
            seed=settings.seed,
            file=run_dir / "samples.txt",
        )
        callbacks.append(samples)
    if (trial := running_trial(run_dir)) is not None:
        callbacks.append(EndWhenBehind(trial, run_dir=run_dir))
    if chosen.early_stopping is not None:
        stop = chosen.early_stopping
        callbacks.append(EarlyStopping("val/loss", patience=stop.patience, min_delta=stop.min_delta))
    tokens_per_epoch = batches_per_epoch(data, settings.trainer) * settings.data.batch_size * data.context_length
    if chosen.loss_curve:
        callbacks.append(LossCurve(losses, folder=run_dir, tokens_per_epoch=tokens_per_epoch))
    if chosen.progress_bar:
        callbacks.append(ProgressBar(total_steps=total_steps(data, settings.trainer), max_epochs=settings.trainer.max_epochs))
    save = SaveRun(
        data,
        folder=checkpoint_dir(run_dir),
        settings=settings.checkpoint,
        tokenizer=tokenizer.name,
        config=config,
    )
    record = KeepRecord(
        run_dir, losses=losses, metrics=metrics, save=save, samples=samples, signs=signs, tokens_per_epoch=tokens_per_epoch
    )
    return [*callbacks, save, record, StopOnSignal(save)]
