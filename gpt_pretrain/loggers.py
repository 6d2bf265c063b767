"""Where metrics go: metrics.csv, TensorBoard, and what the user has installed."""

from __future__ import annotations

import csv
import errno
import io
import logging
import math
import os
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from gpt_pretrain.record import read_record
from gpt_pretrain.runs import write_whole
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
        "by tokens seen": ["Multiline", ["tokens_seen/eval/train_loss", "tokens_seen/eval/val_loss"]],
    }
}
COMPARED = ("val/best_loss", "val/loss", "eval/train_loss", "tokens_per_second")  # by HPARAMS, between runs of a sweep
AXES = ("step", "epoch", "tokens_seen")  # what metrics are plotted against


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
        self._waiting: list[dict[str, Any]] = []
        self._kept: list[dict[str, str]] = []  # rows of the file, until the first is written
        self._failed = False
        if path.exists():
            self._kept = [row for row in _rows(path) if row["step"].isdigit() and int(row["step"]) < first_step]
            write_whole(path, _table(self._kept, head=True))
            if self._kept and int(self._kept[-1]["step"]) == first_step - 1:  # what is still to come of that step joins it
                self._row = {**self._kept[-1], "step": first_step - 1}

    @property
    def kept(self) -> list[dict[str, str]]:
        """The rows that the file had before the first step."""
        return list(self._kept)

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
            self.flush()
            self._row = {"step": step}
        self._row.update(metrics)

    def forget(self, columns: list[str]) -> None:
        """Leave these out of the row of the step before the first, if there is one, and the row if nothing else is in it."""
        if not self._row or not self._kept:
            return
        self._row |= dict.fromkeys(columns, "")
        if not any(value for name, value in self._row.items() if name not in ("step", "epoch", "tokens_seen")):
            self._kept, self._row = self._kept[:-1], {}
            write_whole(self.path, _table(self._kept, head=True))

    def save(self) -> None:
        """Nothing: Lightning calls this while more of a row may be to come."""

    def flush(self) -> None:
        """Write the row begun."""
        row, self._row = self._row, {}
        try:
            if self._kept and row:
                self._complete(row)
            elif row:
                self._waiting.append(row)
            if not self._waiting:
                return
            self._append(_table(self._waiting, head=not self.path.exists()))
            self._waiting = []
        except OSError as error:
            if not self._failed:
                log.warning("%s cannot be written (%s); its rows wait until it can.", self.path, error.strerror or error)
            self._failed = True

    def _complete(self, row: dict[str, Any]) -> None:
        """Write the first row after a resume, which may be the file's last one with more in it."""
        kept, self._kept = self._kept, []
        if int(kept[-1]["step"]) != row["step"]:
            self._waiting.append(row)
        elif any(str(value) != kept[-1].get(name) for name, value in row.items()):
            try:
                write_whole(self.path, _table([*kept[:-1], row], head=True))
            except OSError:
                self._kept, self._row = kept, row
                raise

    def _append(self, text: str) -> None:
        """Add text to the file, all of it or nothing."""
        data = text.encode()
        with open(self.path, "ab", buffering=0) as stream:
            size = stream.tell()
            try:
                if stream.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                os.ftruncate(stream.fileno(), size)
                raise

    def finalize(self, status: str) -> None:
        self.flush()


class EventFiles(TensorBoardLogger):
    """TensorBoard events in the run directory itself: each metric by step and, under tokens_seen/, by tokens.

    Under Custom Scalars both losses are in one chart; under HPARAMS stands what was typed, with the best validation loss.

    Args:
        first_step: the step that training begins with; what was written from there on is hidden.
        hparams: settings for the table of HPARAMS.
        sweep: whether these settings are those that a sweep tries; then they, and the losses, are the table's columns. Without
            that, TensorBoard makes columns of all settings and metrics that it finds in any run.
        history: rows of metrics.csv before first_step: TensorBoard hides by number, tokens as well as steps.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        first_step: int = 0,
        hparams: dict[str, Any] | None = None,
        sweep: bool = False,
        history: Sequence[dict[str, str]] = (),
    ) -> None:
        begun = first_step > 0 or any(run_dir.glob("events.out.tfevents.*"))
        purge: dict[str, Any] = {"purge_step": first_step} if begun else {}  # hides what was written after the checkpoint
        super().__init__(save_dir=run_dir, name="", version="", default_hp_metric=False, **purge)
        self._hparams = hparams or {}
        self._sweep = sweep
        self._history = history
        self._best = min((float(row["val/loss"]) for row in history if row.get("val/loss")), default=math.inf)
        self._begun = False
        self._failed = False

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Log metrics, of which one is tokens_seen, by step and by tokens."""
        self._best = min(self._best, metrics.get("val/loss", math.inf))
        best = {"val/best_loss": self._best} if "val/loss" in metrics else {}
        self._try(lambda: self._begin(step or 0))
        shown = {name: value for name, value in (metrics | best).items() if name != "epoch"}
        self._try(lambda: super(EventFiles, self).log_metrics(shown, step))
        if "tokens_seen" in metrics:  # else they come from a callback of the user's own
            self._try(lambda: self._by_tokens(metrics | best))

    def _begin(self, first_step: int) -> None:
        """Write what stands before the first metrics."""
        if self._begun:
            return
        self._begun = True
        self.experiment.add_custom_scalars(CHARTS)
        self._add_session(end=False)
        for row in self._history:
            numbers = {name: float(value) for name, value in row.items() if value}
            if numbers["tokens_seen"] >= first_step:
                self._by_tokens(numbers)

    def _add_session(self, *, end: bool) -> None:
        """Write the beginning or the end of a row of HPARAMS."""
        from torch.utils.tensorboard.summary import hparams

        columns, start, stop = hparams(self._hparams, dict.fromkeys(COMPARED, 0.0))
        for summary in [stop] if end else [columns, start] if self._sweep else [start]:
            self.experiment._get_file_writer().add_summary(summary)

    def _by_tokens(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            if name not in AXES:
                self.experiment.add_scalar(f"tokens_seen/{name}", value, int(metrics["tokens_seen"]))

    def add_text(self, name: str, text: str, *, step: int) -> None:
        """Show a text, in Markdown, beside a step."""
        self._try(lambda: self.experiment.add_text(name, text, global_step=step))

    def save(self) -> None:
        """Flush the events; the settings stand in the run's config.yaml."""
        self._try(lambda: self.experiment.flush())

    def finalize(self, status: str) -> None:
        if self._begun:
            self._try(lambda: self._add_session(end=True))
        self._try(lambda: super(EventFiles, self).finalize(status))

    def _try(self, write: Callable[[], object]) -> None:
        """Write; where that fails, say so once and leave TensorBoard alone from then on."""
        if self._failed:
            return
        try:
            write()
        except (OSError, ValueError) as error:  # Lightning makes a ValueError of whatever the writer raises
            self._failed = True
            reason = error.__cause__ or error.__context__ or error
            log.warning("TensorBoard's events cannot be written (%s); they end here.", reason)


def flush(loggers: Iterable[Logger]) -> None:
    """Bring everything logged so far to disk."""
    for logger in loggers:
        logger.flush() if isinstance(logger, MetricsFile) else logger.save()


def build_loggers(settings: LoggerSettings, *, run_dir: Path, first_step: int = 0) -> list[Logger]:
    """The loggers that the `logger` settings name; what they hold from first_step on is forgotten."""
    loggers: list[Logger] = []
    history: list[dict[str, str]] = []
    if settings.csv:
        loggers.append(metrics := MetricsFile(run_dir / "metrics.csv", first_step=first_step))
        history = metrics.kept
    if settings.tensorboard:
        record = read_record(run_dir)
        swept = record.get("swept")
        table = as_hparams(record.get("overrides", []) if swept is None else swept)
        loggers.append(EventFiles(run_dir, first_step=first_step, hparams=table, sweep=bool(swept), history=history))
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


def as_hparams(overrides: Sequence[str]) -> dict[str, Any]:
    """Typed settings as TensorBoard's table has them: numbers as numbers, everything else as text."""
    values: dict[str, Any] = {}
    for word in overrides:
        key, _, value = word.partition("=")
        try:
            values[key.lstrip("+")] = float(value)
        except ValueError:
            values[key.lstrip("+")] = value
    return values


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as stream:
        return [{name: value or "" for name, value in row.items() if name is not None} for row in csv.DictReader(stream)]


def _table(rows: list[dict[str, Any]], *, head: bool) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
    if head:
        writer.writeheader()
    writer.writerows({name: _short(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _short(value: Any) -> Any:
    return f"{value:.10g}" if isinstance(value, float) else value
