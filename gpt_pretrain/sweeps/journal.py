"""Open the journal of a search. It may be a stranger's, and Optuna reads it without any limit, so it is checked first."""

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
from gpt_pretrain.system.reading_cost import add_opened, explained_by_size

if TYPE_CHECKING:
    from optuna.storages import JournalStorage

DAMAGED_JOURNAL = "{} is damaged ({}). Start a new search in another folder."
# A lock counts as left behind if it stays the same for STALE_SECONDS. A shorter time is enough if it was made long ago.
STALE_SECONDS, STALE_SECONDS_IF_OLD, OLD_LOCK_SECONDS = 5.0, 0.5, 60.0


@contextmanager
def open_journal(folder: Path) -> Iterator[JournalStorage]:
    """Check the journal of a sweep's search, and yield its storage.

    Raises:
        UserError: If the journal is damaged, even if that shows only in the block.
    """
    _remove_stale_lock(folder)
    _check_journal(folder / STUDY)
    with explain_damage(folder / STUDY):
        check_no_links(folder, [STUDY])  # Optuna appends to the file.
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        yield JournalStorage(JournalFileBackend(str(folder / STUDY)))


@contextmanager
def explain_damage(journal: Path) -> Iterator[None]:
    """Replace the exceptions that a damaged journal causes in Optuna by a message, and end a block that takes far too long.

    Raises:
        UserError: If the block fails, and the journal existed before.
    """
    exists = journal.exists()
    try:
        with explained_by_size(journal):
            if exists:
                add_opened(journal.stat())  # Optuna opens it.
            yield
    except (UserError, OSError):
        raise
    except Exception as error:  # Optuna replays the journal. It can raise anything if the journal makes no sense.
        if not exists:
            raise
        raise UserError(DAMAGED_JOURNAL.format(journal, describe_damage(error)[:200])) from error


def _remove_stale_lock(folder: Path) -> None:
    """Remove Optuna's lock of a journal if no process holds it. Optuna itself would wait for 30 seconds.

    The owner may have been killed, or the lock may have come with the folder. A process holds a lock only while it appends a few
    lines, so a lock that stays the same has no owner. If its time is far from now, a shorter wait is enough to see that.

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
        except OSError as error:  # for example, if it is a folder
            raise UserError(f"{lock_file} is an abandoned lock that cannot be removed ({error.strerror}). Delete it.") from error


def _identity(file: Path) -> tuple[int, int] | None:
    """Return numbers that identify a file or link, to see whether another one has replaced it. Return None if there is none."""
    try:
        status = file.lstat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _check_journal(journal: Path) -> None:
    """Check a journal before Optuna reads it.

    Raises:
        UserError: If it is damaged.
    """
    try:
        if journal.exists():
            check_journal(journal)
    except (OSError, DamagedFileError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UserError(DAMAGED_JOURNAL.format(journal, reason)) from error
