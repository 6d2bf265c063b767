"""Locks between processes; the operating system releases them when their process ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from gpt_pretrain.errors import UserError


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold a lock file during the block, and yield whether this process holds it; False if another process does.

    On a file system without locks, every process holds it.
    """
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    except NotImplementedError:
        yield True
        return
    try:
        yield True
    finally:
        lock.release()


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
