"""Where metrics go: metrics.csv, TensorBoard, and what the user has installed."""

from __future__ import annotations

import csv
import logging
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from gpt_pretrain.settings import LoggerSettings

COLUMNS = (
    "step",
    "epoch",
    "tokens_seen",
    "train/loss",
    "val/loss",
    "val/perplexity",
    "val/bits_per_byte",
    "eval/train_loss",
    "eval/val_loss",
    "lr",
    "grad_norm",
    "tokens_per_second",
)

log = logging.getLogger(__name__)

CHARTS = {
    "Loss": {
        "train and validation": ["Multiline", ["train/loss", "val/loss"]],
        "every eval_freq steps": ["Multiline", ["eval/train_loss", "eval/val_loss"]],
    }
}


class MetricsFile(Logger):
    """A CSV file with one row a step and a fixed head, of which each row is on disk once the next has begun.

    Args:
        path: the file.
        first_step: the step that training begins with; rows before it that stand in the file are kept.
    """

    def __init__(self, path: Path, *, first_step: int = 0) -> None:
        super().__init__()
        self.path = path
        self._row: dict[str, Any] = {}
        self._failed = False
        if path.exists():
            with open(path, encoding="utf-8", newline="") as stream:
                rows = [row for row in csv.DictReader(stream) if (row["step"] or "").isdigit() and int(row["step"]) < first_step]
            if rows and int(rows[-1]["step"]) == first_step - 1:  # what is still to come of that step joins it
                self._row = {**rows.pop(), "step": first_step - 1}
            path.unlink()
            self._write(rows, new=True)

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the settings stand in the run's config.yaml."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add metrics to the row of a step."""
        if self._row.get("step") != step:
            self.save()
            self._row = {"step": step}
        self._row.update(metrics)

    def save(self) -> None:
        """Write the row begun."""
        if not self._row:
            return
        try:
            self._write([self._row], new=not self.path.exists())
        except OSError as error:
            if not self._failed:
                log.warning("%s cannot be written (%s); its rows are lost until it can.", self.path, error.strerror or error)
            self._failed = True
        self._row = {}

    def _write(self, rows: list[dict[str, Any]], *, new: bool) -> None:
        with open(self.path, "a", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore")
            if new:
                writer.writeheader()
            writer.writerows({name: _short(value) for name, value in row.items()} for row in rows)

    def finalize(self, status: str) -> None:
        self.save()


class EventFiles(TensorBoardLogger):
    """TensorBoard events in the run directory itself, with both losses in one chart under Custom Scalars."""

    def __init__(self, run_dir: Path, *, first_step: int = 0) -> None:
        purge: dict[str, Any] = {"purge_step": first_step} if first_step else {}  # hides what was written after the checkpoint
        super().__init__(save_dir=run_dir, name="", version="", default_hp_metric=False, **purge)
        self._charts_written = False
        self._failed = False

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        with self._unless_failed():
            if not self._charts_written:
                self.experiment.add_custom_scalars(CHARTS)
                self._charts_written = True
            super().log_metrics(metrics, step)

    def add_text(self, name: str, text: str, *, step: int) -> None:
        """Show a text, in Markdown, beside a step."""
        with self._unless_failed():
            self.experiment.add_text(name, text, global_step=step)

    def save(self) -> None:
        """Flush the events; the settings stand in the run's config.yaml."""
        with self._unless_failed():
            self.experiment.flush()

    def finalize(self, status: str) -> None:
        with self._unless_failed():
            super().finalize(status)

    @contextmanager
    def _unless_failed(self) -> Iterator[None]:
        """Do something with the events; where they cannot be written, say so once and leave TensorBoard alone from then on."""
        try:
            yield
        except OSError as error:
            if not self._failed:
                log.warning("TensorBoard's events cannot be written (%s); they end here.", error.strerror or error)
            self._failed = True


def build_loggers(settings: LoggerSettings, *, run_dir: Path, first_step: int = 0) -> list[Logger]:
    """The loggers that the `logger` settings name; what they hold from first_step on is forgotten."""
    loggers: list[Logger] = []
    if settings.csv:
        loggers.append(MetricsFile(run_dir / "metrics.csv", first_step=first_step))
    if settings.tensorboard:
        loggers.append(EventFiles(run_dir, first_step=first_step))
    if settings.wandb is not None:
        from lightning.pytorch.loggers import WandbLogger

        wandb = settings.wandb
        loggers.append(
            WandbLogger(name=wandb.name or run_dir.name, project=wandb.project, offline=wandb.offline, save_dir=run_dir)
        )
    if settings.mlflow is not None:
        from lightning.pytorch.loggers import MLFlowLogger

        uri = settings.mlflow.tracking_uri or f"file:{run_dir.resolve() / 'mlruns'}"
        loggers.append(MLFlowLogger(experiment_name=settings.mlflow.experiment_name, run_name=run_dir.name, tracking_uri=uri))
    return loggers


def _short(value: Any) -> Any:
    return f"{value:.10g}" if isinstance(value, float) else value
