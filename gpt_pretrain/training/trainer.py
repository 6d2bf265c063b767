"""From settings to Lightning's Trainer, its callbacks and the length of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping

from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.runs.folder import checkpoint_dir
from gpt_pretrain.runs.loggers import build_loggers
from gpt_pretrain.tokenizers.base import Tokenizer
from gpt_pretrain.training.callbacks.health import WarningSigns
from gpt_pretrain.training.callbacks.loss_curve import LossCurve
from gpt_pretrain.training.callbacks.losses import LossLines
from gpt_pretrain.training.callbacks.metadata import MetadataWriter
from gpt_pretrain.training.callbacks.metrics import TrainMetrics
from gpt_pretrain.training.callbacks.progress import ProgressBar
from gpt_pretrain.training.callbacks.randomness import Randomness
from gpt_pretrain.training.callbacks.samples import Samples
from gpt_pretrain.training.callbacks.save import SafeCheckpointIO, SaveRun
from gpt_pretrain.training.callbacks.stop import FinishAtLimit, StopOnSignal
from gpt_pretrain.training.callbacks.time_left import TimeLeft
from gpt_pretrain.training.distributed import ranks
from gpt_pretrain.training.distributed.strategy import build_strategy, environments
from gpt_pretrain.training.run_length import tokens_per_epoch, total_epochs, total_steps


def build_trainer(
    settings: TrainSettings,
    data: TextDataModule,
    tokenizer: Tokenizer,
    *,
    config: dict[str, Any],
    run_dir: Path,
    first_step: int,
    extra_callbacks: list[Callback],
) -> L.Trainer:
    """Lightning's Trainer with this program's callbacks, loggers and checkpoints.

    Args:
        config: the resolved settings as plain containers, for the checkpoint.
        run_dir: where everything of the run is written.
        first_step: optimizer steps that the run has done already.
        extra_callbacks: Callbacks from outside the training.
    """
    trainer = settings.trainer
    return L.Trainer(
        accelerator=trainer.accelerator,
        strategy=build_strategy(trainer),
        devices=trainer.devices,
        num_nodes=trainer.num_nodes,
        precision=trainer.precision,  # type: ignore[arg-type]
        max_epochs=total_epochs(data, trainer),
        max_steps=-1,  # FinishAtLimit's
        accumulate_grad_batches=trainer.accumulate_grad_batches,
        gradient_clip_val=trainer.gradient_clip_val,
        limit_train_batches=trainer.limit_train_batches,
        limit_val_batches=trainer.limit_val_batches,
        deterministic=trainer.deterministic,
        detect_anomaly=trainer.detect_anomaly,
        profiler=trainer.profiler,
        callbacks=[*build_callbacks(settings, data, tokenizer, config=config, run_dir=run_dir), *extra_callbacks],
        logger=build_loggers(settings.logger, run_dir=run_dir, first_step=first_step) if ranks.is_main() else [],
        plugins=[SafeCheckpointIO(), *environments()],
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
    """The callbacks that the settings name, in the order in which they act; of several ranks, the first has them all."""
    chosen, main = settings.callbacks, ranks.is_main()
    losses = LossLines(data, eval_freq=settings.eval_freq, eval_iter=settings.eval_iter)
    metrics = TrainMetrics(every_n_steps=settings.trainer.log_every_n_steps)
    callbacks: list[Callback] = [
        Randomness(seed=settings.seed),
        metrics,
        losses,
        TimeLeft(losses, total_steps=total_steps(data, settings.trainer)),
        FinishAtLimit(
            max_steps=settings.trainer.max_steps if settings.trainer.max_tokens is None else total_steps(data, settings.trainer),
            max_time=settings.trainer.max_time,
        ),
    ]
    signs = samples = None
    if chosen.doctor is not None and main:
        callbacks.append(signs := WarningSigns(settings, chosen.doctor, data, losses))
    if chosen.samples and (main or settings.trainer.strategy == "fsdp"):  # a model in pieces takes all to compute
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
    if chosen.early_stopping is not None:
        stop = chosen.early_stopping
        callbacks.append(EarlyStopping("val/loss", patience=stop.patience, min_delta=stop.min_delta))
    per_epoch = tokens_per_epoch(data, settings.trainer)
    if chosen.loss_curve and main:
        callbacks.append(LossCurve(losses, folder=run_dir, tokens_per_epoch=per_epoch))
    if chosen.progress_bar and main:
        callbacks.append(
            ProgressBar(total_steps=total_steps(data, settings.trainer), max_epochs=total_epochs(data, settings.trainer))
        )
    save = SaveRun(
        data,
        folder=checkpoint_dir(run_dir),
        settings=settings.checkpoint,
        tokenizer=tokenizer.name,
        config=config,
    )
    record = MetadataWriter(
        run_dir, losses=losses, metrics=metrics, save=save, samples=samples, signs=signs, tokens_per_epoch=per_epoch
    )
    return [*callbacks, save, *([record] if main else []), StopOnSignal(save)]
