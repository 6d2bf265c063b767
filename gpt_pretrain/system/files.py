"""Write files so that a reader finds the old content or the new one, and so that nothing is written through a link.

A folder from somebody else may hold links to any file of its new owner. Whole files replace such a link, since they are renamed
into place; files that grow are opened by `open_for_append` and `open_emptied`, which refuse it. `linked_paths` finds the links
in the way before anything is written.

Some file systems, such as network drives, lack calls that others have. Where flushing to disk, hard links or renaming over an
existing file are not supported, the nearest thing is done instead.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

SCRATCH_SUFFIX = ".tmp"
# Errors of file systems that lack a call. Some of them report it as a missing permission.
NOT_SUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EPERM, errno.EACCES, errno.EMLINK)
NO_RENAME = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EXDEV)
FICLONE = 0x40049409
LOST_DATA = (errno.EIO, errno.ENOSPC, errno.EDQUOT)


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
                with open(scratch, "rb+") as stream:  # some systems flush only what is open for writing
                    sync_file(stream)
            _replace_file(scratch, path)
        if durable:
            sync_folder(path.parent)
    finally:
        remove(scratch)


def make_writable_folder(folder: Path) -> None:
    """Make a folder unless it exists, and check that files can be created in it.

    Raises:
        OSError: If not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".{secrets.token_hex(4)}{SCRATCH_SUFFIX}"
    probe.write_bytes(b"")
    probe.unlink()


def write_text(path: Path, text: str) -> None:
    """Replace the content of a UTF-8 text file. Names of files that are not UTF-8 are written with escapes, as JSON has them."""
    with replacing(path) as scratch, open(scratch, "w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
        stream.write(text)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace the content of a JSON file."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def open_for_append(path: Path, *, buffering: int = -1) -> IO[bytes]:
    """Open a file to append to it; it is created if it does not exist.

    Raises:
        OSError: If the path is a link or no regular file, or cannot be opened.
    """
    return _open_in_place(path, os.O_APPEND, mode="ab", buffering=buffering)


def open_emptied(path: Path, *, buffering: int = -1) -> IO[bytes]:
    """Open an empty file to write to it; the content of an existing one is lost.

    Raises:
        OSError: If the path is a link or no regular file, or cannot be opened.
    """
    stream = _open_in_place(path, 0, mode="wb", buffering=buffering)
    stream.truncate()  # O_TRUNC would act before the checks
    return stream


def linked_paths(folder: Path, names: Iterable[str]) -> list[Path]:
    """Return the links among these paths in a folder, intermediate folders included. The folder itself may be a link.

    Args:
        names: Relative paths, such as "metrics.csv" or "checkpoints/last.ckpt".
    """
    found: dict[Path, None] = {}
    for name in names:
        path = folder
        for part in Path(name).parts:
            path = path / part
            if path.is_symlink():
                found[path] = None
                break
    return list(found)


def break_hard_links(paths: Iterable[Path]) -> None:
    """Replace each file that has another name, as a hard link in an archive gives it, by a copy that nothing else refers to.

    Raises:
        OSError: If a file cannot be replaced.
    """
    for path in paths:
        if path.is_file() and not path.is_symlink() and path.stat().st_nlink > 1:
            with replacing(path, durable=False) as scratch:
                shutil.copyfile(path, scratch)
                with suppress(OSError):  # some file systems store no permissions
                    shutil.copymode(path, scratch)


def sync_file(stream: IO[Any]) -> None:
    """Wait until everything written to an open file is on disk, where the file system can say so.

    Raises:
        OSError: If it cannot be written.
    """
    stream.flush()
    try:
        os.fsync(stream.fileno())
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise


def sync_folder(folder: Path) -> None:
    """Wait until the names of the files in a folder are on disk, where the file system can say so.

    Raises:
        OSError: If they cannot be written.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # no permission to list its files, or a system that opens no folders
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno in LOST_DATA:
            raise
    finally:
        os.close(handle)


def copy_to_free_name(source: Path, target: Path) -> None:
    """Give the content of a file a second name. Where hard links are not supported, the content is copied.

    Raises:
        FileExistsError: If the name is taken.
        OSError: If the file cannot be written.
    """
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(source.read_bytes())


def clone_file(source: Path, target: Path) -> None:
    """Make a second file with the same content that takes no more space, if the file system can; else copy the content.

    Where files can share their blocks until one is changed, they do; elsewhere the target is a hard link, so that neither file
    must be written to in place. Both share the damage of a disk.

    Raises:
        FileExistsError: If the target exists.
        OSError: If the file cannot be written.
    """
    if _share_blocks(source, target):
        return
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        shutil.copyfile(source, target)


def _share_blocks(source: Path, target: Path) -> bool:
    """Make the target share the blocks of the source, and return whether the file system can do that.

    Source: ioctl_ficlone(2), which only Linux has.
    """
    if sys.platform != "linux":
        return False
    import fcntl

    with open(source, "rb") as stored, open(target, "xb") as stream:
        try:
            fcntl.ioctl(stream, FICLONE, stored.fileno())
            return True
        except OSError:
            pass
    target.unlink()
    return False


def remove(path: Path) -> None:
    """Delete a file or a folder, if it exists and can be deleted. Of a link, only the link is deleted."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def remove_scratch_files(folder: Path) -> None:
    """Delete unfinished files of killed processes in a folder; no other process may be writing there."""
    for path in folder.glob(f".*.????????{SCRATCH_SUFFIX}"):
        remove(path)


def _open_in_place(path: Path, flags: int, *, mode: str, buffering: int) -> IO[bytes]:
    # O_NONBLOCK: opening a FIFO that nobody reads fails, where it would wait forever.
    flags |= os.O_WRONLY | os.O_CREAT
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        if path.is_symlink():
            raise OSError(errno.ELOOP, "it is a link, and nothing is written through a link", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(handle, mode, buffering=buffering)


def _replace_folder(scratch: Path, path: Path, keep_existing: Callable[[], bool] | None) -> None:
    """Rename a folder; an existing one is kept if it should be, or else moved aside first and deleted afterwards."""
    try:
        _rename(scratch, path)  # fails if another folder with files has the name
        return
    except OSError:
        if not path.exists():
            raise
    if keep_existing is not None and keep_existing():
        return
    _swap(scratch, path)


def _replace_file(scratch: Path, path: Path) -> None:
    """Rename a file over another one; where that is not supported, the other one is moved aside first."""
    try:
        os.replace(scratch, path)
    except OSError as error:
        if error.errno not in (*NOT_SUPPORTED, errno.EEXIST) or not path.is_file():
            raise
        try:
            _swap(scratch, path)
        except OSError:
            raise error from None


def _swap(scratch: Path, path: Path) -> None:
    """Rename a file or folder to a name that another one has, which is moved aside and deleted afterwards."""
    aside = scratch.with_suffix(".old")
    _rename(path, aside)
    try:
        _rename(scratch, path)
    except OSError:
        _rename(aside, path)
        raise
    remove(aside)


def _rename(source: Path, target: Path) -> None:
    """Rename a file or folder; where folders cannot be renamed, as in cloud storage and containers, copy it instead.

    Raises:
        OSError: If that is not possible, or there is a folder with files at the target.
    """
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno not in NO_RENAME or target.exists():
            raise
        try:
            shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)
        except OSError:
            remove(target)
            raise
        remove(source)
