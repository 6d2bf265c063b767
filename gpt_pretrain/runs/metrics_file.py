"""metrics.csv: one row a step, safe against whatever may end the process."""

from __future__ import annotations

import csv
import errno
import io
import logging
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from gpt_pretrain.system.files import write_text

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
            write_text(path, _table(self._kept, head=True))
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
            write_text(self.path, _table(self._kept, head=True))

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
                write_text(self.path, _table([*kept[:-1], row], head=True))
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
