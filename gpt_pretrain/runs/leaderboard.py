"""Rank runs on the same text by bits per byte on the same held-out part. Anybody may have trained them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import count, islice
from pathlib import Path
from typing import Any

from gpt_pretrain.config.overrides import split_override
from gpt_pretrain.config.secrets import metadata_without_secrets
from gpt_pretrain.runs.folder import METRICS, without_shared_files
from gpt_pretrain.runs.metadata import METADATA_FILE, metadata_section, read_metadata, stored_overrides
from gpt_pretrain.runs.reader import CONFIG, lowest_bits_per_byte, read_metrics, read_settings
from gpt_pretrain.system.formatting import is_finite_number
from gpt_pretrain.system.resources import cpu_name

LEVELS = 3  # levels of folders to search for runs, such as outputs/multirun/SWEEP/JOB
MAX_RUNS = 10_000
MAX_TEXT = 200  # characters of a text in an entry
MAX_SETTINGS = 100
MAX_AMOUNT = 1e18
PERSONAL = (
    *("start_context", "callbacks.grid", "callbacks.grid.prompts"),
    *("data.cache_dir", "run_dir", "hydra.run.dir", "hydra.sweep.dir", "resume", "sweep_resume"),
)
PATH_MARKS = ("/", "\\", "~", "@")


@dataclass(frozen=True)
class Entry:
    """A run on a leaderboard. Everything in it may be published: it contains no paths, and nothing of the text.

    Args:
        run: The name of its folder.
        bits_per_byte: The lowest value of its validations.
        text_sha256: The hash of the whole text; empty if the run recorded none.
        text_name: The name of the file or the folder with the text.
        text_characters: Characters of the whole text.
        train_ratio: Share of the text to train on. The rest is the held-out part. None if shards bring their own validation set.
        validated: Share of the held-out part that the validations read.
        seconds: Duration, from the start of the program to its end.
        budget: The run's budget.
        tokens_seen: Tokens that it was trained on.
        machine: Processor, cores and device.
        init_from: The weights that it started from. They may have seen the held-out part.
        settings: The typed overrides, without paths.
        source: The results file of the entry; empty for a run on this machine's disk.
    """

    run: str
    bits_per_byte: float
    text_sha256: str = ""
    text_name: str = ""
    text_characters: int | None = None
    train_ratio: float | None = None
    validated: float | None = None
    seconds: float | None = None
    budget: str | None = None
    parameters: int | None = None
    tokens_seen: int | None = None
    tokenizer: str | None = None
    machine: str = ""
    started: str = ""
    state: str = ""
    version: str = ""
    init_from: str | None = None
    settings: tuple[str, ...] = ()
    source: str = ""

    @property
    def held_out_part(self) -> tuple[str, str, float | None]:
        """The text and its held-out part. The losses of runs with the same value can be compared."""
        return self.text_sha256, "" if self.text_sha256 else self.text_name, self.train_ratio

    @property
    def identity(self) -> tuple[object, ...]:
        """The fields that are equal in two entries of one run."""
        return self.held_out_part, self.run, self.started, round(self.bits_per_byte, 6)


def find_entries(folder: Path) -> tuple[list[Entry], int]:
    """Return the entries of the runs in a folder, and the number of trained runs that have no bits per byte.

    Links among the folders are not followed: a stranger's could lead to the whole disk. Of several runs that share a file by
    links, only the first counts, so that no file is read many times.
    """
    entries, unknown = list[Entry](), 0
    runs = without_shared_files(sorted(_run_folders(folder)), (METADATA_FILE, CONFIG, METRICS))
    for run in islice(runs, MAX_RUNS):
        metadata = metadata_without_secrets(read_metadata(run))
        if (entry := run_entry(run, metadata)) is not None:
            entries.append(entry)
        elif is_finite_number(metadata_section(metadata, "result").get("best_val_loss")):
            unknown += 1
    return entries, unknown


def _run_folders(folder: Path) -> Iterator[Path]:
    """Yield the folder and the folders in it that contain run metadata."""
    for parent, folders, names in os.walk(folder):
        if len(Path(parent).relative_to(folder).parts) == LEVELS:
            folders.clear()
        if METADATA_FILE in names:
            yield Path(parent)


def run_entry(folder: Path, metadata: dict[str, Any]) -> Entry | None:
    """Return the entry of a run; None if its bits per byte are unknown.

    Args:
        metadata: The run metadata, without secrets.
    """
    result, data = metadata_section(metadata, "result"), metadata_section(metadata, "data")
    bits = result.get("best_bits_per_byte")
    if not is_finite_number(bits):  # a run of an earlier version, or a killed run
        bits = lowest_bits_per_byte(read_metrics(folder / METRICS))
    if bits is None or not 0 < bits < 100:
        return None
    _, config = read_settings(folder)
    return Entry(
        run=_text(folder.resolve().name),
        bits_per_byte=float(bits),
        text_sha256=_text(data.get("sha256")),
        text_name=_text(_text_name(config)),
        text_characters=_whole(data.get("characters")),
        train_ratio=None if data.get("own_validation_set") is True else _share(config.get("data.train_ratio")),
        validated=_validated_share(config, data),
        seconds=_number(metadata.get("seconds")),
        budget=_known(config.get("budget")),
        parameters=_whole(metadata_section(metadata, "model").get("parameters")),
        tokens_seen=_whole(result.get("tokens_seen")),
        tokenizer=_known(Path(str(metadata.get("tokenizer") or "")).name),
        machine=machine_name(metadata_section(metadata, "machine")),
        started=_moment(metadata.get("started")),
        state=_text(metadata.get("state")),
        version=_text(metadata_section(metadata, "program").get("version")),
        init_from=_known(Path(config.get("init_from", "")).name),
        settings=_shared_settings(metadata),
    )


def machine_name(machine: Mapping[str, Any]) -> str:
    """Return processor, cores and device of a machine, without unknown ones."""
    cores, device = machine.get("cores"), machine.get("device")
    parts = [machine.get("cpu"), f"{cores} cores" if cores else None, device if device != "cpu" else None]
    return _text(", ".join(str(part) for part in parts if part))


def this_machine() -> str:
    """Return the beginning of this machine's name. A run's device may follow it."""
    return machine_name({"cpu": cpu_name(), "cores": os.cpu_count()})


def merge(entries: Iterable[Entry]) -> list[Entry]:
    """Return entries without repetitions. The first entry of each run is kept."""
    found: dict[tuple[object, ...], Entry] = {}
    for entry in entries:
        found.setdefault(entry.identity, entry)
    return list(found.values())


def group_by_text(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Return the entries of each held-out part, the best first.

    Texts of runs on this machine's disk come before texts that occur only in results files. The text with the latest run comes
    first.
    """
    groups: dict[tuple[str, str, float | None], list[Entry]] = {}
    for entry in sorted(entries, key=lambda one: (not one.source, one.started), reverse=True):
        groups.setdefault(entry.held_out_part, []).append(entry)
    return [sorted(group, key=lambda one: (one.bits_per_byte, one.seconds or 0.0, one.run)) for group in groups.values()]


def letter_machines(entries: Iterable[Entry]) -> dict[str, str]:
    """Return a short name for each machine, A for the first."""
    names = (chr(ord("A") + n) if n < 26 else f"M{n + 1}" for n in count())
    return {machine: next(names) for machine in dict.fromkeys(entry.machine for entry in entries)}


def _validated_share(config: Mapping[str, str], data: Mapping[str, Any]) -> float | None:
    """Return the share of the held-out part that a validation reads; None if it is unknown."""
    held_out, windows = data.get("val_tokens"), data.get("val_windows")
    limit, batch = _number(config.get("trainer.limit_val_batches")), _number(config.get("data.batch_size"))
    if _known(config.get("data.val_tokens")) is None and limit is None:
        return 1.0
    context = _number(config.get("model.context_length"))
    if not (is_finite_number(held_out) and is_finite_number(windows) and context and held_out > 0):
        return None
    if limit is not None and batch is not None:
        windows = min(windows, limit * batch)
    return min(1.0, windows * context / held_out)


def _text_name(config: Mapping[str, str]) -> str:
    path = _known(config.get("data.path"))
    return config.get("data.name", "") if path is None else Path(path.rstrip("/")).name


def _shared_settings(metadata: dict[str, Any]) -> tuple[str, ...]:
    """Return the typed overrides, without overrides that contain a location on this machine or somebody's words."""
    kept = []
    for override in stored_overrides(metadata):
        key, value = split_override(override)
        if key not in (*PERSONAL, "data.path") and not any(mark in value for mark in PATH_MARKS) and len(override) <= MAX_TEXT:
            kept.append(override)
    return tuple(kept[:MAX_SETTINGS])


def _text(value: object) -> str:
    return str(value or "")[:MAX_TEXT]


def _known(value: str | None) -> str | None:
    return None if value in (None, "", "null", "None") else _text(value)


def _number(value: object) -> float | None:
    try:
        number = float(value) if isinstance(value, str | int | float) else None
    except ValueError:
        return None
    return number if is_finite_number(number) and 0 <= number < MAX_AMOUNT else None


def _share(value: object) -> float | None:
    number = _number(value)
    return number if number is None or number <= 1 else None


def _moment(value: object) -> str:
    try:
        return datetime.fromisoformat(str(value)).isoformat()
    except ValueError:
        return ""


def _whole(value: object) -> int | None:
    number = _number(value)
    return None if number is None else int(number)
