"""Write files so that a reader finds the old content or the new one, and so that nothing is written through a link.

A folder from somebody else may hold links to any file of its new owner. A whole file replaces such a link, since it is renamed
into place. A file that grows is opened by `open_for_append` or `open_emptied`, which refuse links. `linked_paths` finds links
before anything is written.

Some file systems, such as network drives, do not support flushing to disk, hard links or renaming over an existing file. The
nearest substitute is used there.
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
    """Yield a path beside `path` for a new file or folder, which replaces `path` when the block succeeds.

    If the block fails, the new file is deleted and the old one is untouched.

    Args:
        durable: Whether to flush the content to disk before the rename, so that it survives a power cut.
        keep_existing: For a folder, returns whether an existing one is kept, since another process may just have made it.

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
                with open(scratch, "rb+") as stream:  # Some systems flush only files that are open for writing.
                    sync_file(stream)
            _replace_file(scratch, path)
        if durable:
            sync_folder(path.parent)
    finally:
        remove(scratch)


def make_writable_folder(folder: Path) -> None:
    """Make a folder unless it exists, and check that files can be created in it.

    Raises:
        OSError: If one of these is not possible.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".{secrets.token_hex(4)}{SCRATCH_SUFFIX}"
    probe.write_bytes(b"")
    probe.unlink()


def write_text(path: Path, text: str) -> None:
    """Replace the content of a UTF-8 text file. Lone surrogates, as in file names that are not UTF-8, are escaped as in JSON."""
    with replacing(path) as scratch, open(scratch, "w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
        stream.write(text)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace the content of a JSON file."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def open_for_append(path: Path, *, buffering: int = -1) -> IO[bytes]:
    """Open a file to append to it. It is created if it does not exist.

    Raises:
        OSError: If the path is a link or no regular file, or cannot be opened.
    """
    return _open_in_place(path, os.O_APPEND, mode="ab", buffering=buffering)


def open_emptied(path: Path) -> IO[bytes]:
    """Open an empty file to write to it. The content of an existing file is lost.

    Raises:
        OSError: If the path is a link or no regular file, or cannot be opened.
    """
    stream = _open_in_place(path, 0, mode="wb", buffering=-1)
    stream.truncate()  # O_TRUNC would empty the file before the checks.
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
    """Replace each file that has several names by a copy with one name. Hard links in an archive give files other names.

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
    """Wait until everything that was written to an open file is on disk, if the file system can tell.

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
    """Wait until the names of the files in a folder are on disk, if the file system can tell.

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
    """Make a second file with the same content, without taking more space if the file system can do that.

    If the file system can, both files share their blocks until one of them changes. Otherwise, the target is a hard link, so
    neither file may be changed in place. If hard links are not supported either, the content is copied. Only a copy is safe from
    damage to the first file on the disk.

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
    """Delete a file or a folder, if it exists and can be deleted. If it is a link, only the link is deleted."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def remove_scratch_files(folder: Path) -> None:
    """Delete unfinished files of killed processes in a folder. No other process may be writing there."""
    for path in folder.glob(f".*.????????{SCRATCH_SUFFIX}"):
        remove(path)


def _open_in_place(path: Path, flags: int, *, mode: str, buffering: int) -> IO[bytes]:
    # With O_NONBLOCK, opening a FIFO that nobody reads fails. Without it, opening would wait forever.
    flags |= os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
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
    """Rename a folder. An existing one is kept if it should be; otherwise it is moved aside and deleted afterwards."""
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
    """Rename a file over another one. If that is not supported, the other one is moved aside first."""
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
    """Rename a file or folder to an existing name. The other file or folder is moved aside, and deleted afterwards."""
    aside = scratch.with_suffix(".old")
    _rename(path, aside)
    try:
        _rename(scratch, path)
    except OSError:
        _rename(aside, path)
        raise
    remove(aside)


def _rename(source: Path, target: Path) -> None:
    """Rename a file or folder. Copy it if folders cannot be renamed, as in cloud storage and containers.

    Raises:
        OSError: If that is not possible, or the target is a folder with files.
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
