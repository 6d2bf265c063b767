"""Where metrics go: metrics.csv, TensorBoard, and what the user has installed."""

from __future__ import annotations

import csv
from argparse import Namespace
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
        if path.exists():
            head, *rows = path.read_text(encoding="utf-8").splitlines(keepends=True) or [""]
            kept = [row for row in rows if int(row.split(",")[0]) < first_step]
            path.write_text(head + "".join(kept), encoding="utf-8")

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
        new = not self.path.exists()
        with open(self.path, "a", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore")
            if new:
                writer.writeheader()
            writer.writerow({name: _short(value) for name, value in self._row.items()})
        self._row = {}

    def finalize(self, status: str) -> None:
        self.save()


class EventFiles(TensorBoardLogger):
    """TensorBoard events in the run directory itself, with both losses in one chart under Custom Scalars."""

    def __init__(self, run_dir: Path, *, first_step: int = 0) -> None:
        purge: dict[str, Any] = {"purge_step": first_step} if first_step else {}  # hides what was written after the checkpoint
        super().__init__(save_dir=run_dir, name="", version="", default_hp_metric=False, **purge)
        self._charts_written = False

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if not self._charts_written:
            self.experiment.add_custom_scalars(CHARTS)
            self._charts_written = True
        super().log_metrics(metrics, step)

    def save(self) -> None:
        """Flush the events; the settings stand in the run's config.yaml."""
        self.experiment.flush()


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
