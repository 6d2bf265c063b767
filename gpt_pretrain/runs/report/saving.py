"""Write report.html to a run's folder. matplotlib and Jinja are loaded only when a page is written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.folder import METRICS, REPORT, checkpoint_dir, display_path, list_checkpoints
from gpt_pretrain.runs.metadata import METADATA_FILE, read_metadata, was_interrupted
from gpt_pretrain.system.files import write_text

SIGNS_OF_A_RUN = (METADATA_FILE, "config.yaml", METRICS)

log = logging.getLogger(__name__)


def is_run(folder: Path) -> bool:
    """Return whether a folder contains a run, or the remains of one."""
    return any((folder / name).exists() for name in SIGNS_OF_A_RUN) or checkpoint_dir(folder).is_dir()


def save_run_page(folder: Path) -> Path:
    """Write the report page of a run from the files that exist, and return the page's file.

    Raises:
        UserError: If the folder contains no run.
        OSError: If the page cannot be written.
    """
    from gpt_pretrain.runs.report.run_page import render_run_page

    if not is_run(folder):
        raise UserError(f"{folder}: this folder holds no run, so there is nothing to report.")
    write_text(folder / REPORT, render_run_page(folder))
    return folder / REPORT


def try_save_page(folder: Path, save: Callable[[Path], Path]) -> Path | None:
    """Write a report page, or log a warning if that fails. A missing page must not fail a run."""
    try:
        return save(folder)
    except Exception as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or f"{type(error).__name__}: {error}".removesuffix(": ")
        log.warning("%s cannot be written: %s.", folder / REPORT, reason.rstrip("."))
        return None


@contextmanager
def report_at_end(folder: Path) -> Iterator[None]:
    """Write the report page of a run when the block ends, with or without an error.

    If a resumed run is refused, the page stays as it is. The run's files have not changed, and may be somebody else's.
    """
    resumed, before = bool(list_checkpoints(folder)), _outcome(folder)
    try:
        yield
    except UserError:
        if not resumed or _outcome(folder) != before:
            _save_at_end(folder)
        raise
    except BaseException as error:
        # Nothing has been trained, and a user who interrupts does not want to wait for matplotlib.
        if not was_interrupted(error) or resumed or (folder / METRICS).exists():
            _save_at_end(folder)
        raise
    _save_at_end(folder)


def _outcome(folder: Path) -> tuple[Any, Any]:
    """Return the state and the result in the run metadata. They change when anything is trained."""
    metadata = read_metadata(folder)
    return metadata.get("state"), metadata.get("result")


def _save_at_end(folder: Path) -> None:
    if not is_run(folder):  # nothing of it could be written, as on a full disk
        return
    written = try_save_page(folder, save_run_page)
    # Without a config.yaml the settings were rejected, and the page shows no more than the error message.
    if written is not None and (folder / "config.yaml").exists():
        log.info("Report page: %s", display_path(written))
