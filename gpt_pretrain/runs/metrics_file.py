"""The logger that writes metrics.csv, with one row per step. A killed process leaves no incomplete row behind."""

from __future__ import annotations

import csv
import errno
import io
import itertools
import logging
import os
import shutil
from argparse import Namespace
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from gpt_pretrain.runs.metrics_rows import AXES, History, is_evaluated, read_heading, read_rows
from gpt_pretrain.system.files import open_for_append, replacing

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

UNREADABLE = "metrics-unreadable{}.csv"
MAX_STEP_DIGITS = 16
# A row has a comma for each column, and some numbers. A stranger's file may have far shorter rows below a long heading.
FREE_ROWS, BYTES_PER_ROW = 1000, 16

log = logging.getLogger(__name__)


class MetricsFile(Logger):
    """A Lightning logger for a CSV file with fixed columns. A row is on disk as soon as the next one begins.

    Args:
        path: The file.
        first_step: The step at which training starts. Earlier rows in the file are kept, later ones are removed.
        evaluated: Columns of held-out texts and tasks, in addition to the columns in the file.

    Attributes:
        history: The metrics of the kept rows.
    """

    def __init__(self, path: Path, *, first_step: int = 0, evaluated: Sequence[str] = ()) -> None:
        super().__init__()
        self.path = path
        self._columns = [*COLUMNS, *evaluated]
        self._row: dict[str, Any] = {}
        self._unwritten: list[dict[str, Any]] = []
        self._last: dict[str, str] | None = None  # the kept row before the first step, until a row is written
        self._failed = False
        self._unreadable = 0
        self.history = History()
        if path.exists():
            self._remove_later_rows(first_step)

    def _remove_later_rows(self, first_step: int) -> None:
        size, heading = self.path.stat().st_size, read_heading(self.path) if first_step else []
        earlier = dict.fromkeys(filter(is_evaluated, heading))
        self._columns += [name for name in earlier if name not in self._columns]
        last: dict[str, str] = {}
        with (
            replacing(self.path) as scratch,
            open(scratch, "w", encoding="utf-8", errors="backslashreplace", newline="") as stream,
        ):
            writer = csv.DictWriter(stream, self._columns, extrasaction="ignore")
            writer.writeheader()
            for last in islice(self._earlier_rows(first_step), FREE_ROWS + size // (len(COLUMNS) + len(earlier))):
                writer.writerow(last)
            if self._unreadable > 1:  # A power cut may leave a single damaged row, which is not worth a copy.
                self._keep_unreadable()
        # More metrics of the step before the first one may follow. They belong to its row.
        if last and int(last["step"]) == first_step - 1:
            self._last, self._row = last, {**last, "step": first_step - 1}
            self._size_before_last = self.path.stat().st_size - len(self._to_csv([last], heading=False).encode())

    def _earlier_rows(self, first_step: int) -> Iterator[dict[str, str]]:
        """Yield the rows of the file before the first step, and add them to the history."""
        limit = FREE_ROWS + self.path.stat().st_size // BYTES_PER_ROW
        for row in islice(read_rows(self.path) if first_step else (), limit):
            known = {name: value for name, value in row.items() if name in COLUMNS or is_evaluated(name)}
            numbers = _read_numbers(known)
            self._unreadable += numbers is None
            if numbers is not None and int(known["step"]) < first_step:
                self.history.add(numbers)
                yield known

    def _keep_unreadable(self) -> None:
        """Copy the file before it is replaced."""
        names = (UNREADABLE.format(f"-{number}" if number > 1 else "") for number in itertools.count(1))
        copies = map(self.path.with_name, names)
        copy = next(one for one in copies if not one.is_file() or one.is_symlink())  # earlier copies are kept
        with replacing(copy) as scratch:
            shutil.copyfile(self.path, scratch)
        log.warning(
            "%d rows of %s cannot be read; another program may have saved them in its own way. They are kept in %s.",
            *(self._unreadable, self.path, copy),
        )

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
        if not self._row or self._last is None:
            return
        self._row |= dict.fromkeys(columns, "")
        if not any(value for name, value in self._row.items() if name not in AXES):
            self._replace_last("")
            self._last, self._row = None, {}

    def save(self) -> None:
        """Do nothing: Lightning calls this method while the row may still be incomplete."""

    def flush(self) -> None:
        """Write the current row."""
        row, self._row = self._row, {}
        if row and self._is_last(row) and all(str(value) == (self._last or {}).get(name) for name, value in row.items()):
            self._last = None  # it stays as it is
        elif row:
            self._unwritten.append(row)
        if not self._unwritten:
            return
        try:
            self._write()
        except OSError as error:
            if not self._failed:
                log.warning("%s cannot be written (%s). Its rows are kept in memory.", self.path, error.strerror or error)
            self._failed = True

    def _write(self) -> None:
        """Write the rows that are not in the file. The first of them may be the file's last row, with more metrics."""
        exists = self.path.exists()
        text = self._to_csv(self._unwritten, heading=not exists)
        if exists and self._is_last(self._unwritten[0]):
            self._replace_last(text)
        else:
            self._append(text)
        self._unwritten, self._last = [], None

    def _is_last(self, row: dict[str, Any]) -> bool:
        return self._last is not None and int(self._last["step"]) == row["step"]

    def _replace_last(self, text: str) -> None:
        """Write the file again, with another text for the last kept row."""
        with replacing(self.path) as scratch:
            shutil.copyfile(self.path, scratch)
            with open(scratch, "rb+") as stream:
                stream.truncate(self._size_before_last)
                stream.seek(0, os.SEEK_END)
                stream.write(text.encode())

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


def _read_numbers(row: dict[str, str]) -> dict[str, float] | None:
    """Return the numbers of a row by column, or None if it has no step or anything but numbers. Infinity and NaN are allowed."""
    try:
        numbers = {name: float(value) for name, value in row.items() if value}
    except ValueError:
        return None
    step = row.get("step", "")
    counts = all(0 <= numbers.get(name, 0) < 10**MAX_STEP_DIGITS for name in ("epoch", "tokens_seen"))
    return numbers if counts and step.isascii() and step.isdigit() and len(step) < MAX_STEP_DIGITS else None


def _shorten(value: Any) -> Any:
    return f"{value:.10g}" if isinstance(value, float) else value
