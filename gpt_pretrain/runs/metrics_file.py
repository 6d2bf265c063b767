"""The logger that writes metrics.csv, with one row per step. A killed process leaves no incomplete row behind."""

from __future__ import annotations

import csv
import errno
import io
import logging
import os
from argparse import Namespace
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from gpt_pretrain.runs.metrics_rows import EVALUATED, read_rows
from gpt_pretrain.system.files import open_for_append, write_text

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
    "val/ema_loss",
)

MAX_STEP_DIGITS = 16
# A row has a comma for each column, and some numbers. A stranger's file may have far shorter rows below a long heading.
FREE_ROWS, BYTES_PER_ROW = 1000, 16

log = logging.getLogger(__name__)


class MetricsFile(Logger):
    """A Lightning logger for a CSV file with fixed columns. A row is on disk as soon as the next one begins.

    Args:
        path: The file.
        first_step: The step at which training starts. Earlier rows in the file are kept, later ones are removed.
        evaluated: Columns of held-out texts and tasks; those that the file has are kept.
    """

    def __init__(self, path: Path, *, first_step: int = 0, evaluated: Sequence[str] = ()) -> None:
        super().__init__()
        self.path = path
        self._columns = [*COLUMNS, *evaluated]
        self._row: dict[str, Any] = {}
        self._unwritten: list[dict[str, Any]] = []
        self._kept: list[dict[str, str]] = []  # Rows of the file, until the first new row is written.
        self._failed = False
        if path.exists():
            size = path.stat().st_size
            found = [_known_columns(row) for row in islice(read_rows(path), FREE_ROWS + size // BYTES_PER_ROW)]
            self._kept = [row for row in found if _is_row(row) and int(row["step"]) < first_step]
            earlier = dict.fromkeys(name for row in self._kept for name in row if name.startswith(EVALUATED))
            self._columns += [name for name in earlier if name not in self._columns]
            self._kept = self._kept[: FREE_ROWS + size // (len(COLUMNS) + len(earlier))]
            write_text(path, self._to_csv(self._kept, heading=True))
            # More metrics of the step before the first one may follow; they belong in its row.
            if self._kept and int(self._kept[-1]["step"]) == first_step - 1:
                self._row = {**self._kept[-1], "step": first_step - 1}

    @property
    def kept(self) -> list[dict[str, str]]:
        """The rows of the file before the first step."""
        return list(self._kept)

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the settings are in the run's config.yaml."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add metrics to the row of a step."""
        if self._row.get("step") != step:
            self.flush()
            self._row = {"step": step}
        self._row.update(metrics)

    def forget(self, columns: list[str]) -> None:
        """Clear columns in the kept row of the step before the first one, and remove the row if no metric is left in it."""
        if not self._row or not self._kept:
            return
        self._row |= dict.fromkeys(columns, "")
        if not any(value for name, value in self._row.items() if name not in ("step", "epoch", "tokens_seen")):
            self._kept, self._row = self._kept[:-1], {}
            write_text(self.path, self._to_csv(self._kept, heading=True))

    def save(self) -> None:
        """Do nothing: Lightning calls this method while the row may still be incomplete."""

    def flush(self) -> None:
        """Write the current row."""
        row, self._row = self._row, {}
        try:
            if self._kept and row:
                self._complete(row)
            elif row:
                self._unwritten.append(row)
            if not self._unwritten:
                return
            self._append(self._to_csv(self._unwritten, heading=not self.path.exists()))
            self._unwritten = []
        except OSError as error:
            if not self._failed:
                log.warning("%s cannot be written (%s). Its rows are kept in memory.", self.path, error.strerror or error)
            self._failed = True

    def _complete(self, row: dict[str, Any]) -> None:
        """Write the first row after a resume, which may be the last row of the file with more metrics."""
        kept, self._kept = self._kept, []
        if int(kept[-1]["step"]) != row["step"]:
            self._unwritten.append(row)
        elif any(str(value) != kept[-1].get(name) for name, value in row.items()):
            try:
                write_text(self.path, self._to_csv([*kept[:-1], row], heading=True))
            except OSError:
                self._kept, self._row = kept, row
                raise

    def _to_csv(self, rows: list[dict[str, Any]], *, heading: bool) -> str:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns, extrasaction="ignore")
        if heading:
            writer.writeheader()
        writer.writerows({name: _shorten(value) for name, value in row.items()} for row in rows)
        return text.getvalue()

    def _append(self, text: str) -> None:
        """Append all of a text to the file, or nothing."""
        data = text.encode()
        with open_for_append(self.path, buffering=0) as stream:
            size = stream.tell()
            try:
                if stream.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                os.ftruncate(stream.fileno(), size)
                raise

    def finalize(self, status: str) -> None:
        self.flush()


def _known_columns(row: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in row.items() if name in COLUMNS or name.startswith(EVALUATED)}


def _is_row(row: dict[str, str]) -> bool:
    """Return whether a row has a step and holds only numbers; a loss or a perplexity may be infinite or NaN."""
    try:
        numbers = {name: float(value) for name, value in row.items() if value}
    except ValueError:
        return False
    step = row.get("step", "")
    counts = all(0 <= numbers.get(name, 0) < 10**MAX_STEP_DIGITS for name in ("epoch", "tokens_seen"))
    return bool(counts and numbers and step.isascii() and step.isdigit() and len(step) < MAX_STEP_DIGITS)


def _shorten(value: Any) -> Any:
    return f"{value:.10g}" if isinstance(value, float) else value
