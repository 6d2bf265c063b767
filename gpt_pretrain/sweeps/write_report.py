"""report.html: one page that tells of a run or a sweep, complete in itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.folder import SWEEP_SETTINGS, checkpoint_dir, display_path
from gpt_pretrain.runs.metadata import METADATA, read_metadata
from gpt_pretrain.system.files import write_text

REPORT = "report.html"

log = logging.getLogger(__name__)


def write_report(folder: Path) -> Path:
    """Write the page of a run's folder, or of a sweep's, whose folders hold the runs; from what is there, however little.

    Returns:
        The page's file.

    Raises:
        UserError: when the folder holds neither.
        OSError: when the page cannot be written.
    """
    from gpt_pretrain.runs.report.run_page import run_page
    from gpt_pretrain.sweeps.report_page import sweep_page

    if (folder / SWEEP_SETTINGS).exists() and any("texts" in read_metadata(path.parent) for path in folder.glob(f"*/{METADATA}")):
        raise UserError(f"{folder}: these are generated texts, which summary.csv compares; there is no page of them.")
    if (folder / SWEEP_SETTINGS).exists() and any(folder.glob(f"*/{METADATA}")):
        page = sweep_page(folder)
    elif any((folder / name).exists() for name in (METADATA, "config.yaml", "metrics.csv")) or checkpoint_dir(folder).is_dir():
        page = run_page(folder)
    else:
        raise UserError(f"{folder}: this folder holds neither a run nor a sweep, so there is nothing to report.")
    write_text(folder / REPORT, page)
    return folder / REPORT


def keep_report(folder: Path) -> Path | None:
    """Write the page, or warn that it could not be written, which is no reason to lose a run."""
    try:
        return write_report(folder)
    except Exception as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or f"{type(error).__name__}: {error}"
        log.warning("%s cannot be written: %s.", folder / REPORT, reason)
        return None


@contextmanager
def reported(folder: Path) -> Iterator[None]:
    """Write the page of a folder once the work inside has ended, however it ends."""
    try:
        yield
    finally:
        if keep_report(folder) is not None and (folder / "config.yaml").exists():  # else the settings were refused
            log.info("All of it on one page: %s", display_path(folder / REPORT))
