"""Read, rank and tabulate the jobs of a sweep, and find the command that repeats the best one."""

from __future__ import annotations

import csv
import io
import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from gpt_pretrain.config.free_text import plain_value
from gpt_pretrain.config.overrides import override_key, short_form, split_override
from gpt_pretrain.config.secrets import metadata_without_secrets
from gpt_pretrain.runs.folder import without_repetitions
from gpt_pretrain.runs.metadata import (
    COMPLETE,
    METADATA_FILE,
    OF_VALIDATION,
    metadata_section,
    metadata_texts,
    read_metadata,
    stored_overrides,
)
from gpt_pretrain.runs.next_commands import repeat_command
from gpt_pretrain.runs.reader import differing_names
from gpt_pretrain.sweeps.folder import SUMMARY
from gpt_pretrain.system.files import write_text
from gpt_pretrain.system.formatting import format_number, is_finite_number

RESULT_COLUMNS = (
    "best_val_loss",
    "best_bits_per_byte",
    "best_step",
    "val_loss",
    "train_loss",
    "tokens_seen",
    "tokens_per_second",
)

# Settings in which jobs may differ; a stranger's sweep could have any number. A table has few of them if it has many rows.
MAX_KEYS, MAX_CELLS, FEW_KEYS = 1000, 20_000, 20

NATS_PER_TOKEN, BITS_PER_BYTE = "nats per token", "bits per byte"


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Args:
        folder: The run's folder, named after its overrides.
        settings: The overrides of the job, by key.
        state: The state in the run metadata: "finished", "failed" and others.
        metadata: The run metadata.
        by_bits: Whether the sweep is ranked by bits per byte, since its jobs have different tokenizers.
    """

    folder: Path
    settings: dict[str, str]
    state: str
    metadata: dict[str, Any] = field(repr=False)
    by_bits: bool = False

    @property
    def result(self) -> dict[str, Any]:
        """The results in the run metadata; empty until the run ends."""
        return metadata_section(self.metadata, "result")

    @property
    def val_loss(self) -> float:
        """The lowest validation loss in nats per token; infinite if there is none."""
        return self._number("best_val_loss")

    @property
    def score(self) -> float:
        """The number by which the job is ranked: its bits per byte or its loss. It is infinite if unknown; lower is better."""
        return self._number("best_bits_per_byte") if self.by_bits else self.val_loss

    @property
    def unit(self) -> str:
        """The unit of the score."""
        return BITS_PER_BYTE if self.by_bits else NATS_PER_TOKEN

    def _number(self, name: str) -> float:
        value = self.result.get(name)
        return float(value) if is_finite_number(value) else math.inf


def read_sweep(folder: Path) -> list[Job]:
    """Return the jobs in a sweep's folder, the best first. Jobs without a score are last.

    The score is the validation loss, or bits per byte if jobs have different tokenizers. Links are left out: they lead to jobs of
    other sweeps, or repeat a job. Secrets that an earlier version recorded are cut out.
    """
    jobs = []
    files = (file for file in sorted(folder.glob(f"*/{METADATA_FILE}")) if not file.parent.is_symlink())
    for path in without_repetitions(files):
        metadata = metadata_without_secrets(read_metadata(path.parent))
        pairs = map(split_override, stored_overrides(metadata))
        settings = {key: plain_value(value) for key, value in pairs}
        jobs.append(Job(path.parent, settings, str(metadata.get("state", "unknown")), metadata))
    if has_different_tokenizers(jobs):
        in_bits = [replace(job, by_bits=True) for job in jobs]
        if all(job.score < math.inf for job in in_bits if job.val_loss < math.inf):  # earlier versions stored no bits per byte
            jobs = in_bits
    return sorted(jobs, key=lambda job: (job.score, job.folder.name))


def has_different_tokenizers(jobs: Sequence[Job]) -> bool:
    """Return whether jobs have different tokenizers. Their losses per token cannot be compared then."""
    return len({str(name) for job in jobs if (name := job.metadata.get("tokenizer"))}) > 1


def varies_tokenizer(keys: Iterable[str]) -> bool:
    """Return whether a setting among these chooses the tokenizer."""
    return any(key.partition(".")[0] == "tokenizer" for key in keys)


def search_by_bits(keys: Iterable[str], folder: Path) -> bool:
    """Return whether a search over these settings compares bits per byte. Jobs of earlier versions have no such number."""
    if not varies_tokenizer(keys):
        return False
    return all("best_bits_per_byte" in job.result for job in read_sweep(folder) if job.state in COMPLETE)


def different_parts(jobs: Sequence[Job]) -> list[str]:
    """Return the settings by which jobs are validated on different parts of the text."""
    differing = set(differing_names([job.settings for job in jobs], also=varied_keys(jobs)))
    return [key for key in OF_VALIDATION if key in differing]


def swept_keys(jobs: Sequence[Job]) -> list[str]:
    """Return the settings that the sweep varies, or that differ between its jobs."""
    found = differing_names([job.settings for job in jobs], also=varied_keys(jobs))
    return list(islice(found, max(FEW_KEYS, min(MAX_KEYS, MAX_CELLS // max(1, len(jobs))))))


def varied_keys(jobs: Sequence[Job]) -> set[str]:
    """Return the settings that the sweep varied when the jobs were started."""
    return {override_key(short_form(override)) for job in jobs for override in metadata_texts(job.metadata, "swept")}


def best_job(jobs: Sequence[Job]) -> Job | None:
    """Return the best complete job, or None if no complete job has a validation loss."""
    return next((job for job in jobs if job.state in COMPLETE and job.score < math.inf), None)


def best_command(jobs: Sequence[Job], *, script: str = "train.py") -> str | None:
    """Return the command that repeats the best job outside the sweep.

    Return None if there is no best job, or if its overrides could run code.
    """
    best = best_job(jobs)
    return None if best is None else repeat_command(stored_overrides(best.metadata), script=script)


def ranking_rows(jobs: Sequence[Job]) -> list[list[str]]:
    """Return the ranking as rows of text, the heading first."""
    keys = swept_keys(jobs)
    by_bits = any(job.by_bits for job in jobs)
    rows = [
        [
            "rank",
            *keys,
            *(["bits per byte"] * by_bits),
            "val loss",
            "at step",
            "train loss",
            "memorized",
            "tokens/s",
            "seconds",
            "state",
            "folder",
        ]
    ]
    for job, rank in zip(jobs, _ranks(jobs), strict=True):
        result = job.result
        rows.append(
            [
                rank or "-",
                *(job.settings.get(key, "-") for key in keys),
                *([format_number(result.get("best_bits_per_byte"), ".4f")] * by_bits),
                format_number(result.get("best_val_loss"), ".4f"),
                format_number(result.get("best_step"), "d"),
                format_number(result.get("train_loss"), ".4f"),
                _memorized(result),
                format_number(result.get("tokens_per_second"), ",.0f"),
                format_number(job.metadata.get("seconds"), ",.1f"),
                job.state,
                job.folder.name,
            ]
        )
    return rows


def generation_rows(jobs: Sequence[Job]) -> list[list[str]]:
    """Return rows of text, the heading first: the settings, the measures and the texts of generate.py's jobs."""
    keys = swept_keys(jobs)
    rows = [[*keys, "distinct-1", "distinct-2", "distinct-3", "memorized", "mean log p", "text"]]
    for job in jobs:
        measures = metadata_section(job.metadata, "measures")
        distinct = [format_number(measures.get(f"distinct_{n}"), ".2f") for n in (1, 2, 3)]
        log_p = format_number(measures.get("mean_log_probability"), ".2f")
        texts = "\n\n".join(metadata_texts(job.metadata, "texts")) or f"({job.state})"
        rows.append([*(job.settings.get(key, "-") for key in keys), *distinct, _memorized(measures), log_p, texts])
    return rows


def write_ranking(jobs: Sequence[Job], folder: Path) -> None:
    """Write the ranking to summary.csv, with all digits."""
    keys = swept_keys(jobs)
    rows = [["rank", *keys, *RESULT_COLUMNS, "seconds", "state", "folder"]]
    for job, rank in zip(jobs, _ranks(jobs), strict=True):
        settings = [job.settings.get(key, "") for key in keys]
        values = [_text(job.result.get(name)) for name in RESULT_COLUMNS]
        rows.append([rank, *settings, *values, _text(job.metadata.get("seconds")), job.state, job.folder.name])
    _write_rows(rows, folder)


def write_generations(rows: Sequence[Sequence[str]], folder: Path) -> None:
    """Write the rows of `generation_rows` to summary.csv."""
    heading, *body = rows
    columns = ["memorised" if name == "memorized" else name for name in heading]  # the column's name since version 0.1.0
    _write_rows([columns, *body], folder)


def _write_rows(rows: Sequence[Sequence[str]], folder: Path) -> None:
    """Write rows of text to summary.csv in a form in which spreadsheet programs find no formulas."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([_escape_formula(cell) for cell in row] for row in rows)
    write_text(folder / SUMMARY, text.getvalue())


def _escape_formula(cell: str) -> str:
    """Put an apostrophe before a cell that a spreadsheet program would run as a formula. A stranger's job could have one."""
    if cell[:1] not in ("=", "+", "-", "@", "\t", "\r") or cell == "-":
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def _ranks(jobs: Sequence[Job]) -> list[str]:
    """Return the rank of each job, counted from 1. It is empty for a job without a score."""
    scores = [job.score for job in jobs]
    ordered = sorted(scores)
    return ["" if score == math.inf else str(1 + bisect_left(ordered, score)) for score in scores]


def _memorized(result: dict[str, Any]) -> str:
    length, new = result.get("run_length"), result.get("new_tokens")
    return "-" if length is None else f"{length} of {new}"


def _text(value: Any) -> str:
    return "" if value is None else str(value)
