"""Build the loggers of a run: metrics.csv, TensorBoard, Weights & Biases and MLflow."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning.pytorch.loggers import Logger

from gpt_pretrain.config.schema import LoggerSettings
from gpt_pretrain.config.secrets import override_without_secrets
from gpt_pretrain.runs.metadata import metadata_texts, read_metadata, stored_overrides
from gpt_pretrain.runs.metrics_file import MetricsFile
from gpt_pretrain.runs.tensorboard import EventFiles, to_hparams
from gpt_pretrain.runs.tracking import mlflow_logger, outlive_failures, wandb_logger


def flush_loggers(loggers: Iterable[Logger]) -> None:
    """Write everything that has been logged to disk."""
    for logger in loggers:
        logger.flush() if isinstance(logger, MetricsFile) else logger.save()


def build_loggers(settings: LoggerSettings, *, run_dir: Path, first_step: int = 0, evaluated: Sequence[str] = ()) -> list[Logger]:
    """Build the configured loggers.

    Args:
        first_step: The step at which training starts. Existing entries of this step and of later ones are discarded.
        evaluated: The metrics of held-out texts and tasks.

    Raises:
        UserError: If Weights & Biases or MLflow cannot be used.
    """
    loggers: list[Logger] = []
    history = None
    if settings.csv:
        loggers.append(metrics := MetricsFile(run_dir / "metrics.csv", first_step=first_step, evaluated=evaluated))
        history = metrics.history
    if settings.tensorboard:
        metadata = read_metadata(run_dir)
        swept = metadata_texts(metadata, "swept")
        hparams = to_hparams(stored_overrides(metadata) if metadata.get("swept") is None else swept)
        loggers.append(EventFiles(run_dir, first_step=first_step, hparams=hparams, sweep=bool(swept), history=history))
    if settings.wandb is not None:
        sys.argv[1:] = map(override_without_secrets, sys.argv[1:])  # wandb records them. Hydra has already read them.
        loggers.append(wandb_logger(settings.wandb, run_dir=run_dir))
    if settings.mlflow is not None:
        loggers.append(outlive_failures(mlflow_logger(settings.mlflow, run_dir=run_dir)))
    return loggers
