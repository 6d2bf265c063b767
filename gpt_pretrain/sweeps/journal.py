"""The journal of a search: a file that Optuna reads line by line and without a limit, and that may be a stranger's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gpt_pretrain.errors import UserError, describe_damage
from gpt_pretrain.runs.folder import check_no_links
from gpt_pretrain.sweeps.folder import STUDY
from gpt_pretrain.sweeps.journal_check import check_journal
from gpt_pretrain.system.reading import DamagedFileError

if TYPE_CHECKING:
    from optuna.storages import JournalStorage

DAMAGED_JOURNAL = "{} is damaged ({}). Start a new search in another folder."
# How long a lock stays the same before it counts as left behind; a shorter time suffices if it was made long ago.
STALE_SECONDS, STALE_SECONDS_IF_OLD, OLD_LOCK_SECONDS = 5.0, 0.5, 60.0


@contextmanager
def open_journal(folder: Path) -> Iterator[JournalStorage]:
    """Yield the storage of a sweep's search, whose journal is checked first; failures in the block are explained.

    Raises:
        UserError: If the journal is damaged.
    """
    _remove_stale_lock(folder)
    _check_journal(folder / STUDY)
    with explain_damage(folder / STUDY):
        check_no_links(folder, [STUDY])  # Optuna appends to the file
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        yield JournalStorage(JournalFileBackend(str(folder / STUDY)))


@contextmanager
def explain_damage(journal: Path) -> Iterator[None]:
    """Explain what Optuna says of a damaged journal.

    Raises:
        UserError: If the block fails, and there was a journal before.
    """
    exists = journal.exists()
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:  # Optuna replays the journal, and can raise anything if it makes no sense.
        if not exists:
            raise
        raise UserError(DAMAGED_JOURNAL.format(journal, describe_damage(error)[:200])) from error


def _remove_stale_lock(folder: Path) -> None:
    """Remove Optuna's lock of a journal if its owner was killed, or it came with the folder; Optuna would wait for 30 seconds.

    A process holds the lock while it appends a few lines, so one that stays the same has no owner. No clock is needed to see
    that, but a lock whose time is far from now is recognized sooner.

    Raises:
        UserError: If it cannot be removed.
    """
    lock_file = folder / f"{STUDY}.lock"
    begin, first = time.monotonic(), _identity(lock_file)
    while first is not None and _identity(lock_file) == first:
        is_old = abs(time.time() - first[1] / 1e9) > OLD_LOCK_SECONDS
        if time.monotonic() - begin < (STALE_SECONDS_IF_OLD if is_old else STALE_SECONDS):
            time.sleep(0.05)
            continue
        try:
            lock_file.unlink(missing_ok=True)
        except OSError as error:  # it may be a folder
            raise UserError(f"{lock_file} is an abandoned lock that cannot be removed ({error.strerror}). Delete it.") from error


def _identity(file: Path) -> tuple[int, int] | None:
    """Return what distinguishes a file or link from another one in its place; None if there is none."""
    try:
        status = file.lstat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _check_journal(journal: Path) -> None:
    """Check a journal before Optuna reads it, line by line and without a limit.

    Raises:
        UserError: If it is damaged.
    """
    try:
        if journal.exists():
            check_journal(journal)
    except (OSError, DamagedFileError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UserError(DAMAGED_JOURNAL.format(journal, reason)) from error
