"""Locks between processes. The operating system releases a lock when its process ends."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from gpt_pretrain.errors import UserError

# Errors of file systems without locks, such as network drives without a lock service.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, 524)  # 524 is ENOTSUPP, from Linux's NFS

log = logging.getLogger(__name__)


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Try to hold a lock file during the block. Yield whether this process holds it; False if another process does.

    On a file system without locks, every process appears to hold it, and a warning reports this. filelock's soft locks are not
    used there: a process that was killed on another machine would hold its soft lock forever.

    Raises:
        OSError: If the path is a link, or cannot be opened.
    """
    if path.is_symlink():  # filelock empties the locked file, and before version 3.20.1 it followed links
        raise OSError(errno.ELOOP, "it is a link, and nothing is written through a link", str(path))
    file_lock = FileLock(path, timeout=0, fallback_to_soft=False)
    try:
        file_lock.acquire()
        held = True
    except Timeout:
        held = False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        held = True
        _warn_of_missing_locks(str(path.parent))
    try:
        yield held
    finally:
        file_lock.release()


@cache
def _warn_of_missing_locks(folder: str) -> None:
    log.warning("%s: this file system has no locks, so nothing stops a second process from writing here. Start only one.", folder)


@contextmanager
def lock(path: Path, *, problem: str) -> Iterator[None]:
    """Hold a lock file during the block.

    Args:
        problem: The message if another process holds it.

    Raises:
        UserError: If another process holds it.
    """
    with try_lock(path) as held:
        if not held:
            raise UserError(problem)
        yield
