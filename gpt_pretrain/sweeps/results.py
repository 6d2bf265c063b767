"""The jobs of a sweep, ranked by their validation loss: on screen, as summary.csv, and as the command that repeats the best."""

from __future__ import annotations

import csv
import io
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt_pretrain.config.overrides import override_key, split_override
from gpt_pretrain.runs.metadata import COMPLETE, METADATA, read_metadata, stored_overrides
from gpt_pretrain.system.files import write_text
from gpt_pretrain.system.formatting import format_number, is_finite_number

SUMMARY, CHART = "summary.csv", "summary.png"


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Args:
        folder: its run directory, named after its settings.
        settings: what was typed or chosen for it, by key.
        state: as in `record`: "finished", "failed" ...
        record: all of its run.json.
    """

    folder: Path
    settings: dict[str, str]
    state: str
    record: dict[str, Any] = field(repr=False)

    @property
    def result(self) -> dict[str, Any]:
        """What came out: best_val_loss and others; empty before the end."""
        result = self.record.get("result")
        return result if isinstance(result, dict) else {}

    @property
    def val_loss(self) -> float:
        """The lowest validation loss in nats a token; infinite where there is none."""
        value = self.result.get("best_val_loss")
        return float(value) if is_finite_number(value) else math.inf


def read_sweep(folder: Path) -> list[Job]:
    """The jobs in a sweep's folder, the best first, those without a validation loss last."""
    jobs = []
    for path in sorted(folder.glob(f"*/{METADATA}")):
        record = read_metadata(path.parent)
        settings = dict(split_override(word) for word in stored_overrides(record))
        jobs.append(Job(path.parent, settings, str(record.get("state", "unknown")), record))
    return sorted(jobs, key=lambda job: (job.val_loss, job.folder.name))


def swept_keys(jobs: Sequence[Job]) -> list[str]:
    """The settings that are not the same in all jobs, and those that the sweep tries though only one job has begun."""
    keys = dict.fromkeys(key for job in jobs for key in job.settings)
    tried = _tried(jobs)
    return [key for key in keys if key in tried or len({job.settings.get(key) for job in jobs}) > 1]


def tried_in(folder: Path) -> set[str]:
    """The settings that a sweep in a folder has tried before."""
    return _tried(read_sweep(folder))


def best_job(jobs: Sequence[Job]) -> Job | None:
    """The best of the jobs that have come to their end; None where there is none."""
    return next((job for job in jobs if job.state in COMPLETE and job.val_loss < math.inf), None)


def ranking_table(jobs: Sequence[Job]) -> list[list[str]]:
    """The jobs as rows of text, the head first: rank, swept settings, losses, speed, state and folder."""
    keys = swept_keys(jobs)
    rows = [["rank", *keys, "val loss", "at step", "train loss", "memorised", "tokens/s", "seconds", "state", "folder"]]
    for job in jobs:
        result = job.result
        better = sum(other.val_loss < job.val_loss for other in jobs)
        rows.append(
            [
                "-" if job.val_loss == math.inf else str(better + 1),
                *(job.settings.get(key, "-") for key in keys),
                format_number(result.get("best_val_loss"), ".4f"),
                format_number(result.get("best_step"), "d"),
                format_number(result.get("train_loss"), ".4f"),
                _memorised(result),
                format_number(result.get("tokens_per_second"), ",.0f"),
                format_number(job.record.get("seconds"), ",.1f"),
                job.state,
                job.folder.name,
            ]
        )
    return rows


def aligned_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in columns, two spaces between them; numbers stand to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    right = [all(_is_number(row[column]) for row in rows[1:]) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if to_right else cell.ljust(width) for cell, width, to_right in zip(row, widths, right, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def best_command(jobs: Sequence[Job], *, script: str = "train.py") -> str | None:
    """The command that repeats the best job by itself; None where there is none."""
    found = best_job(jobs)
    return None if found is None else shlex.join(["python", script, *stored_overrides(found.record)])


def write_summary(jobs: Sequence[Job], folder: Path) -> None:
    """Write summary.csv: the table, with all digits."""
    keys = swept_keys(jobs)
    results = ["best_val_loss", "best_step", "val_loss", "train_loss", "tokens_seen", "tokens_per_second"]
    rows = [["rank", *keys, *results, "seconds", "state", "folder"]]
    for job in jobs:
        rank = "" if job.val_loss == math.inf else str(1 + sum(other.val_loss < job.val_loss for other in jobs))
        values = [_text(job.result.get(name)) for name in results]
        settings = [job.settings.get(key, "") for key in keys]
        rows.append([rank, *settings, *values, _text(job.record.get("seconds")), job.state, job.folder.name])
    write_summary_rows(rows, folder)


def write_summary_rows(rows: Sequence[Sequence[str]], folder: Path) -> None:
    """Write a table to summary.csv."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_text(folder / SUMMARY, text.getvalue())


def generations_table(jobs: Sequence[Job]) -> list[list[str]]:
    """Jobs that generated texts as rows, the head first: swept settings, measures, text."""
    keys = swept_keys(jobs)
    rows = [[*keys, "distinct-1", "distinct-2", "distinct-3", "memorised", "mean log p", "text"]]
    for job in jobs:
        measures = job.record.get("measures", {})
        numbers = [format_number(measures.get(f"distinct_{n}"), ".2f") for n in (1, 2, 3)]
        log_p = format_number(measures.get("mean_log_probability"), ".2f")
        texts = "\n\n".join(job.record.get("texts", [])) or f"({job.state})"
        rows.append([*(job.settings.get(key, "-") for key in keys), *numbers, _memorised(measures), log_p, texts])
    return rows


def _tried(jobs: Sequence[Job]) -> set[str]:
    words = [word for job in jobs if isinstance(swept := job.record.get("swept"), list) for word in swept]
    return {override_key(word) for word in words if isinstance(word, str)}


def _memorised(result: dict[str, Any]) -> str:
    length, new = result.get("run_length"), result.get("new_tokens")
    return "-" if length is None else f"{length} of {new}"


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ""))
    except ValueError:
        return text == "-"
    return True
