"""The subfolders of the cache: private to the user, marked as the program's own, and never reached through a link.

The program writes, replaces and deletes files only in folders with its mark. The mark is a cache directory tag, which also tells
backup programs to leave the folder out.

Source: the Cache Directory Tagging Specification, https://bford.info/cachedir/.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from io import BufferedReader, BufferedWriter
from pathlib import Path

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.reading import open_regular

TAG = "CACHEDIR.TAG"
TAG_TEXT = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# This folder is a cache of gpt-pretrain. The program deletes files in it, and makes them again when they are needed.\n"
)
# The names in each subfolder. An earlier version, which did not mark its folders, used the same for tokens/ and remote/.
NAMES = {
    "tokens": re.compile(r"[0-9a-f]{32}|\.[0-9a-f]{32}\.[0-9a-f]{8}\.(tmp|old)"),
    "tokenizers": re.compile(r"[0-9a-f]{32}\.json|\.[0-9a-f]{32}\.json\.[0-9a-f]{8}\.tmp"),
    "remote": re.compile(r"[0-9a-f]{32}"),
    "downloads": re.compile(r"[0-9a-f]{16}-.+|tmp\w+"),
}
_TEMPORARY: list[tempfile.TemporaryDirectory[str]] = []  # deleted when the process ends


class CacheNotWritableError(UserError):
    """Raised when a folder of the cache cannot be written."""


def open_cache(cache_dir: Path, name: str) -> Path:
    """Return a subfolder of the cache, and make it if there is none.

    Args:
        name: A key of NAMES.

    Raises:
        CacheNotWritableError: If it cannot be made.
        UserError: If it is a link, belongs to another user, or holds files of another origin.
    """
    folder = cache_dir / name
    try:
        cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_folder(folder, NAMES[name])
    except OSError as error:
        raise not_writable(folder, error) from error
    return folder


def not_writable(folder: Path, error: OSError) -> CacheNotWritableError:
    """Return the message that a folder of the cache cannot be written."""
    reason = error.strerror or error
    return CacheNotWritableError(f"{folder} cannot be written: {reason}. Choose another folder with data.cache_dir=FOLDER.")


@cache
def temporary_cache() -> Path:
    """Make a cache for this process, which is deleted at its end.

    Raises:
        UserError: If no folder for temporary files can be written.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="gpt-pretrain-", ignore_cleanup_errors=True)
    except OSError as error:
        raise UserError(
            f"No folder for temporary files can be written ({error.strerror or error}). Name one with TMPDIR=FOLDER, or a cache "
            "that can be written with data.cache_dir=FOLDER."
        ) from error
    _TEMPORARY.append(folder)
    return Path(folder.name)


def make_folder(root: Path, folder: Path) -> None:
    """Make a folder below a subfolder of the cache. A link in its place is removed, and what it leads to stays as it is.

    Raises:
        OSError: If it cannot be made.
    """
    path = root
    for part in folder.relative_to(root).parts:
        path = path / part
        if path.is_symlink():
            path.unlink(missing_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)


def create_private(path: Path) -> BufferedWriter:
    """Create a file that only this user can read, and open it for writing.

    Raises:
        OSError: If there is such a file already, or it cannot be created.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    return os.fdopen(os.open(path, flags, 0o600), "wb")


def open_own(path: Path) -> BufferedReader:
    """Open a file in the cache for reading.

    Raises:
        OSError: If there is none, it is no regular file, or it or the folder that contains it is a link.
    """
    if path.is_symlink() or path.parent.is_symlink():
        raise OSError(f"{path} is a link")
    return open_regular(path)


def mark_as_used(path: Path) -> None:
    """Set the time of a file in the cache, by which the least recently used ones are found.

    Raises:
        OSError: If there is no such file, or it is a link.
    """
    if path.is_symlink() or path.parent.is_symlink():
        raise OSError(f"{path} is a link")
    os.utime(path)


def _check_folder(folder: Path, names: re.Pattern[str]) -> None:
    """Make a folder private and mark it, if it is the program's own.

    Raises:
        OSError: If that is not possible.
        UserError: If it is not the program's own.
    """
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        if problem := _describe_problem(folder, names):
            raise UserError(
                f"{folder} {problem}, so it is not used as a cache. Choose another folder with data.cache_dir=FOLDER."
            ) from None
    if stat.S_IMODE(os.lstat(folder).st_mode) & 0o077:
        with suppress(OSError):  # some file systems store no permissions
            os.chmod(folder, 0o700)
    if not (folder / TAG).exists():
        _write_tag(folder)


def _describe_problem(folder: Path, names: re.Pattern[str]) -> str | None:
    """Return why an existing folder is not the program's own, or None if it is."""
    status = os.lstat(folder)
    if stat.S_ISLNK(status.st_mode):
        return f"is a link to {os.readlink(folder)}"
    if not stat.S_ISDIR(status.st_mode):
        return "is a file"
    if status.st_uid != _owner_of_new_files(folder):
        return "belongs to another user"
    foreign = next(_foreign_names(folder, names), None) if not _is_tagged(folder) else None
    return f"holds files of another origin, such as {foreign}" if foreign is not None else None


def _owner_of_new_files(folder: Path) -> int:
    """Return the user that owns the files that this process makes. A network drive may map users to others."""
    if os.lstat(folder).st_uid == os.geteuid():
        return os.geteuid()
    probe = folder.parent / f".gpt-pretrain-owner-{os.getpid()}"
    with create_private(probe) as stream:
        owner = os.fstat(stream.fileno()).st_uid
    probe.unlink()
    return owner


def _is_tagged(folder: Path) -> bool:
    try:
        with open_own(folder / TAG) as stream:
            return stream.read(len(TAG_TEXT) + 1) == TAG_TEXT.encode()
    except OSError:
        return False


def _write_tag(folder: Path) -> None:
    try:
        with create_private(folder / TAG) as stream:
            stream.write(TAG_TEXT.encode())
    except FileExistsError:
        pass  # another process has just written it


def _foreign_names(folder: Path, names: re.Pattern[str]) -> Iterator[str]:
    """Yield the names in a folder that the program would not have chosen."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name != TAG and (names.fullmatch(entry.name) is None or entry.is_symlink()):
                yield entry.name
