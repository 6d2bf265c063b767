"""Build Lightning's Trainer and the callbacks of a run from the settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PyTorchProfiler
from lightning.pytorch.strategies import Strategy

from gpt_pretrain.config.schema import CallbacksSettings, DataSettings, TrainerSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.held_out import HeldOutSet
from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.runs.folder import checkpoint_dir
from gpt_pretrain.runs.loggers import build_loggers
from gpt_pretrain.system.urls import is_url
from gpt_pretrain.training.budget.amount import Budget
from gpt_pretrain.training.budget.plan import BudgetPlan
from gpt_pretrain.training.callbacks.budget import KeepBudget
from gpt_pretrain.training.callbacks.evaluation import PeriodicEvaluation
from gpt_pretrain.training.callbacks.health import WarningSigns
from gpt_pretrain.training.callbacks.held_out import HeldOutEvaluation, held_out_batch
from gpt_pretrain.training.callbacks.loss_curve import LossCurve
from gpt_pretrain.training.callbacks.metadata import MetadataWriter
from gpt_pretrain.training.callbacks.metrics import TrainMetrics
from gpt_pretrain.training.callbacks.progress import ProgressBar
from gpt_pretrain.training.callbacks.randomness import Randomness
from gpt_pretrain.training.callbacks.samples import Samples
from gpt_pretrain.training.callbacks.save import SaveRun
from gpt_pretrain.training.callbacks.stop import FinishAtLimit, StopOnSignal
from gpt_pretrain.training.callbacks.time_left import TimeLeft
from gpt_pretrain.training.callbacks.weight_average import WeightAverage
from gpt_pretrain.training.distributed import ranks
from gpt_pretrain.training.distributed.strategy import build_strategy, cluster_environments
from gpt_pretrain.training.preflight import TrainingSetup
from gpt_pretrain.training.run_length import steps_per_epoch, tokens_per_epoch, total_epochs, windows_per_step
from gpt_pretrain.training.saving import SafeCheckpointIO


def build_trainer(
    settings: TrainerSettings,
    *,
    max_epochs: int,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger] = (),
    strategy: Strategy | str = "auto",
    plugins: Sequence[Any] = (),
    default_root_dir: Path | None = None,
) -> L.Trainer:
    """Build the Trainer of a run or of a dry run. It writes checkpoints only if a callback does."""
    return L.Trainer(
        accelerator=settings.accelerator,
        strategy=strategy,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        precision=settings.precision,  # type: ignore[arg-type]
        max_epochs=max_epochs,
        max_steps=-1,  # FinishAtLimit ends the run instead
        accumulate_grad_batches=settings.accumulate_grad_batches,
        gradient_clip_val=settings.gradient_clip_val,
        limit_train_batches=settings.limit_train_batches,
        limit_val_batches=settings.limit_val_batches,
        deterministic=settings.deterministic,
        detect_anomaly=settings.detect_anomaly,
        profiler=PyTorchProfiler(dirpath=default_root_dir) if settings.profiler == "pytorch" else settings.profiler,
        callbacks=list(callbacks),
        logger=list(loggers),
        plugins=list(plugins),
        default_root_dir=default_root_dir,
        log_every_n_steps=1,  # for Lightning's own logging; TrainMetrics obeys trainer.log_every_n_steps
        num_sanity_val_steps=0,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def build_run_trainer(
    setup: TrainingSetup, *, config: dict[str, Any], run_dir: Path, first_step: int, extra_callbacks: list[Callback]
) -> L.Trainer:
    """Build the Trainer of a run with its callbacks, loggers and checkpoints.

    Args:
        config: The resolved settings as plain containers, stored in checkpoints.
        run_dir: The folder for all files of the run.
        first_step: Optimizer steps that the run has done already.
        extra_callbacks: Callbacks from outside the training.

    Raises:
        UserError: If Lightning would load a file in the run's folder by itself.
    """
    if found := sorted(run_dir.glob("*hpc_ckpt_*")):
        raise UserError(
            f"{found[0]} was not written by this program, but in a SLURM job Lightning would resume from it unchecked. "
            "Remove it, or choose another run_dir."
        )
    settings = setup.settings
    return build_trainer(
        settings.trainer,
        max_epochs=total_epochs(setup.data, settings.trainer),
        callbacks=[*build_callbacks(setup, config=config, run_dir=run_dir), *extra_callbacks],
        loggers=_build_loggers(setup, run_dir=run_dir, first_step=first_step) if ranks.is_main() else [],
        strategy=build_strategy(settings.trainer, own_model="model" in settings.custom),
        plugins=[SafeCheckpointIO(), *cluster_environments()],
        default_root_dir=run_dir,
    )


def _build_loggers(setup: TrainingSetup, *, run_dir: Path, first_step: int) -> list[Logger]:
    averages = setup.settings.ema_decay is not None
    evaluated = [] if setup.held_out is None else setup.held_out.metric_names(averages=averages)
    return build_loggers(setup.settings.logger, run_dir=run_dir, first_step=first_step, evaluated=evaluated)


def build_callbacks(setup: TrainingSetup, *, config: dict[str, Any], run_dir: Path) -> list[Callback]:
    """Build the callbacks that the settings ask for, in the order in which they act.

    The first rank has all of them. The other ranks have only callbacks that take part in computing.
    """
    settings, data, main = setup.settings, setup.data, ranks.is_main()
    chosen, per_epoch = settings.callbacks, tokens_per_epoch(data, settings.trainer)
    computes = main or settings.trainer.strategy == "fsdp"  # every rank holds a part of a sharded model
    metrics = TrainMetrics(every_n_steps=settings.trainer.log_every_n_steps)
    losses = _build_evaluation(setup)
    finish = _build_finish(setup)
    average = None if settings.ema_decay is None else WeightAverage(data, decay=settings.ema_decay)
    signs = WarningSigns(settings, chosen.doctor, data, losses) if chosen.doctor is not None and main else None
    samples = _build_samples(setup, run_dir) if chosen.samples and computes else None
    save = SaveRun(
        data,
        folder=checkpoint_dir(run_dir),
        settings=settings.checkpoint,
        tokenizer=setup.tokenizer,
        config=config,
        average=average,
    )
    metadata = MetadataWriter(
        run_dir, losses=losses, metrics=metrics, save=save, samples=samples, signs=signs, tokens_per_epoch=per_epoch
    )
    ordered = (
        Randomness(seed=settings.seed),
        metrics,
        losses,
        _build_time_left(setup, losses, finish),
        finish,
        _keep_budget(setup, setup.budget) if setup.budget is not None else None,
        average,
        _build_held_out(setup, setup.held_out, average=average) if setup.held_out is not None and computes else None,
        signs,
        samples,
        _build_early_stopping(settings.callbacks),
        LossCurve(losses, folder=run_dir, tokens_per_epoch=per_epoch) if chosen.loss_curve and main else None,
        ProgressBar(total_steps=setup.total_steps, max_epochs=total_epochs(data, settings.trainer))
        if chosen.progress_bar and main
        else None,
        save,
        metadata if main else None,
        StopOnSignal(save),
    )
    return [callback for callback in ordered if callback is not None]


def _build_evaluation(setup: TrainingSetup) -> PeriodicEvaluation:
    settings = setup.settings
    return PeriodicEvaluation(
        setup.data,
        eval_freq=settings.eval_freq,
        eval_iter=settings.eval_iter,
        warns_of_misfit=settings.init_from is not None and settings.callbacks.doctor is None,
    )


def _build_finish(setup: TrainingSetup) -> FinishAtLimit:
    """Build the callback that ends the run at its limits. The steps of a budget are `KeepBudget`'s."""
    trainer = setup.settings.trainer
    max_steps = trainer.max_steps if trainer.max_tokens is None else setup.total_steps
    return FinishAtLimit(max_steps=max_steps if setup.budget is None else -1, max_time=trainer.max_time)


def _build_time_left(setup: TrainingSetup, losses: PeriodicEvaluation, finish: FinishAtLimit) -> TimeLeft:
    steps_in_epoch = steps_per_epoch(setup.data, setup.settings.trainer)
    return TimeLeft(
        setup.settings, losses, total_steps=setup.total_steps, per_epoch=steps_in_epoch, max_seconds=finish.max_seconds
    )


def _keep_budget(setup: TrainingSetup, plan: BudgetPlan) -> KeepBudget:
    step_windows, _ = windows_per_step(setup.data, setup.settings.trainer)
    return KeepBudget(
        plan.pace,
        seconds=plan.budget.seconds,
        began=plan.began,
        longest=plan.longest,
        validated=len(setup.data.val) / step_windows,
        while_useful=plan.budget == Budget(),
    )


def _build_held_out(setup: TrainingSetup, held_out: HeldOutSet, *, average: WeightAverage | None) -> HeldOutEvaluation:
    settings = setup.settings
    return HeldOutEvaluation(
        held_out,
        None if _is_remote(settings.data) else setup.data.split.train,
        every_n_steps=settings.evaluation.every_n_steps,
        total_steps=setup.total_steps,
        batch_tokens=held_out_batch(settings),
        average=average,
    )


def _is_remote(data: DataSettings) -> bool:
    """Return whether a search in the training set would have to download a part of it."""
    return any(is_url(path) for path in (data.path or "", *(source.path for source in data.sources)))


def _build_samples(setup: TrainingSetup, run_dir: Path) -> Samples:
    settings = setup.settings
    return Samples(
        setup.tokenizer,
        setup.data,
        start_context=settings.start_context,
        sampler=SamplerConfig(**vars(settings.sampler)),
        grid=settings.callbacks.grid,
        seed=settings.seed,
        file=run_dir / "samples.txt",
    )


def _build_early_stopping(chosen: CallbacksSettings) -> EarlyStopping | None:
    stop = chosen.early_stopping
    return None if stop is None else EarlyStopping("val/loss", patience=stop.patience, min_delta=stop.min_delta)
