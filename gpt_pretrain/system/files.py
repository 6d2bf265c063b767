"""Write files atomically: a reader finds the old content or the new one, even if the process is killed."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

SCRATCH_SUFFIX = ".tmp"


@contextmanager
def replacing(path: Path, *, durable: bool = True, keep_existing: Callable[[], bool] | None = None) -> Iterator[Path]:
    """Yield a path beside `path` to write a file or folder to; it replaces `path` when the block succeeds.

    If the block fails, the new file is deleted and the old one is untouched.

    Args:
        durable: Flush the content to disk before the rename, so that it survives a power cut.
        keep_existing: For a folder: returns whether one that exists already is kept, since another process has just made it.

    Raises:
        OSError: If the file cannot be flushed or renamed.
    """
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}{SCRATCH_SUFFIX}")
    try:
        yield scratch
        if scratch.is_dir():
            _replace_folder(scratch, path, keep_existing)
        else:
            if durable:
                with open(scratch, "rb") as stream:
                    os.fsync(stream.fileno())
            os.replace(scratch, path)
        if durable:
            sync_folder(path.parent)
    finally:
        remove(scratch)


def write_text(path: Path, text: str) -> None:
    """Replace the content of a UTF-8 text file."""
    with replacing(path) as scratch, open(scratch, "w", encoding="utf-8", newline="") as stream:
        stream.write(text)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace the content of a JSON file."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def sync_file(stream: IO[Any]) -> None:
    """Wait until everything written to an open file is on disk."""
    stream.flush()
    os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names of the files in a folder are on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it exists and can be deleted."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def remove_scratch_files(folder: Path) -> None:
    """Delete unfinished files of killed processes in a folder; no other process may be writing there."""
    for path in folder.glob(f".*.????????{SCRATCH_SUFFIX}"):
        remove(path)


def _replace_folder(scratch: Path, path: Path, keep_existing: Callable[[], bool] | None) -> None:
    """Rename a folder; an existing one is kept if it should be, or else moved aside first and deleted afterwards."""
    try:
        os.rename(scratch, path)  # fails if another folder with files has the name
        return
    except OSError:
        if not path.exists():
            raise
    if keep_existing is not None and keep_existing():
        return
    aside = scratch.with_suffix(".old")
    os.rename(path, aside)
    try:
        os.rename(scratch, path)
    except OSError:
        os.rename(aside, path)
        raise
    remove(aside)
