"""The run metadata in run.json: the start of a run, its data and machine, its end, and its results."""

from __future__ import annotations

import logging
import os
import platform
import signal
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import gpt_pretrain
from gpt_pretrain.config.overrides import override_key, short_form
from gpt_pretrain.errors import AlreadyCompleteError, UserError
from gpt_pretrain.system.checkout import git_revision
from gpt_pretrain.system.files import write_json
from gpt_pretrain.system.formatting import is_finite_number, short_message
from gpt_pretrain.system.json_files import parse_json
from gpt_pretrain.system.locks import lock, try_lock
from gpt_pretrain.system.reading import DamagedFileError, read_bytes
from gpt_pretrain.system.resources import cpu_name

METADATA_FILE, LOCK_FILE = "run.json", ".lock"
RUNNING, FINISHED, FAILED, INTERRUPTED, PRUNED = "running", "finished", "failed", "interrupted", "pruned"
RUNS_ALREADY = "{}: another process is running this job. Wait until it ends, or stop it."
COMPLETE = (FINISHED, PRUNED)  # states with nothing left to do
MAX_LISTED = 1000  # entries of a list of texts; there are fewer than 200 settings to override
MAX_METADATA_VALUES = 100_000  # A run has about 200 values. Each gets a line when the metadata is written again.
# Settings that decide which part of the held-out text a validation reads.
OF_VALIDATION = ("data.train_ratio", "data.val_tokens", "trainer.limit_val_batches")
OF_SHARDS = ("shards", "mixture")  # options of the group data that may read token shards
PACKAGES = ("torch", "lightning", "hydra-core", "omegaconf", "tiktoken", "numpy")

log = logging.getLogger(__name__)


def read_metadata(folder: Path) -> dict[str, Any]:
    """Return the metadata in a run's folder, or an empty dict if the file is missing or damaged."""
    try:
        return parse_json(read_bytes(folder / METADATA_FILE, within=folder), max_values=MAX_METADATA_VALUES)
    except (OSError, DamagedFileError):
        return {}


def metadata_section(metadata: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a section of run metadata, such as "result", or an empty dict if it is missing or not a mapping."""
    value = metadata.get(name)
    return value if isinstance(value, dict) else {}


def update_metadata(folder: Path, **fields: Any) -> None:
    """Add or replace fields of a run's metadata."""
    _write(folder, read_metadata(folder) | fields)


@contextmanager
def track_run(folder: Path, *, command: str, overrides: Sequence[str], swept: Sequence[str] | None = None) -> Iterator[None]:
    """Keep the state of a run up to date while the block runs. A killed process leaves the state "running".

    Args:
        folder: The folder of the run or of the job.
        command: The command that started it. A resumed run keeps its first command.
        overrides: The typed overrides, `key=value`. Those of a resumed run are added to the earlier ones.
        swept: The overrides that the surrounding sweep varies; None outside a sweep.

    Raises:
        UserError: If another process is running in this folder.
    """
    with lock(folder / LOCK_FILE, problem=RUNS_ALREADY.format(folder)):
        before, start = read_metadata(folder), time.monotonic()
        by_key = {override_key(override): override for override in [*stored_overrides(before), *overrides]}
        update_metadata(
            folder,
            state=RUNNING,
            error=None,
            command=before.get("command", command),
            overrides=list(by_key.values()),
            swept=None if swept is None else list(swept),
            started=before.get("started", _now()),
            ended=None,
        )
        try:
            yield
        except AlreadyCompleteError:  # Nothing was trained, so this attempt's settings and time do not count.
            _write(folder, before | {"state": FINISHED, "error": None, "ended": before.get("ended") or _now()})
            raise
        except BaseException as error:
            if _was_refused(error, before, folder):
                _write(folder, before)
            else:
                state = INTERRUPTED if was_interrupted(error) else FAILED
                _note_end(folder, state, before, time.monotonic() - start, error=_describe_end(error))
            raise
        state = PRUNED if read_metadata(folder).get("state") == PRUNED else FINISHED
        _note_end(folder, state, before, time.monotonic() - start)


def metadata_texts(metadata: dict[str, Any], name: str) -> list[str]:
    """Return the first texts of a list in run metadata, such as "swept". It is empty if it is missing or not a list."""
    value = metadata.get(name)
    return [text for text in value[:MAX_LISTED] if isinstance(text, str)] if isinstance(value, list) else []


def stored_overrides(metadata: dict[str, Any]) -> list[str]:
    """Return the typed overrides of a run, or an empty list if the metadata has none."""
    return [short_form(override) for override in metadata_texts(metadata, "overrides")]


def has_different_texts(runs: Iterable[dict[str, Any]]) -> bool:
    """Return whether runs are validated on different texts, some of which are easier to predict than others.

    The checksum of token shards depends on their vocabulary, so only shards with the same vocabulary are compared by it. Shards
    with different vocabularies are compared by the size of their text.

    Args:
        runs: The metadata of each run.
    """
    checksums, sizes = defaultdict[str, set[str]](set), set[tuple[object, object]]()
    for metadata in runs:
        data = metadata_section(metadata, "data")
        is_of_shards = data.get("name") in OF_SHARDS
        if sha256 := data.get("sha256"):
            checksums[f"shards {metadata.get('tokenizer')}" if is_of_shards else ""].add(str(sha256))
        size = data.get("documents"), data.get("bytes")
        if is_of_shards and all(map(is_finite_number, size)):
            sizes.add(size)
    is_mixed = "" in checksums and len(checksums) > 1  # A text and shards of it are divided in different ways.
    return is_mixed or len(sizes) > 1 or any(len(found) > 1 for found in checksums.values())


def was_interrupted(error: BaseException) -> bool:
    """Return whether an exception means Ctrl-C or a signal that ended the process."""
    return isinstance(error, KeyboardInterrupt) or (
        isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128
    )


def is_running(folder: Path) -> bool:
    """Return whether another process, on this machine or one that shares its disk, is running in a folder."""
    with try_lock(folder / LOCK_FILE) as held:
        return not held


def describe_environment() -> dict[str, Any]:
    """Return the versions of the program and its libraries, and the machine, as fields of the metadata."""
    from importlib.metadata import version  # --help does not need it

    return {
        # importlib.metadata does not know a checkout that is not installed.
        "program": {"version": gpt_pretrain.__version__, "git": git_revision()},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "machine": {"system": f"{platform.system()} {platform.machine()}", "cpu": cpu_name(), "cores": os.cpu_count()},
    }


def _was_refused(error: BaseException, before: dict[str, Any], folder: Path) -> bool:
    """Return whether the settings of a new attempt were rejected before the existing run changed."""
    unchanged = read_metadata(folder).get("result") == before.get("result")
    return isinstance(error, UserError) and unchanged and before.get("state") not in (None, FAILED)


def _note_end(folder: Path, state: str, before: dict[str, Any], seconds: float, *, error: str | None = None) -> None:
    earlier = before.get("seconds")
    total = round((earlier if is_finite_number(earlier) else 0.0) + seconds, 3)
    update_metadata(folder, state=state, error=error, ended=_now(), seconds=total)


def _describe_end(error: BaseException) -> str:
    """Describe the exception that ended a run."""
    if was_interrupted(error):
        signum = int(error.code or 0) - 128 if isinstance(error, SystemExit) else signal.SIGINT
        return f"stopped by {'Ctrl-C' if signum == signal.SIGINT else signal.Signals(signum).name}"
    if isinstance(error, SystemExit):
        return f"ended with exit code {error.code}"
    return short_message(str(error)).strip() or type(error).__name__


def _write(folder: Path, metadata: dict[str, Any]) -> None:
    try:
        write_json(folder / METADATA_FILE, metadata)
    except OSError as error:
        _warn_not_written(folder / METADATA_FILE, error.strerror or str(error))


@cache
def _warn_not_written(file: Path, reason: str) -> None:
    """Log a warning, once for each file and reason."""
    log.warning("%s cannot be written: %s.", file, reason)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
