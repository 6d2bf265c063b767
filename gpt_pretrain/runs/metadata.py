"""What a run notes about itself in run.json: how it was started, on what, how it ended, and what came out."""

from __future__ import annotations

import json
import logging
import os
import platform
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpt_pretrain.config.overrides import override_key
from gpt_pretrain.errors import AlreadyCompleteError, UserError
from gpt_pretrain.system.checkout import git_revision
from gpt_pretrain.system.files import write_json
from gpt_pretrain.system.locks import lock, try_lock

METADATA, LOCK = "run.json", ".lock"
RUNNING, FINISHED, FAILED, INTERRUPTED, PRUNED = "running", "finished", "failed", "interrupted", "pruned"
_BUSY = "{}: another process is at work on this run. Wait for its end, or stop it first."
COMPLETE = (FINISHED, PRUNED)  # nothing is left to do
PACKAGES = ("torch", "lightning", "hydra-core", "omegaconf", "tiktoken", "numpy")

log = logging.getLogger(__name__)


def read_metadata(folder: Path) -> dict[str, Any]:
    """The record in a run's folder; empty if there is none, or it cannot be read."""
    try:
        content = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def update_metadata(folder: Path, **fields: Any) -> None:
    """Add fields to a run's record, or change them."""
    _write(folder, read_metadata(folder) | fields)


@contextmanager
def recorded(folder: Path, *, command: str, overrides: Sequence[str], swept: Sequence[str] | None = None) -> Iterator[None]:
    """Note how the work inside begins and ends; a killed process leaves the state "running" behind.

    Args:
        folder: the run's, or the job's.
        command: how it was started; of a run that is resumed, the first command stays.
        overrides: what was typed, `key=value`; of a run that is resumed, added to what was typed before.
        swept: those of them that the sweep around the run tries values of; None where there is no sweep.
    """
    with lock(folder / LOCK, problem=_BUSY.format(folder)):
        before, start = read_metadata(folder), time.monotonic()
        typed = {override_key(word): word for word in [*stored_overrides(before), *overrides]}
        update_metadata(
            folder,
            state=RUNNING,
            error=None,
            command=before.get("command", command),
            overrides=list(typed.values()),
            swept=None if swept is None else list(swept),
            started=before.get("started", _now()),
            ended=None,
        )

        def end(state: str, problem: str | None = None) -> None:
            seconds = before.get("seconds", 0.0) + time.monotonic() - start
            update_metadata(folder, state=state, error=problem, ended=_now(), seconds=round(seconds, 3))

        try:
            yield
        except AlreadyCompleteError:
            end(FINISHED)
            raise
        except BaseException as error:
            refused = isinstance(error, UserError) and read_metadata(folder).get("result") == before.get("result")
            if refused and before.get("state") not in (None, FAILED):
                _write(folder, before)  # it is as it was: what was typed now has not begun to change it
            else:
                end(INTERRUPTED if was_interrupted(error) else FAILED, _reason(error))
            raise
        else:
            end(PRUNED if read_metadata(folder).get("state") == PRUNED else FINISHED)


def stored_overrides(record: dict[str, Any]) -> list[str]:
    """The typed settings in a record, as far as it has any."""
    words = record.get("overrides")
    return [word for word in words if isinstance(word, str)] if isinstance(words, list) else []


def was_interrupted(error: BaseException) -> bool:
    """Whether it is Ctrl-C, or the exit code that a signal brings."""
    return isinstance(error, KeyboardInterrupt) or (
        isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128
    )


def is_running(folder: Path) -> bool:
    """Whether another process of this machine, or of one that shares its disk, is at work on the run of a folder."""
    with try_lock(folder / LOCK) as held:
        return not held


def _reason(error: BaseException) -> str:
    """Why a run ended, in words."""
    if was_interrupted(error):
        signum = int(error.code or 0) - 128 if isinstance(error, SystemExit) else signal.SIGINT
        return f"stopped by {'Ctrl-C' if signum == signal.SIGINT else signal.Signals(signum).name}"
    if isinstance(error, SystemExit):
        return f"ended with exit code {error.code}"
    return str(error).strip() or type(error).__name__


def describe_environment() -> dict[str, Any]:
    """The program, the libraries and the machine, as a record has them."""
    from importlib.metadata import version  # which --help need not wait for

    return {
        "program": {"version": version("gpt-pretrain"), "git": git_revision()},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "machine": {"system": f"{platform.system()} {platform.machine()}", "cpu": _cpu_name(), "cores": os.cpu_count()},
    }


def _write(folder: Path, record: dict[str, Any]) -> None:
    try:
        write_json(folder / METADATA, record)
    except OSError as error:
        log.warning("%s cannot be written: %s.", folder / METADATA, error.strerror or error)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
